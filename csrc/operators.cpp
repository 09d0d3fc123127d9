// The operators' schemas, their registration with torch's dispatcher, and calls of them. The CUDA
// kernels and the fake kernels are registered from Python, in fused_sigmoid/operators.py.
#include "operators.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/result_type.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/library.h>

#include <algorithm>

#include "elementwise.h"
#include "gpu_launch.h"

namespace fused_sigmoid {
namespace {

using c10::DispatchKey;

bool has_no_observer(c10::DispatchKeySet keys) {
  // Autocast leaves elementwise functions alone.
  static const uint64_t expected =
      (c10::DispatchKeySet({DispatchKey::CPU, DispatchKey::CUDA, DispatchKey::BackendSelect,
                            DispatchKey::ADInplaceOrView, DispatchKey::AutogradCPU,
                            DispatchKey::AutogradCUDA}) |
       c10::autocast_dispatch_keyset)
          .raw_repr();
  return (keys.raw_repr() & ~expected) == 0;
}

// An operator's name is its function's, followed by the suffix of its work.
constexpr std::array<const char*, work_count> suffixes = {"",
                                                          "_with_derivative",
                                                          "_backward",
                                                          "_backward_from_output",
                                                          "_backward_from_derivative",
                                                          "_backward_before_bce",
                                                          "_backward_before_bce",
                                                          ""};

// The operator's names: bare, with the library's, and with the library's for given outputs.
struct Operator {
  std::string name, full_name, out_name;
};

const Operator& operator_of(KernelNumber kernel) {
  static const auto all = [] {
    std::array<Operator, kernel_count> made;
    for_each_function([&](auto function) {
      using F = decltype(function);
      for (size_t work = 0; work < work_count; ++work) {
        const std::string name = std::string(F::name) + suffixes[work];
        const std::string full_name = "fused_sigmoid::" + name;
        // A gradient's operator has no form that takes an output.
        const bool is_forward = inputs_of(static_cast<Work>(work)) == 1;
        made[KernelNumber{number_of_function<F>, static_cast<Work>(work)}.index()] = {
            name, full_name, is_forward ? full_name + "_out" : full_name};
      }
    });
    return made;
  }();
  return all[kernel.index()];
}

// The operator's arguments. A gradient's operator has no form that takes an output.
std::vector<c10::IValue> arguments_of(at::ArrayRef<at::Tensor*> outputs, Tensors inputs,
                                      const Argument& argument) {
  std::vector<c10::IValue> values;
  for (const at::Tensor* input : inputs) values.emplace_back(*input);
  for (const at::Tensor* output : outputs) {
    if (output->defined() && inputs.size() == 1) values.emplace_back(*output);
  }
  if (const auto* dtype = std::get_if<at::ScalarType>(&argument)) values.emplace_back(*dtype);
  if (const auto* saved = std::get_if<Saved>(&argument)) {
    values.emplace_back(saved_names[static_cast<size_t>(*saved)]);
  }
  return values;
}

void call_boxed(const std::string& name, std::vector<c10::IValue>& stack) {
  c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "").callBoxed(&stack);
}

// The work before nn.BCELoss for a gradient's product and a loss of this dtype; none where both
// operands have to be converted first.
std::optional<Work> work_before_bce(const at::Tensor& grad, const at::Tensor& output,
                                    at::ScalarType loss_dtype) {
  const bool is_one = grad.scalar_type() == output.scalar_type();
  const at::ScalarType dtype = is_one ? grad.scalar_type() : at::result_type(grad, output);
  if (dtype == loss_dtype) return Work::backward_before_bce;
  const bool is_half = dtype == at::kHalf || dtype == at::kBFloat16;
  return is_half && loss_dtype == at::kFloat ? std::optional(Work::backward_before_float32_bce)
                                             : std::nullopt;
}

// Runs the kernel if the extension can do so itself; else returns false, having done nothing.
bool run_here(KernelNumber kernel, at::ArrayRef<at::Tensor*> outputs, Tensors inputs,
              const Argument& argument) {
  bool are_on_cpu = true;
  for (const at::Tensor* input : inputs) {
    if (!is_unobserved(*input)) return false;
    are_on_cpu = are_on_cpu && input->is_cpu();
  }
  const bool is_out = outputs[0]->defined();
  for (const at::Tensor* output : outputs) {
    if (is_out && !is_unobserved(*output)) return false;
    are_on_cpu = are_on_cpu && (!is_out || output->is_cpu());
  }
  if (!are_on_cpu && !gpu::fits(outputs, inputs)) return false;
  const Operator& op = operator_of(kernel);
  RECORD_FUNCTION((is_out ? op.out_name : op.full_name).c_str(),
                  arguments_of(outputs, inputs, argument));
  if (!are_on_cpu) return gpu::run(kernel, outputs, inputs);
  run_on_cpu(kernel, op.name, outputs, inputs);
  return true;
}

}  // namespace

