// The binding. What the public functions call on every eager call takes its arguments positionally,
// and returns None where the call needs another route than the kernels.
#include <ATen/PythonTorchFunctionTLS.h>
#include <Python.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <stdexcept>

#include "binary_cross_entropy.h"
#include "consumers.h"
#include "cpu/fresh_memory.h"
#include "cpu/kernels.h"
#include "cpu/streaming.h"
#include "gpu_launch.h"
#include "layout.h"
#include "operators.h"
#include "threads.h"

namespace fused_sigmoid {
namespace {

// A Tensor or Parameter, not a subclass, that the kernels may see; else null.
const at::Tensor* kernel_tensor(PyObject* object) {
  if (!THPVariable_CheckExact(object)) return nullptr;
  const at::Tensor& tensor = THPVariable_Unpack(object);
  if (!is_unobserved(tensor) || !has_kernel_dtype(tensor) ||
      at::impl::torch_function_mode_enabled()) {
    return nullptr;
  }
  return &tensor;
}

// A tensor of any kind that autograd follows, which has the same node as a plain one; else null.
const at::Tensor* followed_tensor(PyObject* object) {
  if (!THPVariable_Check(object)) return nullptr;
  const at::Tensor& tensor = THPVariable_Unpack(object);
  return is_followed(tensor) ? &tensor : nullptr;
}

using Accept = const at::Tensor*(PyObject*);

bool has_arguments(const char* name, Py_ssize_t count, Py_ssize_t expected) {
  if (count == expected) return true;
  PyErr_Format(PyExc_TypeError, "%s() takes %zd positional arguments but %zd were given", name,
               expected, count);
  return false;
}

// Parses what users write for `saved`, which mostly is the interned object itself.
Saved parse_saved(PyObject* object) {
  static PyObject* const interned[] = {
      PyUnicode_InternFromString(saved_names[0]), PyUnicode_InternFromString(saved_names[1]),
      PyUnicode_InternFromString(saved_names[2]), PyUnicode_InternFromString(saved_names[3])};
  for (int i = 0; i < 4; ++i) {
    if (object == interned[i]) return static_cast<Saved>(i);
  }
  for (int i = 0; i < 4 && PyUnicode_Check(object); ++i) {
    if (PyUnicode_Compare(object, interned[i]) == 0) return static_cast<Saved>(i);
  }
  TORCH_CHECK_VALUE(false, "argument 'saved' is ", py::repr(object).cast<std::string>(),
                    "; accepted are 'auto', 'derivative', 'input', 'output'");
}

template <class Function>
auto without_gil(const Function& function) {
  const py::gil_scoped_release released;
  return function();
}

template <class F, Accept* accept>
PyObject* value(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (!has_arguments(F::name, count, 2)) return nullptr;
  const Saved saved = parse_saved(args[1]);
  const at::Tensor* input = accept(args[0]);
  if (input == nullptr) Py_RETURN_NONE;
  return THPVariable_Wrap(without_gil([&] { return Autograd<F>::value(*input, saved); }));
  END_HANDLE_TH_ERRORS
}

template <class F, Accept* accept>
PyObject* in_place(PyObject*, PyObject* object) {
  HANDLE_TH_ERRORS
  const at::Tensor* input = accept(object);
  if (input == nullptr) Py_RETURN_NONE;
  without_gil([&] { Autograd<F>::in_place(*input); });
  return Py_NewRef(object);
  END_HANDLE_TH_ERRORS
}

template <class F>
PyObject* value_out(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (!has_arguments(F::name, count, 2)) return nullptr;
  const at::Tensor *input = kernel_tensor(args[0]), *out = kernel_tensor(args[1]);
  if (!input || !out || has_tangent(*input) || has_tangent(*out)) Py_RETURN_NONE;
  without_gil([&] { Autograd<F>::value_out(*input, *out); });
  return Py_NewRef(args[1]);
  END_HANDLE_TH_ERRORS
}

template <class F, Accept* accept>
PyObject* value_and_derivative(PyObject*, PyObject* object) {
  HANDLE_TH_ERRORS
  const at::Tensor* input = accept(object);
  if (input == nullptr) Py_RETURN_NONE;
  auto [value, derivative] = without_gil([&] { return Autograd<F>::value_and_derivative(*input); });
  return Py_BuildValue("(NN)", THPVariable_Wrap(std::move(value)),
                       THPVariable_Wrap(std::move(derivative)));
  END_HANDLE_TH_ERRORS
}

// A Tensor or Parameter, not a subclass, or undefined for None where that is allowed; else nothing.
std::optional<at::Tensor> plain_tensor(PyObject* object, bool is_optional) {
  if (is_optional && object == Py_None) return at::Tensor();
  if (!THPVariable_CheckExact(object)) return std::nullopt;
  return THPVariable_Unpack(object);
}

// Takes (input, target, weight, pos_weight, reduction, return_probability).
PyObject* binary_cross_entropy_with_logits(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  using namespace binary_cross_entropy;
  if (!has_arguments("binary_cross_entropy_with_logits", count, 6)) return nullptr;
  static PyObject* const reductions[] = {PyUnicode_InternFromString("none"),
                                         PyUnicode_InternFromString("mean"),
                                         PyUnicode_InternFromString("sum")};
  const auto input = plain_tensor(args[0], false), target = plain_tensor(args[1], false);
  const auto weight = plain_tensor(args[2], true), pos_weight = plain_tensor(args[3], true);
  const auto* reduction =
      std::find_if(std::begin(reductions), std::end(reductions), [&](PyObject* name) {
        return args[4] == name ||
               (PyUnicode_Check(args[4]) && PyUnicode_Compare(args[4], name) == 0);
      });
  if (!input || !target || !weight || !pos_weight || reduction == std::end(reductions) ||
      at::impl::torch_function_mode_enabled()) {
    Py_RETURN_NONE;
  }
  const int with_probability = PyObject_IsTrue(args[5]);
  if (with_probability < 0) return nullptr;
  auto results = without_gil([&] {
    return loss({*input, *target, *weight, *pos_weight},
                static_cast<Reduction>(reduction - std::begin(reductions)), with_probability != 0);
  });
  if (!results) Py_RETURN_NONE;
  PyObject* const loss = THPVariable_Wrap(std::move(results->loss));
  if (!with_probability) return loss;
  return Py_BuildValue("(NN)", loss, THPVariable_Wrap(std::move(results->probability)));
  END_HANDLE_TH_ERRORS
}

binary_cross_entropy::Operands operands_of(const at::Tensor& logits, const at::Tensor& targets,
                                           const OptionalTensor& weights,
                                           const OptionalTensor& pos_weights) {
  return {logits, targets, weights.value_or(at::Tensor()), pos_weights.value_or(at::Tensor())};
}

// What a GPU runs without Triton. Returns the loss, then what is wanted of gradient and
// probability.
std::vector<at::Tensor> composed_loss(const at::Tensor& logits, const at::Tensor& targets,
                                      const OptionalTensor& weights,
                                      const OptionalTensor& pos_weights, int reduction,
                                      bool gradient, bool probability) {
  using namespace binary_cross_entropy;
  const Results results = composed(operands_of(logits, targets, weights, pos_weights),
                                   static_cast<Reduction>(reduction), {gradient, probability});
  std::vector<at::Tensor> found = {results.loss};
  if (gradient) found.push_back(results.gradient);
  if (probability) found.push_back(results.probability);
  return found;
}

at::Tensor composed_loss_gradient(const at::Tensor& grad, const at::Tensor& logits,
                                  const at::Tensor& targets, const OptionalTensor& weights,
                                  const OptionalTensor& pos_weights, int reduction) {
  using namespace binary_cross_entropy;
  return composed_gradient(grad, operands_of(logits, targets, weights, pos_weights),
                           static_cast<Reduction>(reduction));
}

using FastCall = PyObject*(PyObject*, PyObject* const*, Py_ssize_t);

// Python reads the definition for as long as the function lives, which is as long as the process.
void add_method(py::module_& module, const std::string& name, PyCFunction function, int flags) {
  auto* method = new PyMethodDef{strdup(name.c_str()), function, flags, nullptr};
  module.add_object(name.c_str(), py::reinterpret_steal<py::object>(
                                      PyCFunction_NewEx(method, module.ptr(), nullptr)));
}
void add_method(py::module_& module, const std::string& name, FastCall* function) {
  add_method(module, name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)),
             METH_FASTCALL);
}

