// What the native trials take for true of the binary cross entropy and its gradient, in long
// double, and whether a kernel's result is right. Depends on reference.h alone.
#pragma once

#include <algorithm>

#include "reference.h"

namespace fused_sigmoid::trial {

// One element, and what its gradient is multiplied by.
struct LossElement {
  long double logit, target, weight, pos_weight, scale;
  bool is_weighted;

  bool is_hard() const { return !is_weighted && scale == 1 && (target == 0 || target == 1); }
};

// A result, and the sum of the magnitudes of its terms, of which roundings are small parts.
struct ExactTerms {
  long double number, terms;
};

inline ExactTerms exact_loss(const LossElement& of) {
  const long double magnitude = std::fabs(of.logit), rest = std::log1p(std::exp(-magnitude));
  const long double negative = 1 - of.target, positive = of.pos_weight * of.target;
  const long double side = of.logit < 0 ? positive : negative;
  const long double linear = side == 0 ? 0 : side * magnitude;
  const long double share = of.is_weighted ? negative + positive : 1;
  const long double shares = std::fabs(negative) + std::fabs(positive);
  return {of.weight * (linear + share * rest),
          std::fabs(of.weight) * (std::fabs(linear) + shares * rest)};
}

inline ExactTerms exact_loss_gradient(const LossElement& of) {
  const long double up = (1 - of.target) * exact_value(of.logit);
  const long double down = of.pos_weight * of.target * exact_value(-of.logit);
  const long double factor = of.weight * of.scale;
  return {factor * (up - down), std::fabs(factor) * (std::fabs(up) + std::fabs(down))};
}

// Whether it is small enough for no intermediate result to overflow, beside a logit that is, and
// large enough for none to lose digits by which a result is judged.
inline bool is_moderate(long double number) {
  const long double magnitude = std::fabs(number);
  return !(magnitude > 0x1p10L) && !(magnitude > 0 && magnitude < 0x1p-20L);
}
inline bool can_be_judged(const Format& format, const LossElement& of) {
  const bool overflows = std::fabs(of.logit) > std::ldexp(1.0L, format.wide_largest_exponent - 31);
  return is_moderate(of.target) && is_moderate(of.weight) && is_moderate(of.pos_weight) &&
         (of.is_hard() || std::isinf(of.logit) || !overflows);
}

// The error before a half is rounded: of each term five roundings, and what underflows.
inline long double wide_error(const Format& format, const LossElement& of, long double terms) {
  const long double factors = (1 + std::fabs(of.weight)) * (1 + std::fabs(of.scale)) *
                              (2 + std::fabs(of.target)) * (1 + std::fabs(of.pos_weight));
  return 5 * std::ldexp(terms, 1 - format.wide_precision) +
         factors * ulp(format.wide_precision, format.wide_largest_exponent, 0);
}

inline bool right_loss_number(Dtype dtype, const LossElement& of, ExactTerms exact,
                              long double got) {
  const Format& format = format_of(dtype);
  if (std::isnan(exact.number)) return std::isnan(got);
  if (std::isinf(exact.number)) return got == exact.number;
  const long double place = ulp(format.precision, format.largest_exponent, exact.number);
  const bool is_half = format.bytes == 2;
  const long double error = of.is_hard()
                                ? format.loss_bound * place
                                : wide_error(format, of, exact.terms) + (is_half ? place / 2 : 0);
  return near(format, got, exact.number, error * slack);
}

// A sum of losses, of which none is rounded to a half, and how far off it may be.
struct ExactSum {
  long double number = 0, error = 0, terms = 0;
  bool can_judge = true;

  ExactSum() = default;
  ExactSum(const Format& format, const LossElement& of) : can_judge(can_be_judged(format, of)) {
    const ExactTerms loss = exact_loss(of);
    number = loss.number;
    terms = loss.terms;
    error = wide_error(format, of, loss.terms);
  }
  void add(const ExactSum& other) {
    number += other.number;
    terms += other.terms;
    error += other.error;
    can_judge &= other.can_judge;
  }
  bool right(double got, int64_t count) const {
    if (!can_judge) return true;
    if (!std::isfinite(number)) return !std::isfinite(got);
    // Long double holds sums that float64 does not.
    if (terms > std::ldexp(1.0L, 1023)) return true;
    return std::fabs(got - number) <= error + static_cast<long double>(count) * 0x1p-53L * terms;
  }
};

}  // namespace fused_sigmoid::trial