bool is_unobserved(const at::Tensor& tensor) {
  const auto local = c10::impl::tls_local_dispatch_key_set();
  return has_no_observer((tensor.key_set() | local.included_) - local.excluded_);
}

bool is_observed_by_mode_at_most(const at::Tensor& tensor) {
  using c10::impl::TorchDispatchModeTLS, c10::impl::TorchDispatchModeKey;
  const auto local = c10::impl::tls_local_dispatch_key_set();
  const c10::DispatchKeySet of_modes({DispatchKey::Python, DispatchKey::PythonTLSSnapshot});
  return is_ordinary(tensor) &&
         has_no_observer((tensor.key_set() | local.included_) - local.excluded_ - of_modes) &&
         !TorchDispatchModeTLS::get_mode(TorchDispatchModeKey::PROXY).has_value();
}

bool is_ordinary(const at::Tensor& tensor) { return has_no_observer(tensor.key_set()); }

bool has_tangent(const at::Tensor& tensor) { return tensor._fw_grad(/*level=*/0).defined(); }

Saved saved_named(std::string_view name) {
  const auto found = std::find(saved_names.begin(), saved_names.end(), name);
  TORCH_CHECK_VALUE(found != saved_names.end(), "argument 'saved' is '", name,
                    "'; accepted are 'auto', 'derivative', 'input', 'output'");
  return static_cast<Saved>(found - saved_names.begin());
}

void call_operator(KernelNumber kernel, at::ArrayRef<at::Tensor*> outputs, Tensors inputs,
                   Argument argument) {
  const auto* loss_dtype = std::get_if<at::ScalarType>(&argument);
  std::optional<Work> work = kernel.work;
  if (loss_dtype) work = work_before_bce(*inputs[0], *inputs[1], *loss_dtype);
  const auto run = [&] {
    return work && run_here({kernel.function, *work}, outputs, inputs, argument);
  };
  const bool is_given = outputs[0]->defined(), is_out = is_given && inputs.size() == 1;
  if (!is_given && run()) return;
  // A given output may be resized, which is neither to be recorded nor to be counted as a write.
  const at::AutoDispatchBelowADInplaceOrView guard;
  if (is_given && run()) return;

  std::vector<c10::IValue> stack = arguments_of(outputs, inputs, argument);
  const Operator& op = operator_of(kernel);
  call_boxed(is_out ? op.out_name : op.full_name, stack);
  for (size_t i = 0; i < stack.size(); ++i) {
    if (is_given) outputs[i]->copy_(stack[i].toTensor());
    if (!is_given) *outputs[i] = std::move(stack[i]).toTensor();
  }
}

at::Tensor call_from_above(KernelNumber kernel, Tensors inputs, Argument argument) {
  std::vector<c10::IValue> stack = arguments_of({}, inputs, argument);
  call_boxed(operator_of(kernel).full_name, stack);
  return std::move(stack[0]).toTensor();
}

at::Tensor call_backward_at_exit(size_t function, const at::Tensor& grad,
                                 const OptionalTensor& input, const at::Tensor& output,
                                 int64_t exit) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  std::vector<c10::IValue> stack = {grad, input, output, exit};
  call_boxed(operator_of({function, Work::backward}).full_name + "_at_exit", stack);
  return std::move(stack[0]).toTensor();
}

namespace {

// What the dispatcher calls for tensors on a CPU.
template <class F, Work work, class... Inputs>
auto on_cpu(const Inputs&... inputs) {
  constexpr KernelNumber kernel{number_of_function<F>, work};
  const std::string& name = operator_of(kernel).name;
  at::Tensor result;
  if constexpr (outputs_of(work) == 2) {
    at::Tensor derivative;
    run_on_cpu(kernel, name, {&result, &derivative}, {&inputs...});
    return Pair(result, derivative);
  } else {
    run_on_cpu(kernel, name, {&result}, {&inputs...});
    return result;
  }
}

template <class F>
at::Tensor before_bce_on_cpu(const at::Tensor& grad, const at::Tensor& output,
                             at::ScalarType loss_dtype) {
  const auto work = work_before_bce(grad, output, loss_dtype);
  if (work == Work::backward_before_bce) return on_cpu<F, Work::backward_before_bce>(grad, output);
  if (work.has_value()) return on_cpu<F, Work::backward_before_float32_bce>(grad, output);
  const at::Tensor result = empty_output({&grad, &output});
  return result.copy_(before_bce_on_cpu<F>(grad.to(loss_dtype), output.to(loss_dtype), loss_dtype));
}

// Registers the schemas of a function's operators or, for a key of the dispatcher, implementations.
struct Registration {
  torch::Library& library;
  std::string function;

