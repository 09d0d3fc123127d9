// 1 / (1 + exp(x)) by range reduction and a polynomial, written once over a vector type V (see
// csrc/cpu/vector.h). C holds the constants of one dtype, see generate_coefficients.py. Includes no
// torch header.
//
// Every path, here and in fused_sigmoid/triton, is the same sequence of correctly rounded
// operations, so that all give the same bits: compile with -ffp-contract=off and keep the order.
#pragma once

#include "coefficients.h"

namespace fused_sigmoid {

// 1 / (1 + exp(|x|)), the smaller of sigmoid(x) and 1 - sigmoid(x): full relative accuracy on both
// tails, where 1 - sigmoid(x) computed from the rounded sigmoid has none. NaN gives NaN.
template <class C, class V>
inline V one_over_one_plus_exp_of_magnitude(V x) {
  // min returns its second argument for NaN, so that the limit stands first.
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

// 1 / (1 + exp(-x)) for results that are rounded to 16 bits afterwards, without the absolute value.
template <class C, class V>
inline V one_over_one_plus_exp_of_negative(V x) {
  // Like min, max returns its second argument for NaN.
  const V a = min(V(C::upper_limit), max(V(-C::limit), x));
  // Here -a = n ln 2 + r, and -r = a + n ln 2 is formed: the signs are those of the constants.
  const V shifted = fma(a, V(-C::log2_e), V(C::round_shift));
  const V negative_r = fma(shifted - V(C::round_shift), V(C::ln2_high), a);

  constexpr int degree = sizeof(C::exp) / sizeof(C::exp[0]) - 1;
  V p = V(C::exp[degree]);
  for (int i = degree - 1; i >= 0; --i) p = fnma(p, negative_r, V(C::exp[i]));
  return V(C::numerator) / fma(p, from_exponent_field(shifted), V(C::summand));
}

}  // namespace fused_sigmoid
