// The functions that there are, a row each. Includes no torch header.
//
// A function is a struct with these members; sigmoid.h is the one to copy from.
//   name                      of its operators and in Python
//   is_probability            whether losses take its output for a probability, as nn.BCELoss does;
//                             it then has divisor_of_bce
//   bfloat16_rounds_half_up   whether no value or derivative of bfloat16 changes when what lies in
//                             the middle is rounded up, which is faster, and not to even
//   prepare<C>(x)             what value and derivative are both formed of
//   value<C>(x, prepared)     and derivative<C>(x, prepared): the kernels, over a vector type V,
//                             with the constants C of the elements' dtype
//   value_alone<C>(x)         the same value where the derivative is not asked for
//   gradient_from_output      torch's own gradient, from the rounded output
//   composed_...              the formulas in ATen operations
//   curvature...              the second derivative over the first
//   derivative_difference     the derivative formed of an output, less that of another
//   torch_...                 torch's own operations
#pragma once

#include "sigmoid.h"
#include "works.h"

#define FUSED_SIGMOID_FUNCTIONS(ROW) ROW(Sigmoid)

namespace fused_sigmoid {

// The functions' numbers, in their order.
#define FUSED_SIGMOID_NUMBER(Function) Function##_,
enum FunctionNumber : size_t { FUSED_SIGMOID_FUNCTIONS(FUSED_SIGMOID_NUMBER) function_count };
#undef FUSED_SIGMOID_NUMBER

template <class F>
inline constexpr size_t number_of_function = function_count;
#define FUSED_SIGMOID_NUMBER(Function) \
  template <>                          \
  inline constexpr size_t number_of_function<Function> = Function##_;
FUSED_SIGMOID_FUNCTIONS(FUSED_SIGMOID_NUMBER)
#undef FUSED_SIGMOID_NUMBER

// Calls body(F()) for each function F.
template <class Body>
constexpr void for_each_function(Body&& body) {
#define FUSED_SIGMOID_CALL(Function) body(Function());
  FUSED_SIGMOID_FUNCTIONS(FUSED_SIGMOID_CALL)
#undef FUSED_SIGMOID_CALL
}

// A work of a function: its CPU kernels and its GPU kernel go by this number.
struct KernelNumber {
  size_t function;
  Work work;
  constexpr size_t index() const { return function * work_count + number_of(work); }
};
constexpr size_t kernel_count = function_count * work_count;

// Whether there is such a kernel.
template <class F>
constexpr bool has_kernel(Work work) {
  return F::is_probability ||
         (work != Work::backward_before_bce && work != Work::backward_before_float32_bce);
}

// What a CPU kernel computes of vectors, in the arithmetic of the constants C. All inputs are read
// before an output is written, so that an output may be the memory of an input.
template <class F, Work work, class C, class V>
inline void compute(const V (&in)[inputs_of(work)], V (&out)[outputs_of(work)]) {
  if constexpr (work == Work::value) {
    out[0] = F::template value_alone<C>(in[0]);
  } else if constexpr (work == Work::value_and_derivative) {
    const V prepared = F::template prepare<C>(in[0]);
    out[0] = F::template value<C>(in[0], prepared);
    out[1] = F::template derivative<C>(in[0], prepared);
  } else if constexpr (work == Work::backward) {
    out[0] = in[0] * F::template derivative<C>(in[1], F::template prepare<C>(in[1]));
  } else if constexpr (work == Work::backward_from_output) {
    out[0] = F::gradient_from_output(in[0], in[1]);
  } else if constexpr (work == Work::backward_from_derivative) {
    out[0] = in[0] * in[1];
  } else if constexpr (work == Work::backward_before_bce) {
    out[0] = in[0] * F::template divisor_of_bce<C>(in[1]);
  } else {
    static_assert(work == Work::backward_before_float32_bce);
    out[0] = in[0] * F::template divisor_of_bce<Float32Constants>(in[1]);
  }
}

}  // namespace fused_sigmoid