  void define(const char* schema, const std::vector<at::Tag>& tags = {}) {
    library.def(torch::schema((function + schema).c_str()), tags);
  }
  template <class Implementation>
  void implement(const char* suffix, Implementation&& implementation) {
    library.impl((function + suffix).c_str(), std::forward<Implementation>(implementation));
  }
};

template <class F>
void define(torch::Library& library) {
  Registration registration{library, F::name};
  const auto def = [&](auto... schema) { registration.define(schema...); };
  def("(Tensor input, *, str saved=\"auto\") -> Tensor");
  def("_out(Tensor input, Tensor(a!) out) -> ()");
  def("_with_derivative(Tensor input) -> (Tensor value, Tensor derivative)");
  def("_with_derivative_out(Tensor input, Tensor(a!) value, Tensor(b!) derivative) -> ()");
  def("_backward(Tensor grad, Tensor input) -> Tensor");
  def("_backward_from_output(Tensor grad, Tensor output) -> Tensor");
  def("_backward_from_derivative(Tensor grad, Tensor derivative) -> Tensor");
  if constexpr (F::is_probability) {
    def("_backward_before_bce(Tensor grad, Tensor output, ScalarType loss_dtype) -> Tensor");
    // What it computes depends on the backward pass that it runs in, which a replayed CUDA graph
    // does not know.
    def("_backward_at_exit(Tensor grad, Tensor? input, Tensor output, int exit) -> Tensor",
        std::vector<at::Tag>{at::Tag::cudagraph_unsafe});
  }
}

template <class F>
void implement_on_cpu(torch::Library& library) {
  using at::Tensor;
  Registration registration{library, F::name};
  const auto impl = [&](const char* suffix, auto function) {
    registration.implement(suffix, function);
  };
  impl("", [](const Tensor& x, std::string_view) { return on_cpu<F, Work::value>(x); });
  impl("_out", [](const Tensor& x, Tensor out) {
    constexpr KernelNumber kernel{number_of_function<F>, Work::value};
    run_on_cpu(kernel, operator_of(kernel).name, {&out}, {&x});
  });
  impl("_with_derivative",
       [](const Tensor& x) { return on_cpu<F, Work::value_and_derivative>(x); });
  impl("_with_derivative_out", [](const Tensor& x, Tensor value, Tensor derivative) {
    constexpr KernelNumber kernel{number_of_function<F>, Work::value_and_derivative};
    run_on_cpu(kernel, operator_of(kernel).name, {&value, &derivative}, {&x});
  });
  impl("_backward",
       [](const Tensor& g, const Tensor& x) { return on_cpu<F, Work::backward>(g, x); });
  impl("_backward_from_output", [](const Tensor& g, const Tensor& y) {
    return on_cpu<F, Work::backward_from_output>(g, y);
  });
  impl("_backward_from_derivative", [](const Tensor& g, const Tensor& d) {
    return on_cpu<F, Work::backward_from_derivative>(g, d);
  });
  if constexpr (F::is_probability) impl("_backward_before_bce", before_bce_on_cpu<F>);
}

template <class F>
void implement_with_autograd(torch::Library& library) {
  Registration registration{library, F::name};
  const auto impl = [&](const char* suffix, auto function) {
    registration.implement(suffix, function);
  };
  impl("", [](const at::Tensor& input, std::string_view saved) {
    return Autograd<F>::value(input, saved_named(saved));
  });
  impl("_out", Autograd<F>::value_out);
  impl("_with_derivative", Autograd<F>::value_and_derivative);
  impl("_with_derivative_out", Autograd<F>::value_and_derivative_out);
  impl("_backward", Autograd<F>::backward);
  impl("_backward_from_output", Autograd<F>::backward_from_output);
  impl("_backward_from_derivative", Autograd<F>::backward_from_derivative);
  if constexpr (F::is_probability) impl("_backward_before_bce", Autograd<F>::backward_before_bce);
}

template <class F>
void implement_at_exit(torch::Library& library) {
  if constexpr (F::is_probability) {
    Registration{library, F::name}.implement("_backward_at_exit", Autograd<F>::backward_at_exit);
  }
}

}  // namespace

}  // namespace fused_sigmoid

TORCH_LIBRARY(fused_sigmoid, library) {
  library.set_python_module("fused_sigmoid.operators");
  fused_sigmoid::for_each_function([&](auto f) { fused_sigmoid::define<decltype(f)>(library); });
}
TORCH_LIBRARY_IMPL(fused_sigmoid, CPU, library) {
  fused_sigmoid::for_each_function(
      [&](auto f) { fused_sigmoid::implement_on_cpu<decltype(f)>(library); });
}
TORCH_LIBRARY_IMPL(fused_sigmoid, Autograd, library) {
  fused_sigmoid::for_each_function(
      [&](auto f) { fused_sigmoid::implement_with_autograd<decltype(f)>(library); });
}
TORCH_LIBRARY_IMPL(fused_sigmoid, CompositeExplicitAutograd, library) {
  fused_sigmoid::for_each_function(
      [&](auto f) { fused_sigmoid::implement_at_exit<decltype(f)>(library); });
}
