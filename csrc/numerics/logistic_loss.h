// log(1 + exp(-|x|)) and 1 / (1 + exp(|x|)) of one exponential, written once over a vector type V
// (see csrc/cpu/vector.h). C holds the constants of one dtype, see generate_coefficients.py.
// Includes no torch header. The order of the operations is the same on every path, as in
// exponential.h, so that all give the same bits.
#pragma once

#include "coefficients.h"

namespace fused_sigmoid {

template <class V, class Scalar, size_t terms>
inline V horner(V x, const Scalar (&coefficients)[terms]) {
  V p = V(coefficients[terms - 1]);
  for (int i = static_cast<int>(terms) - 2; i >= 0; --i) p = fma(p, x, V(coefficients[i]));
  return p;
}

template <class V>
struct LogisticLoss {
  V smaller;  // 1 / (1 + exp(|x|)), the smaller of sigmoid(x) and 1 - sigmoid(x)
  V log1p;    // log(1 + exp(-|x|)), the loss of a case on the right side
};

// Of `magnitude` = |x|; NaN gives NaN.
template <class C, class V>
inline LogisticLoss<V> logistic_loss(V magnitude) {
  // min returns its second argument for NaN, so that the limit stands first.
  const V a = min(V(C::limit), magnitude);
  // Range reduction: a = r - m ln 2, where m is a multiple of 1/8 and |r| <= ln(2)/16.
  const V shifted = fma(a, V(-C::log2_e), V(C::round_shift));
  const V m = shifted - V(C::round_shift);
  const V r = fma(m, V(C::ln2_low), fma(m, V(C::ln2_high), a));
  // The table's entry is rounded, and the rest is a small multiple of it: the sum is rounded once.
  // It is scaled up, so that it is a normal number and the quotient underflows gradually.
  const V power = power_of_two(shifted, C::powers);
  const V scaled = fma(power, horner(r, C::exp_minus_one), power);
  const V e = scaled * V(C::inverse_scale);
  return {scaled / (scaled + V(C::summand)), fma(e * horner(e, C::log1p), e, e)};
}

}  // namespace fused_sigmoid
