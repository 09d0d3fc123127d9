// The binding: functions that functional.py calls on every eager call, so they take their
// arguments positionally and return None where the call needs another route than the kernels.
#include <ATen/PythonTorchFunctionTLS.h>
#include <Python.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <climits>
#include <stdexcept>

#include "consumers.h"
#include "cpu/fresh_memory.h"
#include "cpu/kernels.h"
#include "gpu.h"
#include "ops.h"

namespace {

using fused_sigmoid::Saved;

// A Tensor or Parameter, not a subclass, that the kernels may see.
const at::Tensor* kernel_tensor(PyObject* object) {
  if (!THPVariable_CheckExact(object)) return nullptr;
  const at::Tensor& tensor = THPVariable_Unpack(object);
  if (!fused_sigmoid::is_plain(tensor) || !fused_sigmoid::has_kernel_dtype(tensor) ||
      at::impl::torch_function_mode_enabled()) {
    return nullptr;
  }
  return &tensor;
}

// A tensor of any kind that autograd follows: the node is the same as a plain tensor's.
const at::Tensor* followed_tensor(PyObject* object) {
  if (!THPVariable_Check(object)) return nullptr;
  const at::Tensor& tensor = THPVariable_Unpack(object);
  return fused_sigmoid::autograd::is_followed(tensor) ? &tensor : nullptr;
}

using Accept = const at::Tensor*(PyObject*);

bool has_arguments(const char* name, Py_ssize_t count, Py_ssize_t expected) {
  if (count == expected) return true;
  PyErr_Format(PyExc_TypeError, "%s() takes %zd positional arguments but %zd were given", name,
               expected, count);
  return false;
}

using fused_sigmoid::saved_names;

// Sets a Python error and returns false for an unknown name.
bool parse_saved(PyObject* object, Saved& saved) {
  static PyObject* const interned[] = {
      PyUnicode_InternFromString(saved_names[0]), PyUnicode_InternFromString(saved_names[1]),
      PyUnicode_InternFromString(saved_names[2]), PyUnicode_InternFromString(saved_names[3])};
  for (int i = 0; i < 4; ++i) {
    if (object == interned[i]) {
      saved = static_cast<Saved>(i);
      return true;
    }
  }
  for (int i = 0; PyUnicode_Check(object) && i < 4; ++i) {
    if (PyUnicode_Compare(object, interned[i]) == 0) {
      saved = static_cast<Saved>(i);
      return true;
    }
  }
  PyErr_Format(PyExc_ValueError,
               "argument 'saved' is %R; accepted are 'auto', 'derivative', 'input', 'output'",
               object);
  return false;
}

PyObject* check_saved(PyObject*, PyObject* object) {
  Saved saved;
  if (!parse_saved(object, saved)) return nullptr;
  Py_RETURN_NONE;
}

template <Accept* accept>
PyObject* sigmoid(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (!has_arguments("sigmoid", count, 2)) return nullptr;
  Saved saved;
  if (!parse_saved(args[1], saved)) return nullptr;
  const at::Tensor* input = accept(args[0]);
  if (input == nullptr) Py_RETURN_NONE;
  at::Tensor value;
  {
    pybind11::gil_scoped_release no_gil;
    value = fused_sigmoid::autograd::sigmoid(*input, saved);
  }
  return THPVariable_Wrap(std::move(value));
  END_HANDLE_TH_ERRORS
}

template <Accept* accept>
PyObject* sigmoid_(PyObject*, PyObject* object) {
  HANDLE_TH_ERRORS
  const at::Tensor* input = accept(object);
  if (input == nullptr) Py_RETURN_NONE;
  {
    pybind11::gil_scoped_release no_gil;
    at::Tensor written = *input;
    fused_sigmoid::autograd::sigmoid_(written);
  }
  return Py_NewRef(object);
  END_HANDLE_TH_ERRORS
}

PyObject* sigmoid_out(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (!has_arguments("sigmoid_out", count, 2)) return nullptr;
  const at::Tensor* input = kernel_tensor(args[0]);
  const at::Tensor* out = kernel_tensor(args[1]);
  if (input == nullptr || out == nullptr || fused_sigmoid::has_forward_gradient(*input) ||
      fused_sigmoid::has_forward_gradient(*out)) {
    Py_RETURN_NONE;
  }
  {
    pybind11::gil_scoped_release no_gil;
    fused_sigmoid::autograd::sigmoid_out(*input, *out);
  }
  return Py_NewRef(args[1]);
  END_HANDLE_TH_ERRORS
}

template <Accept* accept>
PyObject* sigmoid_with_derivative(PyObject*, PyObject* object) {
  HANDLE_TH_ERRORS
  const at::Tensor* input = accept(object);
  if (input == nullptr) Py_RETURN_NONE;
  at::Tensor value, derivative;
  {
    pybind11::gil_scoped_release no_gil;
    std::tie(value, derivative) = fused_sigmoid::autograd::sigmoid_with_derivative(*input);
  }
  return Py_BuildValue("(NN)", THPVariable_Wrap(std::move(value)),
                       THPVariable_Wrap(std::move(derivative)));
  END_HANDLE_TH_ERRORS
}

// Sets a Python error for a number that is none of `count`.
template <class Named>
bool parse_number(const char* what, unsigned long number, size_t count, Named& named) {
  named = static_cast<Named>(number);
  if (number < count) return true;
  PyErr_Format(PyExc_ValueError, "%s %lu; accepted are 0 to %zu", what, number, count - 1);
  return false;
}

// add_gpu_kernel(kernel, layout, device, dtype, wide, function, block_size, fewest, most, threads,
// hooks): str. The hooks are lists, which stay alive; only their lengths are looked at, without the
// GIL.
PyObject* add_gpu_kernel(PyObject*, PyObject* arguments) {
  HANDLE_TH_ERRORS
  namespace gpu = fused_sigmoid::gpu;
  unsigned number, layout_number, wide, threads;
  int device;
  PyObject *dtype, *hooks;
  unsigned long long function;
  long long block_size, fewest, most;
  if (!PyArg_ParseTuple(arguments, "IIiO!IKLLLIO!", &number, &layout_number, &device, &THPDtypeType,
                        &dtype, &wide, &function, &block_size, &fewest, &most, &threads,
                        &PyTuple_Type, &hooks)) {
    return nullptr;
  }
  gpu::Kernel kernel;
  gpu::Layout layout;
  if (!parse_number("kernel", number, gpu::kernels, kernel) ||
      !parse_number("layout", layout_number, gpu::layouts, layout) ||
      !parse_number("wide", wide, size_t{1} << gpu::most_tensors, wide)) {
    return nullptr;
  }
  gpu::Launch launch{reinterpret_cast<void*>(function), block_size, fewest, most, threads, {}};
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(hooks); ++i) {
    PyObject* list = PyTuple_GET_ITEM(hooks, i);
    if (!PyList_Check(list)) {
      PyErr_Format(PyExc_TypeError, "hooks are lists, not %s", Py_TYPE(list)->tp_name);
      return nullptr;
    }
    launch.hook_counts.push_back(&reinterpret_cast<PyVarObject*>(Py_NewRef(list))->ob_size);
  }
  const gpu::Key key{kernel, layout, static_cast<c10::DeviceIndex>(device),
                     reinterpret_cast<THPDtype*>(dtype)->scalar_type, wide};
  return PyUnicode_FromString(gpu::add(key, std::move(launch)).c_str());
  END_HANDLE_TH_ERRORS
}

