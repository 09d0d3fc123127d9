// The operations as C++ functions on tensors, in three layers: `cpu` runs the kernels, `dispatched`
// finds the kernels of a device, `autograd` differentiates.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>

namespace fused_sigmoid {

// What the autograd Function keeps for the backward pass; see `sigmoid` in functional.py.
// The last is of a call through the transforms of torch.func, by a level that records a gradient,
// to those beneath it.
enum class Saved { automatic, derivative, input, output, above };

// As users write them, but for the last.
constexpr std::array<const char*, 5> saved_names = {"auto", "derivative", "input", "output",
                                                    "above"};

// As users write it: "auto" and so on; ValueError for another name. ops.cpp
Saved saved_named(std::string_view name);

// Of two kernels for the product before nn.BCELoss that for a sigmoid and a loss of two dtypes, the
// second for a half and a loss in float32; none where both tensors have to be converted first.
template <class Kernel>
std::optional<Kernel> kernel_before_bce(at::ScalarType dtype, at::ScalarType loss_dtype,
                                        Kernel same, Kernel in_float32) {
  if (dtype == loss_dtype) return same;
  const bool is_half = dtype == at::kHalf || dtype == at::kBFloat16;
  return is_half && loss_dtype == at::kFloat ? std::optional(in_float32) : std::nullopt;
}

// Without autograd, on CPU tensors of any strides and real dtype. cpu.cpp
namespace cpu {
at::Tensor sigmoid(const at::Tensor& input);
void sigmoid_out(const at::Tensor& input, at::Tensor out);
std::tuple<at::Tensor, at::Tensor> sigmoid_with_derivative(const at::Tensor& input);
void sigmoid_with_derivative_out(const at::Tensor& input, at::Tensor value, at::Tensor derivative);
at::Tensor sigmoid_backward(const at::Tensor& grad, const at::Tensor& input);
at::Tensor sigmoid_backward_from_output(const at::Tensor& grad, const at::Tensor& output);
at::Tensor sigmoid_backward_from_derivative(const at::Tensor& grad, const at::Tensor& derivative);
// Into the derivative's memory, for tensors of one shape and dtype.
void sigmoid_backward_from_derivative_(const at::Tensor& grad, const at::Tensor& derivative);
// For an output that nn.BCELoss was computed from in `loss_dtype`; the latter into the gradient's
// memory, for tensors of one shape and dtype.
at::Tensor sigmoid_backward_before_bce(const at::Tensor& grad, const at::Tensor& output,
                                       at::ScalarType loss_dtype);
void sigmoid_backward_before_bce_(const at::Tensor& grad, const at::Tensor& output,
                                  at::ScalarType loss_dtype);

}  // namespace cpu

// Without autograd, on any device that has kernels. ops.cpp
namespace dispatched {
// What is saved matters where the call goes to an autograd beneath, of another transform, and to
// the GPU kernel, which asks the cache to hold an input that is kept.
at::Tensor sigmoid(const at::Tensor& input, Saved saved = Saved::automatic);
void sigmoid_out(const at::Tensor& input, at::Tensor out);
std::tuple<at::Tensor, at::Tensor> sigmoid_with_derivative(const at::Tensor& input);
void sigmoid_with_derivative_out(const at::Tensor& input, at::Tensor value, at::Tensor derivative);
at::Tensor sigmoid_backward(const at::Tensor& grad, const at::Tensor& input);
at::Tensor sigmoid_backward_from_output(const at::Tensor& grad, const at::Tensor& output);
at::Tensor sigmoid_backward_from_derivative(const at::Tensor& grad, const at::Tensor& derivative);
void sigmoid_backward_from_derivative_(const at::Tensor& grad, const at::Tensor& derivative);
at::Tensor sigmoid_backward_at_exit(const at::Tensor& grad, const std::optional<at::Tensor>& input,
                                    const at::Tensor& output, int64_t exit);
at::Tensor sigmoid_backward_before_bce(const at::Tensor& grad, const at::Tensor& output,
                                       at::ScalarType loss_dtype);
void sigmoid_backward_before_bce_(const at::Tensor& grad, const at::Tensor& output,
                                  at::ScalarType loss_dtype);
}  // namespace dispatched

// With autograd, of every order; forward-mode AD follows what has no `out`. autograd.cpp
namespace autograd {
// Whether autograd, in either mode, follows what is computed from the input.
bool is_followed(const at::Tensor& input);
at::Tensor sigmoid(const at::Tensor& input, Saved saved);
at::Tensor& sigmoid_(at::Tensor& input);
void sigmoid_out(const at::Tensor& input, at::Tensor out);
std::tuple<at::Tensor, at::Tensor> sigmoid_with_derivative(const at::Tensor& input);
void sigmoid_with_derivative_out(const at::Tensor& input, at::Tensor value, at::Tensor derivative);
at::Tensor sigmoid_backward(const at::Tensor& grad, const at::Tensor& input);
at::Tensor sigmoid_backward_from_output(const at::Tensor& grad, const at::Tensor& output);
at::Tensor sigmoid_backward_from_derivative(const at::Tensor& grad, const at::Tensor& derivative);
at::Tensor sigmoid_backward_before_bce(const at::Tensor& grad, const at::Tensor& output,
                                       at::ScalarType loss_dtype);
// In a compiled region that the output left by an exit (see consumers.h): the factor is chosen by
// what the region's output went to. Without the input, where the output alone is kept.
at::Tensor sigmoid_backward_at_exit(const at::Tensor& grad, const std::optional<at::Tensor>& input,
                                    const at::Tensor& output, int64_t exit);
}  // namespace autograd

// Whether kernels may be called on the tensor directly: strided, on a CPU or CUDA device, with
// nothing between the caller and the device that has to see the call (dispatch mode, functorch
// transform, tensor subclass, lazy conjugation or negation). ops.cpp
bool is_plain(const at::Tensor& tensor);

// The same of the tensor alone, whatever is active around the call.
bool is_plain_kind(const at::Tensor& tensor);

// Whether the kernels have an instance for the dtype: float64, float32, float16, bfloat16. ops.cpp
bool has_kernel_dtype(const at::Tensor& tensor);

// Whether forward-mode AD follows the tensor; kernels would lose its tangent. ops.cpp
bool has_forward_gradient(const at::Tensor& tensor);

}  // namespace fused_sigmoid
