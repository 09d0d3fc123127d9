// The sigmoid, its derivative and the backward passes, written once over a vector type V (see
// csrc/cpu/vector_*.h). Includes no torch header. Every path, here and in triton_kernels.py,
// is the same sequence of correctly rounded operations, so that all give the same bits: compile
// with -ffp-contract=off and keep the order of operations.
#pragma once

#include <cstdint>
#include <type_traits>

#include "coefficients.h"

namespace fused_sigmoid {

// t = 1 / (1 + exp(|x|)), the smaller of sigmoid(x) and 1 - sigmoid(x): full relative accuracy on
// both tails, where 1 - sigmoid(x) computed from the rounded sigmoid has none. NaN gives NaN.
//
// C holds the constants of one dtype, see generate_coefficients.py.
template <class C, class V>
inline V smaller_of_value_and_complement(V x) {
  // min with the limit first returns its second argument for NaN.
  const V a = min(V(C::limit), abs(x));
  // Range reduction: a = n ln 2 + r with |r| <= ln(2)/2. The low bits of `shifted` are n plus what
  // makes it the exponent field of scale * 2^n.
  const V shifted = fma(a, V(C::log2_e), V(C::round_shift));
  const V n = shifted - V(C::round_shift);
  V r = fma(n, V(-C::ln2_high), a);
  if constexpr (C::ln2_low != 0) r = fma(n, V(-C::ln2_low), r);

  constexpr int degree = sizeof(C::exp) / sizeof(C::exp[0]) - 1;
  V p = V(C::exp[degree]);
  for (int i = degree - 1; i >= 0; --i) p = fma(p, r, V(C::exp[i]));
  // Numerator and denominator are scaled down, so that neither overflows while the quotient
  // underflows gradually.
  return V(C::numerator) / fma(p, from_exponent_field(shifted), V(C::summand));
}

template <class V>
inline V value_from_smaller(V x, V t) {
  return complement_unless_negative(x, t);
}

// t (1 - t) without cancellation, since t <= 1/2; one rounding more exact than e / (1 + e)^2. What
// is rounded once more takes the product, with which the search for its constants succeeds.
template <class C, class V>
inline V derivative_from_smaller(V t) {
  if constexpr (C::is_half) return t * (V(1) - t);
  return fnma(t, t, t);
}

// The value of a half as 1 / (1 + exp(-x)), without absolute value and selection: every result is
// the nearest half by either form, so that no bit tells which was taken. In float32 the two differ
// in last bits, and the value is to be the same beside the derivative and without it. Of float16
// no constants are known that get all values right in this form.
template <class C, class V>
inline V value_of_half(V x) {
  // Like min, max returns its second argument for NaN.
  const V a = min(V(C::upper_limit), max(V(-C::limit), x));
  // -a = n ln 2 + r, of which -r = a + n ln 2 is formed: the signs are those of the constants.
  const V shifted = fma(a, V(-C::log2_e), V(C::round_shift));
  const V negative_r = fma(shifted - V(C::round_shift), V(C::ln2_high), a);

  constexpr int degree = sizeof(C::exp) / sizeof(C::exp[0]) - 1;
  V p = V(C::exp[degree]);
  for (int i = degree - 1; i >= 0; --i) p = fnma(p, negative_r, V(C::exp[i]));
  return V(C::numerator) / fma(p, from_exponent_field(shifted), V(C::summand));
}

// What a kernel computes per element. `apply` reads all inputs before it writes an output, so
// that an output may be the memory of an input.

struct Value {
  static constexpr int outputs = 1, inputs = 1;
  template <class C, class V>
  static void apply(const V (&in)[1], V (&out)[1]) {
    if constexpr (std::is_same_v<C, Bfloat16Constants>) {
      out[0] = value_of_half<Bfloat16ValueConstants>(in[0]);
    } else {
      out[0] = value_from_smaller(in[0], smaller_of_value_and_complement<C>(in[0]));
    }
  }
};

struct ValueAndDerivative {
  static constexpr int outputs = 2, inputs = 1;
  template <class C, class V>
  static void apply(const V (&in)[1], V (&out)[2]) {
    const V t = smaller_of_value_and_complement<C>(in[0]);
    out[0] = value_from_smaller(in[0], t);
    out[1] = derivative_from_smaller<C>(t);
  }
};

// inputs: grad, input
struct BackwardFromInput {
  static constexpr int outputs = 1, inputs = 2;
  template <class C, class V>
  static void apply(const V (&in)[2], V (&out)[1]) {
    out[0] = in[0] * derivative_from_smaller<C>(smaller_of_value_and_complement<C>(in[1]));
  }
};

// inputs: grad, output. The formula and order of torch: its gradient to the last bit, but in
// float16, where torch rounds after each of the three operations.
struct BackwardFromOutput {
  static constexpr int outputs = 1, inputs = 2;
  template <class C, class V>
  static void apply(const V (&in)[2], V (&out)[1]) {
    out[0] = in[0] * (V(1) - in[1]) * in[1];
  }
};

// inputs: grad, derivative
struct BackwardFromDerivative {
  static constexpr int outputs = 1, inputs = 2;
  template <class C, class V>
  static void apply(const V (&in)[2], V (&out)[1]) {
    out[0] = in[0] * in[1];
  }
};

// To the dtype of the elements, as torch rounds what it stores.
template <class C, class V>
inline V rounded(V a) {
  if constexpr (std::is_same_v<C, Float16Constants>) return rounded_to_float16(a);
  if constexpr (std::is_same_v<C, Bfloat16Constants>) return rounded_to_bfloat16(a);
  return a;
}

// What nn.BCELoss divides its gradient by, computed in the dtype of C. The floor is this float in
// float64 as well. max returns its second argument for NaN, as std::max does in torch.
template <class C, class V>
inline V divisor_of_bce(V y) {
  const V complement = V(1) - y;
  const V product = rounded<C>(complement) * y;
  return max(rounded<C>(V(1e-12f)), rounded<C>(product));
}

// inputs: grad, output. For a loss in the output's dtype: by the same roundings it is the same
// divisor, and the product undoes the division.
struct BackwardBeforeBce {
  static constexpr int outputs = 1, inputs = 2;
  template <class C, class V>
  static void apply(const V (&in)[2], V (&out)[1]) {
    out[0] = in[0] * divisor_of_bce<C>(in[1]);
  }
};

// inputs: grad, output. For a loss in float32 of an output in a half.
struct BackwardBeforeFloat32Bce {
  static constexpr int outputs = 1, inputs = 2;
  template <class C, class V>
  static void apply(const V (&in)[2], V (&out)[1]) {
    out[0] = in[0] * divisor_of_bce<Float32Constants>(in[1]);
  }
};

}  // namespace fused_sigmoid
