// The schemas of the operations, their registration with torch's dispatcher, and calls through it.
// The CUDA kernels and the fake kernels are registered from Python, in ops.py.
#include "ops.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>

#include "gpu.h"

namespace fused_sigmoid {

namespace {

using c10::DispatchKey;
using c10::DispatchKeySet;

bool has_plain_keys(DispatchKeySet keys) {
  // Autocast leaves the sigmoid alone.
  static const uint64_t expected =
      (DispatchKeySet({DispatchKey::CPU, DispatchKey::CUDA, DispatchKey::BackendSelect,
                       DispatchKey::ADInplaceOrView, DispatchKey::AutogradCPU,
                       DispatchKey::AutogradCUDA}) |
       c10::autocast_dispatch_keyset)
          .raw_repr();
  return (keys.raw_repr() & ~expected) == 0;
}

}  // namespace

bool is_plain(const at::Tensor& tensor) {
  const auto local = c10::impl::tls_local_dispatch_key_set();
  return has_plain_keys((tensor.key_set() | local.included_) - local.excluded_);
}

bool is_plain_kind(const at::Tensor& tensor) { return has_plain_keys(tensor.key_set()); }

bool has_kernel_dtype(const at::Tensor& tensor) {
  const at::ScalarType dtype = tensor.scalar_type();
  return dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf ||
         dtype == at::kDouble;
}

bool has_forward_gradient(const at::Tensor& tensor) {
  return tensor._fw_grad(/*level=*/0).defined();
}

namespace {

template <class Signature>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// On the CPU a plain tensor needs no dispatch, which costs about 0.1 us a call.
bool is_direct(const at::Tensor& tensor) { return tensor.is_cpu() && is_plain(tensor); }

// A kernel without dispatch; a profiler sees it as it sees an operator.
template <class Kernel, class... Arguments>
auto call_direct(const char* name, Kernel kernel, const Arguments&... arguments) {
  RECORD_FUNCTION(name, std::vector<c10::IValue>({arguments...}));
  return kernel(arguments...);
}

// A GPU kernel that was compiled before, likewise. None of results where it was not.
auto run_on_gpu(const char* name, gpu::Kernel kernel, at::ArrayRef<at::Tensor> operands) {
  RECORD_FUNCTION(name, std::vector<c10::IValue>(operands.begin(), operands.end()));
  return gpu::run(kernel, operands);
}

bool write_on_gpu(const char* name, gpu::Kernel kernel, at::ArrayRef<at::Tensor> tensors) {
  RECORD_FUNCTION(name, std::vector<c10::IValue>(tensors.begin(), tensors.end()));
  return gpu::launch(kernel, tensors);
}

// Whether two tensors have their elements in one memory, be it of two storages, as of DLPack's.
bool share_memory(const at::Tensor& a, const at::Tensor& b) {
  return a.storage().data() == b.storage().data();
}

// Whether a kernel may write to `out` while it reads `input`, element by element.
bool may_write(const at::Tensor& input, const at::Tensor& out) {
  return !share_memory(input, out) ||
         (input.const_data_ptr() == out.const_data_ptr() && input.strides() == out.strides());
}

// A backward kernel over a gradient and what was kept.
at::Tensor backward_on_gpu(const char* name, gpu::Kernel kernel, const at::Tensor& grad,
                           const at::Tensor& kept) {
  if (!gpu::fits({grad, kept})) return {};
  auto results = run_on_gpu(name, kernel, {grad, kept});
  return results.empty() ? at::Tensor() : results[0];
}

using Unary = at::Tensor(const at::Tensor&, std::string_view);
using UnaryOut = void(const at::Tensor&, at::Tensor);
using Pair = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&);
using PairOut = void(const at::Tensor&, at::Tensor, at::Tensor);
using Binary = at::Tensor(const at::Tensor&, const at::Tensor&);
using AtExit = at::Tensor(const at::Tensor&, const std::optional<at::Tensor>&, const at::Tensor&,
                          int64_t);
using BinaryWithDtype = at::Tensor(const at::Tensor&, const at::Tensor&, at::ScalarType);

}  // namespace

