// Numbers as vectors of one element, for CPUs without a path of their own; where the hardware has a
// fused multiply-add, compilers vectorise the loops. The file includes no torch header.
#pragma once

#include <cmath>

#include "vector.h"

namespace fused_sigmoid::portable {

template <class To, class From>
inline To bits_as(From from) {
  return __builtin_bit_cast(To, from);
}

inline BFloat16 to_bfloat16(float value) {
  const uint32_t bits = bits_as<uint32_t>(value);
  if (value != value) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  // Just below half a last place is added, and half if it is odd: to nearest, ties to even.
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline float from_float16(Float16 half) {
  const uint32_t sign = static_cast<uint32_t>(half.bits & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half.bits & 0x7fff) << 13;
  if (magnitude >= 0x7c00u << 13) return bits_as<float>(sign | magnitude | 0x7f800000);
  // As float32 the exponent is short by 127 - 15; the multiplication normalises subnormals.
  return bits_as<float>(sign | bits_as<uint32_t>(bits_as<float>(magnitude) * 0x1p112f));
}

inline Float16 to_float16(float value) {
  const uint32_t bits = bits_as<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  uint32_t half = (magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13;
  // Of a subnormal, adding 1/2 aligns the last place of float16, 2^-24, with that of the sum, and
  // the addition rounds to nearest even.
  const float sum = bits_as<float>(magnitude) + 0.5f;
  if (magnitude < 0x38800000) half = bits_as<uint32_t>(sum) - 0x3f000000;
  // 65520 and more round to infinity.
  if (magnitude >= 0x477ff000) half = 0x7c00;
  if (magnitude > 0x7f800000) half = 0x7e00 | ((magnitude >> 13) & 0x3ff);
  return {static_cast<uint16_t>(sign | half)};
}

template <class Element, class Integer>
struct Number {
  using Scalar = Element;
  using Register = Element;
  using Bits = Integer;
  using Unsigned = Integer;
  using Wide = double;
  static void add_to(double (&sums)[2], Element number) { sums[0] += number; }
  static Element fma(Element a, Element b, Element c) { return std::fma(a, b, c); }
  static Element abs(Element a) { return std::abs(a); }
  static Element min(Element a, Element b) { return a < b ? a : b; }
  static Element max(Element a, Element b) { return a > b ? a : b; }
  static Integer entries(const Integer (&table)[8], Integer at) { return table[at & 7]; }
};

struct Floats : Number<float, uint32_t> {
  static float from_float16s(Float16 half) { return from_float16(half); }
  static Float16 to_float16s(float a) { return to_float16(a); }
  static float from_bfloat16(BFloat16 half) { return bits_as<float>(uint32_t{half.bits} << 16); }
  static void from_bfloat16s(BFloat16 half, float (&to)[1]) { to[0] = from_bfloat16(half); }
  template <bool>  // It rounds half to even even where half up would do.
  static BFloat16 to_bfloat16s(const float (&from)[1]) {
    return to_bfloat16(from[0]);
  }
  static float rounded_to_bfloat16(float a) { return from_bfloat16(to_bfloat16(a)); }
};

using Vectors = VectorsOf<Number<double, uint64_t>, Floats, 1>;

}  // namespace fused_sigmoid::portable