// Sets a Python error if one of the arguments from the first on is no tensor.
bool parse_tensors(const char* name, PyObject* const* args, Py_ssize_t first, Py_ssize_t count,
                   c10::SmallVector<at::Tensor, 3>& tensors) {
  for (Py_ssize_t i = first; i < count; ++i) {
    if (!THPVariable_Check(args[i])) {
      PyErr_Format(PyExc_TypeError, "%s(): argument %zd must be Tensor, not %s", name, i,
                   Py_TYPE(args[i])->tp_name);
      return false;
    }
    tensors.push_back(THPVariable_Unpack(args[i]));
  }
  return true;
}

// empty_gpu_result(*operands): Tensor
PyObject* empty_gpu_result(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  c10::SmallVector<at::Tensor, 3> operands;
  if (count == 0 && !has_arguments("empty_gpu_result", count, 1)) return nullptr;
  if (!parse_tensors("empty_gpu_result", args, 0, count, operands)) return nullptr;
  return THPVariable_Wrap(fused_sigmoid::gpu::empty_result(operands));
  END_HANDLE_TH_ERRORS
}

// The arguments (kernel, *tensors) of the two functions below; sets a Python error if they are
// others.
bool parse_gpu_call(const char* name, PyObject* const* args, Py_ssize_t count,
                    fused_sigmoid::gpu::Kernel& kernel, c10::SmallVector<at::Tensor, 3>& tensors) {
  const unsigned long number = count == 0 ? ULONG_MAX : PyLong_AsUnsignedLong(args[0]);
  if (PyErr_Occurred() || !parse_number("kernel", number, fused_sigmoid::gpu::kernels, kernel)) {
    return false;
  }
  const size_t expected =
      fused_sigmoid::gpu::operands[number] + fused_sigmoid::gpu::results[number];
  if (!has_arguments(name, count, static_cast<Py_ssize_t>(1 + expected))) return false;
  return parse_tensors(name, args, 1, count, tensors);
}

// launch_gpu_kernel(kernel, *tensors): bool, for tensors of one shape, dtype and device.
PyObject* launch_gpu_kernel(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  fused_sigmoid::gpu::Kernel kernel;
  c10::SmallVector<at::Tensor, 3> tensors;
  if (!parse_gpu_call("launch_gpu_kernel", args, count, kernel, tensors)) return nullptr;
  bool launched;
  {
    pybind11::gil_scoped_release no_gil;
    launched = fused_sigmoid::gpu::launch(kernel, tensors);
  }
  return PyBool_FromLong(launched);
  END_HANDLE_TH_ERRORS
}