template <class F>
void add_function(py::module_& module) {
  const std::string name = F::name;
  add_method(module, name, value<F, kernel_tensor>);
  add_method(module, name + "_", in_place<F, kernel_tensor>, METH_O);
  add_method(module, name + "_out", value_out<F>);
  add_method(module, name + "_with_derivative", value_and_derivative<F, kernel_tensor>, METH_O);
  add_method(module, "followed_" + name, value<F, followed_tensor>);
  add_method(module, "followed_" + name + "_", in_place<F, followed_tensor>, METH_O);
  add_method(module, "followed_" + name + "_with_derivative",
             value_and_derivative<F, followed_tensor>, METH_O);
}

KernelNumber kernel_of(size_t number) {
  TORCH_CHECK_VALUE(number < kernel_count, "kernel ", number, "; accepted are 0 to ",
                    kernel_count - 1);
  return {number / work_count, static_cast<Work>(number % work_count)};
}

// Pointers to the tensors of a call of a kernel.
c10::SmallVector<const at::Tensor*, most_operands> pointers_to(
    const std::vector<at::Tensor>& tensors) {
  c10::SmallVector<const at::Tensor*, most_operands> pointers;
  for (const at::Tensor& tensor : tensors) pointers.push_back(&tensor);
  return pointers;
}

