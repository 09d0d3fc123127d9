// 1 / (1 + exp(x)) by range reduction, a table and a polynomial, written once over a vector type V
// (see csrc/cpu/vector.h). C holds the constants of one dtype, see generate_coefficients.py.
// Includes no torch header.
//
// Every path, here and in fused_sigmoid/triton, is the same sequence of correctly rounded
// operations, so that all give the same bits: compile with -ffp-contract=off and keep the order.
#pragma once

#include "coefficients.h"

namespace fused_sigmoid {

// The polynomial for exp(r), times a factor that the table of powers has in it inversely. In
// factored form one of the second or third degree takes an addition and one or two fma.
template <class C, class V>
inline V polynomial(V r) {
  constexpr int terms = sizeof(C::exp) / sizeof(C::exp[0]);
  if constexpr (terms <= 3) {
    const V w = r + V(C::exp[0]);
    const V p = fma(w, w, V(C::exp[1]));
    if constexpr (terms == 2) return p;
    return fma(p, r, V(C::exp[terms - 1]));
  } else {
    V p = V(C::exp[terms - 1]);
    for (int i = terms - 2; i >= 0; --i) p = fma(p, r, V(C::exp[i]));
    return p;
  }
}

// 1 / (1 + exp(a)), where the low bits of `shifted` are 8 m, and a = m ln 2 + r. Numerator and
// denominator are scaled down, so that neither overflows while the quotient underflows gradually.
template <class C, class V>
inline V one_over_one_plus_exp(V shifted, V r) {
  return V(C::numerator) / fma(power_of_two(shifted, C::powers), polynomial<C>(r), V(C::summand));
}

// 1 / (1 + exp(|x|)), the smaller of sigmoid(x) and 1 - sigmoid(x): full relative accuracy on both
// tails, where 1 - sigmoid(x) computed from the rounded sigmoid has none. NaN gives NaN.
template <class C, class V>
inline V one_over_one_plus_exp_of_magnitude(V x) {
  // min returns its second argument for NaN, so that the limit stands first.
  const V a = min(V(C::limit), abs(x));
  // Range reduction: a = m ln 2 + r, where m is a multiple of 1/8 and |r| <= ln(2)/16.
  const V shifted = fma(a, V(C::log2_e), V(C::round_shift));
  const V m = shifted - V(C::round_shift);
  V r = fma(m, V(-C::ln2_high), a);
  if constexpr (C::ln2_low != 0) r = fma(m, V(-C::ln2_low), r);
  return one_over_one_plus_exp<C>(shifted, r);
}

// 1 / (1 + exp(-x)) for results that are rounded to 16 bits afterwards, without the absolute value.
template <class C, class V>
inline V one_over_one_plus_exp_of_negative(V x) {
  // Like min, max returns its second argument for NaN.
  const V a = min(V(C::upper_limit), max(V(-C::limit), x));
  // Here -a = m ln 2 + r, and -r = a + m ln 2 is formed: the signs are those of the constants.
  const V shifted = fma(a, V(-C::log2_e), V(C::round_shift));
  const V negative_r = fma(shifted - V(C::round_shift), V(C::ln2_high), a);
  return one_over_one_plus_exp<C>(shifted, -negative_r);
}

}  // namespace fused_sigmoid