// gpu_call(kernel, *tensors): (layout, wide, numbers), or None.
PyObject* gpu_call(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  fused_sigmoid::gpu::Kernel kernel;
  c10::SmallVector<at::Tensor, 3> tensors;
  if (!parse_gpu_call("gpu_call", args, count, kernel, tensors)) return nullptr;
  const auto call = fused_sigmoid::gpu::call_of(kernel, tensors);
  if (!call.has_value()) Py_RETURN_NONE;
  return pybind11::make_tuple(static_cast<int>(call->layout), call->wide,
                              pybind11::tuple(pybind11::cast(std::vector<int64_t>(
                                  call->numbers.begin(), call->numbers.end()))))
      .release()
      .ptr();
  END_HANDLE_TH_ERRORS
}

PyObject* forget_gpu_kernels(PyObject*, PyObject*) {
  fused_sigmoid::gpu::forget();
  Py_RETURN_NONE;
}

PyObject* gpu_launches(PyObject*, PyObject*) {
  return PyLong_FromUnsignedLongLong(fused_sigmoid::gpu::launches());
}

PyObject* can_read_backward_passes(PyObject*, PyObject*) {
  return PyBool_FromLong(fused_sigmoid::consumers::can_read());
}

PyObject* set_reading_backward_passes(PyObject*, PyObject* object) {
  const int is_on = PyObject_IsTrue(object);
  if (is_on < 0) return nullptr;
  fused_sigmoid::consumers::set_reading(is_on != 0);
  Py_RETURN_NONE;
}

// The functions that the extension has, in the order of their kernels' numbers.
PyObject* functions(PyObject*, PyObject*) { return Py_BuildValue("(s)", "sigmoid"); }

PyObject* instruction_set(PyObject*, PyObject*) {
  return PyUnicode_FromString(fused_sigmoid::selected_kernels().instruction_set);
}

PyObject* instruction_sets(PyObject*, PyObject*) {
  const auto names = fused_sigmoid::instruction_sets();
  PyObject* tuple = PyTuple_New(static_cast<Py_ssize_t>(names.size()));
  if (tuple == nullptr) return nullptr;
  for (size_t i = 0; i < names.size(); ++i) {
    PyTuple_SET_ITEM(tuple, static_cast<Py_ssize_t>(i), PyUnicode_FromString(names[i].c_str()));
  }
  return tuple;
}

PyObject* select_instruction_set(PyObject*, PyObject* object) {
  const char* name = PyUnicode_AsUTF8(object);
  if (name == nullptr) return nullptr;
  try {
    fused_sigmoid::select_instruction_set(name);
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

PyCFunction fast(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"sigmoid", fast(sigmoid<kernel_tensor>), METH_FASTCALL, nullptr},
    {"sigmoid_", sigmoid_<kernel_tensor>, METH_O, nullptr},
    {"sigmoid_out", fast(sigmoid_out), METH_FASTCALL, nullptr},
    {"sigmoid_with_derivative", sigmoid_with_derivative<kernel_tensor>, METH_O, nullptr},
    {"followed_sigmoid", fast(sigmoid<followed_tensor>), METH_FASTCALL, nullptr},
    {"followed_sigmoid_", sigmoid_<followed_tensor>, METH_O, nullptr},
    {"followed_sigmoid_with_derivative", sigmoid_with_derivative<followed_tensor>, METH_O, nullptr},
    {"check_saved", check_saved, METH_O, nullptr},
    {"add_gpu_kernel", add_gpu_kernel, METH_VARARGS, nullptr},
    {"launch_gpu_kernel", fast(launch_gpu_kernel), METH_FASTCALL, nullptr},
    {"empty_gpu_result", fast(empty_gpu_result), METH_FASTCALL, nullptr},
    {"gpu_call", fast(gpu_call), METH_FASTCALL, nullptr},
    {"forget_gpu_kernels", forget_gpu_kernels, METH_NOARGS, nullptr},
    {"gpu_launches", gpu_launches, METH_NOARGS, nullptr},
    {"can_read_backward_passes", can_read_backward_passes, METH_NOARGS, nullptr},
    {"set_reading_backward_passes", set_reading_backward_passes, METH_O, nullptr},
    {"functions", functions, METH_NOARGS, nullptr},
    {"instruction_set", instruction_set, METH_NOARGS, nullptr},
    {"instruction_sets", instruction_sets, METH_NOARGS, nullptr},
    {"select_instruction_set", select_instruction_set, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT,
                      "fused_sigmoid extension",
                      nullptr,
                      -1,
                      methods,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr};

// Joins after expanding the macro: the module's name holds the torch version it is built for.
#define FUSED_SIGMOID_JOIN_(a, b) a##b
#define FUSED_SIGMOID_JOIN(a, b) FUSED_SIGMOID_JOIN_(a, b)

}  // namespace

PyMODINIT_FUNC FUSED_SIGMOID_JOIN(PyInit_, TORCH_EXTENSION_NAME)() {
  try {
    fused_sigmoid::selected_kernels();
    fused_sigmoid::check_fresh_memory_settings();
    fused_sigmoid::gpu::is_left_to_triton();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
  return PyModule_Create(&module);
}