namespace dispatched {

at::Tensor sigmoid(const at::Tensor& input, Saved saved) {
  if (is_direct(input)) return call_direct("fused_sigmoid::sigmoid", cpu::sigmoid, input);
  at::AutoDispatchBelowADInplaceOrView guard;
  if (gpu::fits(input)) {
    const auto kernel = saved == Saved::input ? gpu::Kernel::sigmoid_of_kept : gpu::Kernel::sigmoid;
    auto results = run_on_gpu("fused_sigmoid::sigmoid", kernel, {input});
    if (!results.empty()) return results[0];
  }
  static const auto op = find<Unary>("fused_sigmoid::sigmoid");
  return op.call(input, saved_names[static_cast<size_t>(saved)]);
}

void sigmoid_out(const at::Tensor& input, at::Tensor out) {
  const bool direct = is_direct(input) && is_direct(out);
  // Also of the direct call, which may resize: that is neither recorded nor counted as a write.
  at::AutoDispatchBelowADInplaceOrView guard;
  if (direct) return call_direct("fused_sigmoid::sigmoid_out", cpu::sigmoid_out, input, out);
  if (gpu::fits({input, out}) && may_write(input, out) &&
      write_on_gpu("fused_sigmoid::sigmoid_out", gpu::Kernel::sigmoid, {input, out})) {
    return;
  }
  static const auto op = find<UnaryOut>("fused_sigmoid::sigmoid_out");
  op.call(input, std::move(out));
}

std::tuple<at::Tensor, at::Tensor> sigmoid_with_derivative(const at::Tensor& input) {
  if (is_direct(input)) {
    return call_direct("fused_sigmoid::sigmoid_with_derivative", cpu::sigmoid_with_derivative,
                       input);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  if (gpu::fits(input)) {
    auto results = run_on_gpu("fused_sigmoid::sigmoid_with_derivative",
                              gpu::Kernel::sigmoid_with_derivative, {input});
    if (!results.empty()) return {results[0], results[1]};
  }
  static const auto op = find<Pair>("fused_sigmoid::sigmoid_with_derivative");
  return op.call(input);
}

void sigmoid_with_derivative_out(const at::Tensor& input, at::Tensor value, at::Tensor derivative) {
  const bool direct = is_direct(input) && is_direct(value) && is_direct(derivative);
  at::AutoDispatchBelowADInplaceOrView guard;
  if (direct) {
    return call_direct("fused_sigmoid::sigmoid_with_derivative_out",
                       cpu::sigmoid_with_derivative_out, input, value, derivative);
  }
  if (gpu::fits({input, value, derivative}) && may_write(input, value) &&
      may_write(input, derivative) && !share_memory(value, derivative) &&
      write_on_gpu("fused_sigmoid::sigmoid_with_derivative_out",
                   gpu::Kernel::sigmoid_with_derivative, {input, value, derivative})) {
    return;
  }
  static const auto op = find<PairOut>("fused_sigmoid::sigmoid_with_derivative_out");
  op.call(input, std::move(value), std::move(derivative));
}

at::Tensor sigmoid_backward(const at::Tensor& grad, const at::Tensor& input) {
  if (is_direct(grad) && is_direct(input)) {
    return call_direct("fused_sigmoid::sigmoid_backward", cpu::sigmoid_backward, grad, input);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  const at::Tensor result =
      backward_on_gpu("fused_sigmoid::sigmoid_backward", gpu::Kernel::backward, grad, input);
  if (result.defined()) return result;
  static const auto op = find<Binary>("fused_sigmoid::sigmoid_backward");
  return op.call(grad, input);
}

at::Tensor sigmoid_backward_from_output(const at::Tensor& grad, const at::Tensor& output) {
  if (is_direct(grad) && is_direct(output)) {
    return call_direct("fused_sigmoid::sigmoid_backward_from_output",
                       cpu::sigmoid_backward_from_output, grad, output);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  const at::Tensor result = backward_on_gpu("fused_sigmoid::sigmoid_backward_from_output",
                                            gpu::Kernel::backward_from_output, grad, output);
  if (result.defined()) return result;
  static const auto op = find<Binary>("fused_sigmoid::sigmoid_backward_from_output");
  return op.call(grad, output);
}

at::Tensor sigmoid_backward_from_derivative(const at::Tensor& grad, const at::Tensor& derivative) {
  if (is_direct(grad) && is_direct(derivative)) {
    return call_direct("fused_sigmoid::sigmoid_backward_from_derivative",
                       cpu::sigmoid_backward_from_derivative, grad, derivative);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  const at::Tensor result =
      backward_on_gpu("fused_sigmoid::sigmoid_backward_from_derivative",
                      gpu::Kernel::backward_from_derivative, grad, derivative);
  if (result.defined()) return result;
  static const auto op = find<Binary>("fused_sigmoid::sigmoid_backward_from_derivative");
  return op.call(grad, derivative);
}

void sigmoid_backward_from_derivative_(const at::Tensor& grad, const at::Tensor& derivative) {
  if (is_direct(grad) && is_direct(derivative)) {
    return call_direct("fused_sigmoid::sigmoid_backward_from_derivative",
                       cpu::sigmoid_backward_from_derivative_, grad, derivative);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  derivative.mul_(grad);
}

void sigmoid_backward_before_bce_(const at::Tensor& grad, const at::Tensor& output,
                                  at::ScalarType loss_dtype) {
  if (is_direct(grad) && is_direct(output)) {
    return call_direct("fused_sigmoid::sigmoid_backward_before_bce",
                       cpu::sigmoid_backward_before_bce_, grad, output, loss_dtype);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  grad.copy_(sigmoid_backward_before_bce(grad, output, loss_dtype));
}

at::Tensor sigmoid_backward_at_exit(const at::Tensor& grad, const std::optional<at::Tensor>& input,
                                    const at::Tensor& output, int64_t exit) {
  at::AutoDispatchBelowADInplaceOrView guard;
  static const auto op = find<AtExit>("fused_sigmoid::sigmoid_backward_at_exit");
  return op.call(grad, input, output, exit);
}

at::Tensor sigmoid_backward_before_bce(const at::Tensor& grad, const at::Tensor& output,
                                       at::ScalarType loss_dtype) {
  if (is_direct(grad) && is_direct(output)) {
    return call_direct("fused_sigmoid::sigmoid_backward_before_bce",
                       cpu::sigmoid_backward_before_bce, grad, output, loss_dtype);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  const auto kernel =
      kernel_before_bce(output.scalar_type(), loss_dtype, gpu::Kernel::backward_before_bce,
                        gpu::Kernel::backward_before_float32_bce);
  if (kernel.has_value()) {
    const at::Tensor result =
        backward_on_gpu("fused_sigmoid::sigmoid_backward_before_bce", *kernel, grad, output);
    if (result.defined()) return result;
  }
  static const auto op = find<BinaryWithDtype>("fused_sigmoid::sigmoid_backward_before_bce");
  return op.call(grad, output, loss_dtype);
}

}  // namespace dispatched

Saved saved_named(std::string_view name) {
  const auto found = std::find(saved_names.begin(), saved_names.end(), name);
  TORCH_CHECK_VALUE(found != saved_names.end(), "argument 'saved' is '", name,
                    "'; accepted are 'auto', 'derivative', 'input', 'output'");
  return static_cast<Saved>(found - saved_names.begin());
}

namespace {

at::Tensor run_sigmoid(const at::Tensor& input, std::string_view) { return cpu::sigmoid(input); }

at::Tensor record_sigmoid(const at::Tensor& input, std::string_view saved) {
  return autograd::sigmoid(input, saved_named(saved));
}

}  // namespace

}  // namespace fused_sigmoid

TORCH_LIBRARY(fused_sigmoid, library) {
  library.set_python_module("fused_sigmoid.ops");
  library.def("sigmoid(Tensor input, *, str saved=\"auto\") -> Tensor");
  library.def("sigmoid_out(Tensor input, Tensor(a!) out) -> ()");
  library.def("sigmoid_with_derivative(Tensor input) -> (Tensor value, Tensor derivative)");
  library.def(
      "sigmoid_with_derivative_out(Tensor input, Tensor(a!) value, Tensor(b!) derivative) -> ()");
  library.def("sigmoid_backward(Tensor grad, Tensor input) -> Tensor");
  library.def("sigmoid_backward_from_output(Tensor grad, Tensor output) -> Tensor");
  library.def("sigmoid_backward_from_derivative(Tensor grad, Tensor derivative) -> Tensor");
  // What it computes depends on the backward pass that it runs in, which a replayed CUDA graph does
  // not know.
  library.def(
      "sigmoid_backward_at_exit(Tensor grad, Tensor? input, Tensor output, int exit) -> Tensor",
      {at::Tag::cudagraph_unsafe});
  library.def(
      "sigmoid_backward_before_bce(Tensor grad, Tensor output, ScalarType loss_dtype) -> Tensor");
}

TORCH_LIBRARY_IMPL(fused_sigmoid, CPU, library) {
  namespace cpu = fused_sigmoid::cpu;
  library.impl("sigmoid", fused_sigmoid::run_sigmoid);
  library.impl("sigmoid_out", cpu::sigmoid_out);
  library.impl("sigmoid_with_derivative", cpu::sigmoid_with_derivative);
  library.impl("sigmoid_with_derivative_out", cpu::sigmoid_with_derivative_out);
  library.impl("sigmoid_backward", cpu::sigmoid_backward);
  library.impl("sigmoid_backward_from_output", cpu::sigmoid_backward_from_output);
  library.impl("sigmoid_backward_from_derivative", cpu::sigmoid_backward_from_derivative);
  library.impl("sigmoid_backward_before_bce", cpu::sigmoid_backward_before_bce);
}

TORCH_LIBRARY_IMPL(fused_sigmoid, CompositeExplicitAutograd, library) {
  library.impl("sigmoid_backward_at_exit", fused_sigmoid::autograd::sigmoid_backward_at_exit);
}

TORCH_LIBRARY_IMPL(fused_sigmoid, Autograd, library) {
  namespace autograd = fused_sigmoid::autograd;
  library.impl("sigmoid", fused_sigmoid::record_sigmoid);
  library.impl("sigmoid_out", autograd::sigmoid_out);
  library.impl("sigmoid_with_derivative", autograd::sigmoid_with_derivative);
  library.impl("sigmoid_with_derivative_out", autograd::sigmoid_with_derivative_out);
  library.impl("sigmoid_backward", autograd::sigmoid_backward);
  library.impl("sigmoid_backward_from_output", autograd::sigmoid_backward_from_output);
  library.impl("sigmoid_backward_from_derivative", autograd::sigmoid_backward_from_derivative);
  library.impl("sigmoid_backward_before_bce", autograd::sigmoid_backward_before_bce);
}