void check_count(KernelNumber kernel, const std::vector<at::Tensor>& tensors) {
  const size_t expected = operands_of(kernel.work);
  TORCH_CHECK_TYPE(tensors.size() == expected, "kernel ", kernel.index(), " has ", expected,
                   " tensors, not ", tensors.size());
}

// The hooks are lists, which stay alive; only their lengths are looked at, without the GIL.
std::string add_gpu_kernel(size_t kernel, int layout, c10::DeviceIndex device,
                           const py::object& dtype, unsigned wide, uintptr_t function,
                           int64_t block_size, int64_t fewest, int64_t most, unsigned threads,
                           const py::tuple& hooks) {
  // The extension's tables are indexed by these.
  TORCH_CHECK_VALUE(layout >= 0 && static_cast<size_t>(layout) < gpu::layout_count, "layout ",
                    layout, "; accepted are 0 to ", gpu::layout_count - 1);
  TORCH_CHECK_VALUE(wide < 1u << most_operands, "wide ", wide, "; accepted are 0 to ",
                    (1u << most_operands) - 1);
  TORCH_CHECK_TYPE(THPDtype_Check(dtype.ptr()), "dtype must be torch.dtype");
  gpu::Launch launch{reinterpret_cast<void*>(function), block_size, fewest, most, threads, {}};
  for (const py::handle hook : hooks) {
    if (!PyList_Check(hook.ptr())) throw py::type_error("hooks are lists");
    launch.hook_counts.push_back(&reinterpret_cast<PyVarObject*>(Py_NewRef(hook.ptr()))->ob_size);
  }
  const gpu::Key key{kernel_of(kernel), static_cast<gpu::Layout>(layout), device,
                     reinterpret_cast<THPDtype*>(dtype.ptr())->scalar_type, wide};
  return gpu::add(key, std::move(launch));
}

