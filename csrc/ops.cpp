// The schemas of the operations, their registration with torch's dispatcher, and calls through it.
// The CUDA kernels and the fake kernels are registered from Python, in ops.py.
#include "ops.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

namespace fused_sigmoid {

bool is_plain(const at::Tensor& tensor) {
  using c10::DispatchKey;
  using c10::DispatchKeySet;
  // Autocast leaves the sigmoid alone.
  static const uint64_t expected =
      (DispatchKeySet({DispatchKey::CPU, DispatchKey::CUDA, DispatchKey::BackendSelect,
                       DispatchKey::ADInplaceOrView, DispatchKey::AutogradCPU,
                       DispatchKey::AutogradCUDA}) |
       c10::autocast_dispatch_keyset)
          .raw_repr();
  const auto local = c10::impl::tls_local_dispatch_key_set();
  const DispatchKeySet keys = (tensor.key_set() | local.included_) - local.excluded_;
  return (keys.raw_repr() & ~expected) == 0;
}

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
template <class Kernel, class... Tensors>
auto call_direct(const char* name, Kernel kernel, const Tensors&... tensors) {
  RECORD_FUNCTION(name, std::vector<c10::IValue>({tensors...}));
  return kernel(tensors...);
}

using Unary = at::Tensor(const at::Tensor&);
using UnaryOut = void(const at::Tensor&, at::Tensor);
using Pair = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&);
using PairOut = void(const at::Tensor&, at::Tensor, at::Tensor);
using Binary = at::Tensor(const at::Tensor&, const at::Tensor&);

}  // namespace

namespace dispatched {

at::Tensor sigmoid(const at::Tensor& input) {
  if (is_direct(input)) return call_direct("fused_sigmoid::sigmoid", cpu::sigmoid, input);
  static const auto op = find<Unary>("fused_sigmoid::sigmoid");
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(input);
}

void sigmoid_out(const at::Tensor& input, at::Tensor out) {
  const bool direct = is_direct(input) && is_direct(out);
  // Also of the direct call, which may resize: that is neither recorded nor counted as a write.
  at::AutoDispatchBelowADInplaceOrView guard;
  if (direct) return call_direct("fused_sigmoid::sigmoid_out", cpu::sigmoid_out, input, out);
  static const auto op = find<UnaryOut>("fused_sigmoid::sigmoid_out");
  op.call(input, std::move(out));
}

std::tuple<at::Tensor, at::Tensor> sigmoid_with_derivative(const at::Tensor& input) {
  if (is_direct(input)) {
    return call_direct("fused_sigmoid::sigmoid_with_derivative", cpu::sigmoid_with_derivative,
                       input);
  }
  static const auto op = find<Pair>("fused_sigmoid::sigmoid_with_derivative");
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(input);
}

void sigmoid_with_derivative_out(const at::Tensor& input, at::Tensor value, at::Tensor derivative) {
  const bool direct = is_direct(input) && is_direct(value) && is_direct(derivative);
  at::AutoDispatchBelowADInplaceOrView guard;
  if (direct) {
    return call_direct("fused_sigmoid::sigmoid_with_derivative_out",
                       cpu::sigmoid_with_derivative_out, input, value, derivative);
  }
  static const auto op = find<PairOut>("fused_sigmoid::sigmoid_with_derivative_out");
  op.call(input, std::move(value), std::move(derivative));
}

at::Tensor sigmoid_backward(const at::Tensor& grad, const at::Tensor& input) {
  if (is_direct(grad) && is_direct(input)) {
    return call_direct("fused_sigmoid::sigmoid_backward", cpu::sigmoid_backward, grad, input);
  }
  static const auto op = find<Binary>("fused_sigmoid::sigmoid_backward");
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(grad, input);
}

at::Tensor sigmoid_backward_from_output(const at::Tensor& grad, const at::Tensor& output) {
  if (is_direct(grad) && is_direct(output)) {
    return call_direct("fused_sigmoid::sigmoid_backward_from_output",
                       cpu::sigmoid_backward_from_output, grad, output);
  }
  static const auto op = find<Binary>("fused_sigmoid::sigmoid_backward_from_output");
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(grad, output);
}

at::Tensor sigmoid_backward_from_derivative(const at::Tensor& grad, const at::Tensor& derivative) {
  if (is_direct(grad) && is_direct(derivative)) {
    return call_direct("fused_sigmoid::sigmoid_backward_from_derivative",
                       cpu::sigmoid_backward_from_derivative, grad, derivative);
  }
  static const auto op = find<Binary>("fused_sigmoid::sigmoid_backward_from_derivative");
  at::AutoDispatchBelowADInplaceOrView guard;
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

}  // namespace dispatched

namespace {
at::Tensor sigmoid_with_automatic_saved(const at::Tensor& input) {
  return autograd::sigmoid(input, Saved::automatic);
}
}  // namespace

}  // namespace fused_sigmoid

TORCH_LIBRARY(fused_sigmoid, library) {
  library.set_python_module("fused_sigmoid.ops");
  library.def("sigmoid(Tensor input) -> Tensor");
  library.def("sigmoid_out(Tensor input, Tensor(a!) out) -> ()");
  library.def("sigmoid_with_derivative(Tensor input) -> (Tensor value, Tensor derivative)");
  library.def(
      "sigmoid_with_derivative_out(Tensor input, Tensor(a!) value, Tensor(b!) derivative) -> ()");
  library.def("sigmoid_backward(Tensor grad, Tensor input) -> Tensor");
  library.def("sigmoid_backward_from_output(Tensor grad, Tensor output) -> Tensor");
  library.def("sigmoid_backward_from_derivative(Tensor grad, Tensor derivative) -> Tensor");
}

TORCH_LIBRARY_IMPL(fused_sigmoid, CPU, library) {
  namespace cpu = fused_sigmoid::cpu;
  library.impl("sigmoid", cpu::sigmoid);
  library.impl("sigmoid_out", cpu::sigmoid_out);
  library.impl("sigmoid_with_derivative", cpu::sigmoid_with_derivative);
  library.impl("sigmoid_with_derivative_out", cpu::sigmoid_with_derivative_out);
  library.impl("sigmoid_backward", cpu::sigmoid_backward);
  library.impl("sigmoid_backward_from_output", cpu::sigmoid_backward_from_output);
  library.impl("sigmoid_backward_from_derivative", cpu::sigmoid_backward_from_derivative);
}

TORCH_LIBRARY_IMPL(fused_sigmoid, Autograd, library) {
  namespace autograd = fused_sigmoid::autograd;
  library.impl("sigmoid", fused_sigmoid::sigmoid_with_automatic_saved);
  library.impl("sigmoid_out", autograd::sigmoid_out);
  library.impl("sigmoid_with_derivative", autograd::sigmoid_with_derivative);
  library.impl("sigmoid_with_derivative_out", autograd::sigmoid_with_derivative_out);
  library.impl("sigmoid_backward", autograd::sigmoid_backward);
  library.impl("sigmoid_backward_from_output", autograd::sigmoid_backward_from_output);
  library.impl("sigmoid_backward_from_derivative", autograd::sigmoid_backward_from_derivative);
}
