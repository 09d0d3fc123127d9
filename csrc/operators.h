// The operators torch.ops.fused_sigmoid.*: each is a work of a function, under a name of both.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <variant>

#include "functions/functions.h"
#include "layout.h"

namespace fused_sigmoid {

using Pair = std::tuple<at::Tensor, at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;

// What the autograd node keeps for the backward pass; see `sigmoid` in functions/sigmoid.py. Users
// cannot write the last: a transform of torch.func that records a gradient passes it to the levels
// beneath.
enum class Saved { automatic, derivative, input, output, above };
constexpr std::array<const char*, 5> saved_names = {"auto", "derivative", "input", "output",
                                                    "above"};

// Throws ValueError for another name.
Saved saved_named(std::string_view name);

// Whether nothing between the caller and the device has to see what is done with the tensor: no
// dispatch mode, transform of torch.func, subclass, or lazy conjugation.
bool is_unobserved(const at::Tensor& tensor);

// The same, but for dispatch modes that trace nothing.
bool is_observed_by_mode_at_most(const at::Tensor& tensor);

// Whether the tensor itself has no such observer, whatever is active around the call.
bool is_ordinary(const at::Tensor& tensor);

// Whether forward-mode AD follows the tensor.
bool has_tangent(const at::Tensor& tensor);

// What an operator takes behind its tensors: what is saved, or a loss's dtype.
using Argument = std::variant<std::monostate, Saved, at::ScalarType>;

// Calls the operator of a work below autograd, on any device that has kernels. Undefined outputs
// are allocated. Where the extension can run the kernel itself, the dispatcher is not asked, which
// takes 0.1 us; a profiler sees the operator all the same.
void call_operator(KernelNumber kernel, at::ArrayRef<at::Tensor*> outputs, Tensors inputs,
                   Argument argument = {});

// Calls the operator of a gradient from above autograd, as torch's own nodes call theirs.
at::Tensor call_from_above(KernelNumber kernel, Tensors inputs, Argument argument = {});

// Calls the operator of Autograd<F>::backward_at_exit, below autograd.
at::Tensor call_backward_at_exit(size_t function, const at::Tensor& grad,
                                 const OptionalTensor& input, const at::Tensor& output,
                                 int64_t exit);

// The operators with autograd, of every order; forward-mode AD follows those without `out`. They
// are defined in autograd.cpp.
template <class F>
struct Autograd {
  static at::Tensor value(const at::Tensor& input, Saved saved);
  static void in_place(at::Tensor input);
  static void value_out(const at::Tensor& input, at::Tensor out);
  static Pair value_and_derivative(const at::Tensor& input);
  static void value_and_derivative_out(const at::Tensor& input, at::Tensor value,
                                       at::Tensor derivative);
  static at::Tensor backward(const at::Tensor& grad, const at::Tensor& input);
  static at::Tensor backward_from_output(const at::Tensor& grad, const at::Tensor& output);
  static at::Tensor backward_from_derivative(const at::Tensor& grad, const at::Tensor& derivative);
  static at::Tensor backward_before_bce(const at::Tensor& grad, const at::Tensor& output,
                                        at::ScalarType loss_dtype);
  // In a compiled region that the output left by an exit (see consumers.h): the factor is chosen by
  // what the region's output went to. There is no input where the output alone is kept.
  static at::Tensor backward_at_exit(const at::Tensor& grad, const OptionalTensor& input,
                                     const at::Tensor& output, int64_t exit);
};

// Whether autograd, in either mode, follows what is computed from the input.
bool is_followed(const at::Tensor& input);

}  // namespace fused_sigmoid