bool launch_gpu_kernel(size_t number, const std::vector<at::Tensor>& tensors) {
  const KernelNumber kernel = kernel_of(number);
  check_count(kernel, tensors);
  const py::gil_scoped_release no_gil;
  return gpu::launch(kernel, pointers_to(tensors));
}

// Returns (layout, wide, numbers), or None.
py::object gpu_call(size_t number, const std::vector<at::Tensor>& tensors) {
  const KernelNumber kernel = kernel_of(number);
  check_count(kernel, tensors);
  const auto call = gpu::call_of(kernel.work, pointers_to(tensors));
  if (!call.has_value()) return py::none();
  const std::vector<int64_t> numbers(call->numbers.begin(), call->numbers.end());
  return py::make_tuple(static_cast<int>(call->layout), call->wide, py::tuple(py::cast(numbers)));
}

// What the benchmark times beside copy_: the same copy by non-temporal stores, on torch's threads.
void copy_tensor_streamed(const at::Tensor& to, const at::Tensor& from) {
  TORCH_CHECK_VALUE(to.is_cpu() && from.is_cpu() && to.is_contiguous() && from.is_contiguous() &&
                        to.nbytes() == from.nbytes(),
                    "copy_streamed is for contiguous tensors of a CPU, of as many bytes each");
  const py::gil_scoped_release no_gil;
  int8_t* const target = static_cast<int8_t*>(to.mutable_data_ptr());
  const char* const source = static_cast<const char*>(from.const_data_ptr());
  constexpr int64_t fewest_bytes = 1 << 17;  // of a thread, about as many as of copy_'s
  run_in_threads(
      target, static_cast<int64_t>(to.nbytes()), fewest_bytes, [&](int64_t begin, int64_t end) {
        copy_streamed(reinterpret_cast<char*>(target) + begin, source + begin, end - begin);
      });
}

}  // namespace
}  // namespace fused_sigmoid

// TORCH_EXTENSION_NAME holds the torch release that this is built for.
PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  using namespace fused_sigmoid;
  for_each_function([&](auto function) { add_function<decltype(function)>(module); });
  add_method(module, "binary_cross_entropy_with_logits", binary_cross_entropy_with_logits);
  module.def("composed_loss", composed_loss);
  module.def("composed_loss_gradient", composed_loss_gradient);
  // In the order of their kernels' numbers.
  module.def("functions", [] {
    py::list names;
    for_each_function([&](auto function) { names.append(decltype(function)::name); });
    return py::tuple(names);
  });
  // In the order of their numbers: name, how many inputs, how many outputs.
  module.def("works", [] {
    py::tuple works(work_count);
    for (size_t i = 0; i < work_count; ++i) {
      const Work work = static_cast<Work>(i);
      works[i] = py::make_tuple(work_names[i], inputs_of(work), outputs_of(work));
    }
    return works;
  });
  module.def("check_settings", [] {
    selected_kernels();
    check_fresh_memory_settings();
    gpu::is_left_to_triton();
  });
  module.def("add_gpu_kernel", add_gpu_kernel);
  module.def("launch_gpu_kernel", launch_gpu_kernel);
  module.def("gpu_call", gpu_call);
  module.def("empty_gpu_output", [](const std::vector<at::Tensor>& inputs) {
    return empty_output(pointers_to(inputs));
  });
  module.def("forget_gpu_kernels", gpu::forget);
  module.def("gpu_launches", gpu::launches);
  module.def("can_read_backward_passes", consumers::can_read);
  module.def("set_reading_backward_passes", consumers::set_reading);
  module.def("instruction_set", [] { return selected_kernels().instruction_set; });
  module.def("instruction_sets", [] { return py::tuple(py::cast(instruction_sets())); });
  module.def("select_instruction_set", select_instruction_set);
  module.def("streamed_from", streamed_from);
  module.def("set_streamed_from", set_streamed_from);
  module.def("streamed_runs", streamed_runs);
  module.def("copy_streamed", copy_tensor_streamed);
}
