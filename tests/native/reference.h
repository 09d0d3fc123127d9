// What the native trials take for true: the sigmoid and its derivatives in long double, from the
// bits of the operands, and whether a kernel's result is right. Depends on the kernels' enums
// alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "../../csrc/cpu/kernels.h"

namespace fused_sigmoid::trial {

static_assert(std::numeric_limits<long double>::digits >= 64,
              "float64 results need a wider format to be judged in");

struct Format {
  const char* name;
  int bytes;
  int precision;         // bits of the significand, the leading one included
  int largest_exponent;  // of the largest finite number 2^largest_exponent (2 - 2^(1 - precision))
  // Largest errors in ulp, as docs/numerics.md promises; the halves are the nearest number.
  double value_bound, derivative_bound, loss_bound;
  // The format that the halves' products are computed in before they are rounded.
  int wide_precision, wide_largest_exponent;
};

// In the order of Dtype.
inline constexpr Format formats[dtype_count] = {
    {"float64", 8, 53, 1023, 2.5, 3.5, 3.5, 53, 1023},
    {"float32", 4, 24, 127, 2.2, 2.9, 2.5, 24, 127},
    {"float16", 2, 11, 15, 0.5, 0.5, 0.5, 24, 127},
    {"bfloat16", 2, 8, 127, 0.5, 0.5, 0.5, 24, 127},
};

struct Shape {
  const char* name;
  int outputs, inputs;
};

inline const Format& format_of(Dtype dtype) { return formats[static_cast<int>(dtype)]; }
inline Shape shape_of(Work work) {
  return {work_names[number_of(work)], static_cast<int>(outputs_of(work)),
          static_cast<int>(inputs_of(work))};
}

// The number behind an element's bits, whatever the format.
inline long double decode(const Format& format, uint64_t bits) {
  const int width = 8 * format.bytes, fraction_bits = format.precision - 1;
  const uint64_t fraction = bits & ((uint64_t{1} << fraction_bits) - 1);
  const int largest_field = 2 * format.largest_exponent + 1;
  const int field = static_cast<int>(bits >> fraction_bits) & largest_field;
  const long double sign = bits >> (width - 1) & 1 ? -1 : 1;
  if (field == largest_field) {
    return fraction ? std::numeric_limits<long double>::quiet_NaN()
                    : sign * std::numeric_limits<long double>::infinity();
  }
  const uint64_t significand = field == 0 ? fraction : fraction | uint64_t{1} << fraction_bits;
  const int exponent = (field == 0 ? 1 : field) - format.largest_exponent - fraction_bits;
  return sign * std::ldexp(static_cast<long double>(significand), exponent);
}

// Bits of a nearby number of the format: the exponent of float64, cut to the format's reach.
inline uint64_t encode(const Format& format, double number) {
  const float narrow = static_cast<float>(number);
  if (number == 0) return 0;
  uint64_t bits = 0;
  if (format.precision == 53) std::memcpy(&bits, &number, 8);
  if (format.precision == 24 || format.precision == 8) std::memcpy(&bits, &narrow, 4);
  if (format.precision == 8) bits >>= 16;
  if (format.precision == 11) {
    int exponent = 0;
    const double significand = std::frexp(std::fabs(number), &exponent);
    const int field = std::min(std::max(exponent + 14, 1), 30);
    bits = static_cast<uint64_t>(field) << 10 |
           (static_cast<uint64_t>(significand * 0x1p11) & 0x3ff) |
           (number < 0 ? uint64_t{0x8000} : 0);
  }
  return bits;
}

// The distance between neighbours around `number`; among subnormals that is the smallest of them.
inline long double ulp(int precision, int largest_exponent, long double number) {
  int exponent = 1 - largest_exponent;
  if (number != 0) exponent = std::fmax(std::ilogb(number), exponent);
  return std::ldexp(1.0L, exponent - precision + 1);
}

inline long double exact_value(long double x) {
  const long double e = std::exp(-std::fabs(x));
  return (x < 0 ? e : 1) / (1 + e);
}

inline long double exact_derivative(long double x) {
  const long double e = std::exp(-std::fabs(x));
  return e / ((1 + e) * (1 + e));
}

// Whether `got` is a rounding of `exact` that errs by no more than `error`.
inline bool near(const Format& format, long double got, long double exact, long double error) {
  const long double largest =
      std::ldexp(2 - std::ldexp(1.0L, 1 - format.precision), format.largest_exponent);
  if (std::isinf(got)) return got > 0 ? exact + error > largest : exact - error < -largest;
  return std::fabs(got - exact) <= error;
}

// Long double has errors of its own, of 2^-63 or so: nothing beside a bound of half an ulp.
inline constexpr long double slack = 1 + 1e-6L;

// grad * sigma'(x), one product that is rounded to the format, of a sigma' with an error.
inline bool right_gradient(const Format& format, long double grad, long double x, long double got) {
  if (std::isnan(grad) || std::isnan(x)) return std::isnan(got);
  const long double derivative = exact_derivative(x);
  const long double wide_ulp = ulp(format.wide_precision, format.wide_largest_exponent, derivative);
  // float32's bound holds before the halves are rounded, but for what their cheaper polynomials
  // give up: 2^-16 of the derivative at most, a 32nd of half an ulp of float16.
  const bool half = format.bytes == 2;
  const long double error =
      half ? derivative * 0x1p-16L + 4 * wide_ulp : format.derivative_bound * wide_ulp;
  if (std::isinf(grad)) {
    // Infinity times a derivative that may have been rounded to 0 may be NaN.
    if (derivative <= 2 * error) return std::isnan(got) || got == grad;
    return got == grad;
  }
  const long double exact = grad * derivative;
  const long double rounding = 0.5L * ulp(format.precision, format.largest_exponent, exact);
  return near(format, got, exact, (std::fabs(grad) * error + rounding) * slack);
}

// The nearest number of the format to `number`, ties to even, as a long double.
inline long double rounded(const Format& format, long double number) {
  if (!std::isfinite(number) || number == 0) return number;
  const long double place = ulp(format.precision, format.largest_exponent, number);
  const long double nearest = std::nearbyint(number / place) * place;
  const bool overflows = std::ilogb(nearest) > format.largest_exponent;
  return overflows ? std::copysign(std::numeric_limits<long double>::infinity(), number) : nearest;
}

inline bool same(long double a, long double b) {
  return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
}

// torch's formula in torch's order, in the format that the kernels compute in.
template <class Wide>
long double from_output(long double grad, long double output) {
  const volatile Wide complement = Wide(1) - static_cast<Wide>(output);
  const volatile Wide product = static_cast<Wide>(grad) * complement;
  const volatile Wide result = product * static_cast<Wide>(output);
  return result;
}
template <class Wide>
long double from_derivative(long double grad, long double derivative) {
  const volatile Wide result = static_cast<Wide>(grad) * static_cast<Wide>(derivative);
  return result;
}

// The product before nn.BCELoss, its divisor rounded to `format` after each operation.
template <class Wide>
long double before_bce(const Format& format, long double grad, long double output) {
  const volatile Wide complement = Wide(1) - static_cast<Wide>(output);
  const volatile Wide factor = static_cast<Wide>(rounded(format, complement));
  const volatile Wide product = factor * static_cast<Wide>(output);
  const long double divisor = rounded(format, product), floor = rounded(format, 1e-12f);
  const volatile Wide result =
      static_cast<Wide>(grad) * static_cast<Wide>(divisor < floor ? floor : divisor);
  return result;
}

// Whether output number `output` of a kernel may hold `got`, given the elements it was made from.
inline bool right(Dtype dtype, Work work, int output, const uint64_t* inputs, uint64_t got_bits) {
  const Format& format = format_of(dtype);
  const long double first = decode(format, inputs[0]), got = decode(format, got_bits);
  const bool wide = dtype == Dtype::float64;
  switch (work) {
    case Work::value:
    case Work::value_of_kept:
    case Work::value_and_derivative: {
      if (std::isnan(first)) return std::isnan(got);
      const bool is_value = output == 0;
      const long double exact = is_value ? exact_value(first) : exact_derivative(first);
      const double bound = is_value ? format.value_bound : format.derivative_bound;
      const long double place = ulp(format.precision, format.largest_exponent, exact);
      return !std::signbit(got) && near(format, got, exact, bound * place * slack);
    }
    case Work::backward:
      return right_gradient(format, first, decode(format, inputs[1]), got);
    case Work::backward_from_output: {
      const long double second = decode(format, inputs[1]);
      const long double exact =
          wide ? from_output<double>(first, second) : from_output<float>(first, second);
      return same(got, rounded(format, exact));
    }
    case Work::backward_from_derivative: {
      const long double second = decode(format, inputs[1]);
      const long double exact =
          wide ? from_derivative<double>(first, second) : from_derivative<float>(first, second);
      return same(got, rounded(format, exact));
    }
    case Work::backward_before_bce:
    case Work::backward_before_float32_bce: {
      const long double second = decode(format, inputs[1]);
      const bool rounds = work == Work::backward_before_bce;
      const Format& divisors = rounds || wide ? format : format_of(Dtype::float32);
      const long double exact = wide ? before_bce<double>(divisors, first, second)
                                     : before_bce<float>(divisors, first, second);
      return same(got, rounded(format, exact));
    }
  }
  return false;
}

}  // namespace fused_sigmoid::trial
