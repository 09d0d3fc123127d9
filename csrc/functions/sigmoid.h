// The sigmoid 1 / (1 + exp(-x)), its derivative, and what a gradient before nn.BCELoss is
// multiplied by. functions.h says what each member is for. Includes no torch header.
#pragma once

#include <type_traits>

#include "../numerics/exponential.h"

namespace fused_sigmoid {

// The least that nn.BCELoss divides by: torch has this float in float64 as well.
constexpr float floor_of_bce = 1e-12f;

struct Sigmoid {
  static constexpr const char* name = "sigmoid";
  static constexpr bool is_probability = true;
  // generate_coefficients.py tries every number with either rounding.
  static constexpr bool bfloat16_rounds_half_up = true;

  // The kernels' arithmetic. t is the smaller of sigmoid(x) and 1 - sigmoid(x).

  template <class C, class V>
  static V prepare(V x) {
    return one_over_one_plus_exp_of_magnitude<C>(x);
  }
  // At -0 both t and 1 - t are 1/2.
  template <class C, class V>
  static V value(V x, V t) {
    return if_negative(x, t, V(1) - t);
  }
  // t (1 - t) has no cancellation, since t <= 1/2, and is one rounding more exact than
  // e / (1 + e)^2. The halves take the product, with which the search for their constants succeeds.
  template <class C, class V>
  static V derivative(V, V t) {
    if constexpr (C::is_half) return t * (V(1) - t);
    return fnma(t, t, t);
  }

  // Every bfloat16 is the nearest by either form, so that no bit tells which was taken. In float32
  // the two differ in last bits, and the value is to be the same beside the derivative and without
  // it. Of float16 no constants are known that get all values right in this form.
  template <class C, class V>
  static V value_alone(V x) {
    if constexpr (std::is_same_v<C, Bfloat16Constants>) {
      return one_over_one_plus_exp_of_negative<Bfloat16ValueConstants>(x);
    } else {
      return value<C>(x, prepare<C>(x));
    }
  }

  // The formula and the order of torch give its gradient to the last bit, except in float16, where
  // torch rounds after each of the three operations.
  template <class V>
  static V gradient_from_output(V grad, V y) {
    return grad * (V(1) - y) * y;
  }

  // nn.BCELoss divides its gradient by this, computed in the dtype of C: by the same roundings it
  // is the same number, and a product with it undoes the division. max returns its second argument
  // for NaN, as std::max does in torch.
  template <class C, class V>
  static V divisor_of_bce(V y) {
    const V complement = V(1) - y;
    const V product = rounded<C>(complement) * y;
    return max(rounded<C>(V(floor_of_bce)), rounded<C>(product));
  }

  // The same in ATen operations, where something has to see them: a compiler, a transform, a
  // subclass. x is not in 16 bits, and `magnitude` is |x|.

  // A compiler that computes the derivative from x as well computes the exponential once. The
  // negative tail is as small as it is, where that of compilers overflows.
  template <class Tensor>
  static Tensor composed_value(const Tensor& x, const Tensor& magnitude) {
    const Tensor t = composed_smaller(magnitude);
    return where(x < 0, t, 1 - t);
  }
  template <class Tensor>
  static Tensor composed_derivative(const Tensor& magnitude) {
    const Tensor t = composed_smaller(magnitude);
    return t - t * t;
  }
  // The second derivative over the first, exact on both tails and at 0; and from the output, whose
  // rounding it inherits.
  template <class Tensor>
  static Tensor curvature(const Tensor& x) {
    return (x * -0.5).tanh();
  }
  template <class Tensor>
  static Tensor curvature_from_output(const Tensor& y) {
    return 1 - 2 * y;
  }
  // y (1 - y) - c (1 - c), without a rounding error where c = y.
  template <class Tensor>
  static Tensor derivative_difference(const Tensor& y, const Tensor& c) {
    return (y - c) * (1 - y - c);
  }

  // torch's own operations.
  template <class Tensor>
  static Tensor torch_value(const Tensor& x) {
    return x.sigmoid();
  }
  template <class Tensor>
  static void torch_in_place(const Tensor& x) {
    x.sigmoid_();
  }
  template <class Tensor>
  static Tensor torch_gradient(const Tensor& grad, const Tensor& y) {
    return sigmoid_backward(grad, y);
  }

 private:
  template <class Tensor>
  static Tensor composed_smaller(const Tensor& magnitude) {
    const Tensor e = (-magnitude).exp();
    return e / (1 + e);
  }

  // Rounded to the dtype of the elements, as torch rounds what it stores.
  template <class C, class V>
  static V rounded(V a) {
    if constexpr (std::is_same_v<C, Float16Constants>) return rounded_to_float16(a);
    if constexpr (std::is_same_v<C, Bfloat16Constants>) return rounded_to_bfloat16(a);
    return a;
  }
};

}  // namespace fused_sigmoid
