// Vectors of one element in standard C++, for CPUs without a path of their own; where the
// hardware has a fused multiply-add, compilers vectorise loops over them. Includes no torch
// header.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"

namespace fused_sigmoid::portable {

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// Elements need not be aligned: torch.frombuffer takes any offset.
template <class Element>
inline Element load_element(const Element* from) {
  Element element;
  std::memcpy(&element, from, sizeof(element));
  return element;
}
template <class Element>
inline void store_element(Element* to, Element element) {
  std::memcpy(to, &element, sizeof(element));
}

inline float from_bfloat16(BFloat16 half) {
  return bits_as<float>(static_cast<uint32_t>(half.bits) << 16);
}

inline BFloat16 to_bfloat16(float value) {
  const uint32_t bits = bits_as<uint32_t>(value);
  if (value != value) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  // To nearest, ties to even: just below one half of a last place, one half if that is odd.
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline float from_float16(Float16 half) {
  const uint32_t sign = static_cast<uint32_t>(half.bits & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half.bits & 0x7fff) << 13;
  const uint32_t infinity = 0x7c00u << 13;
  if (magnitude >= infinity) return bits_as<float>(sign | magnitude | 0x7f800000);
  // As float32 the exponent is short by 127 - 15; the multiplication normalises subnormals.
  return bits_as<float>(sign | bits_as<uint32_t>(bits_as<float>(magnitude) * 0x1p112f));
}

inline Float16 to_float16(float value) {
  const uint32_t bits = bits_as<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    return {static_cast<uint16_t>(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff))};
  }
  // 65520 and more round to infinity.
  if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (magnitude < 0x38800000) {
    // Subnormal: adding 1/2 aligns the last place of float16, 2^-24, with that of the sum, and
    // the addition rounds to nearest even.
    const float sum = bits_as<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (bits_as<uint32_t>(sum) - 0x3f000000))};
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13))};
}

template <class Scalar_, class Bits, int significand_bits>
struct Single {
  using Scalar = Scalar_;
  static constexpr int64_t size = 1;
  using Group = Single;
  static constexpr int groups = 4;
  Scalar v;

  Single() = default;
  explicit Single(Scalar scalar) : v(scalar) {}
  static Single load(const Scalar* from) { return Single(load_element(from)); }
  void store(Scalar* to) const { store_element(to, v); }

  friend Single operator+(Single a, Single b) { return Single(a.v + b.v); }
  friend Single operator-(Single a, Single b) { return Single(a.v - b.v); }
  friend Single operator*(Single a, Single b) { return Single(a.v * b.v); }
  friend Single operator/(Single a, Single b) { return Single(a.v / b.v); }
  friend Single fma(Single a, Single b, Single c) { return Single(std::fma(a.v, b.v, c.v)); }
  friend Single abs(Single a) { return Single(std::abs(a.v)); }
  // c - a b, rounded once.
  friend Single fnma(Single a, Single b, Single c) { return Single(std::fma(-a.v, b.v, c.v)); }
  friend Single min(Single a, Single b) { return Single(a.v < b.v ? a.v : b.v); }
  friend Single max(Single a, Single b) { return Single(a.v > b.v ? a.v : b.v); }
  // t where x is negative, 1 - t elsewhere.
  friend Single complement_unless_negative(Single x, Single t) {
    return x.v < 0 ? t : Single(1 - t.v);
  }
  // The number whose exponent field is the low bits of `shifted`.
  friend Single from_exponent_field(Single shifted) {
    return Single(bits_as<Scalar>(bits_as<Bits>(shifted.v) << significand_bits));
  }
};

using Double = Single<double, uint64_t, 52>;

struct Float : Single<float, uint32_t, 23> {
  using Base = Single<float, uint32_t, 23>;
  using Group = Float;
  using Base::load;
  using Base::store;
  Float() = default;
  explicit Float(float scalar) : Base(scalar) {}
  Float(Base base) : Base(base) {}
  static Float load(const Float16* from) { return Float(from_float16(load_element(from))); }
  static Float load(const BFloat16* from) { return Float(from_bfloat16(load_element(from))); }
  void store(Float16* to) const { store_element(to, to_float16(v)); }
  void store(BFloat16* to) const { store_element(to, to_bfloat16(v)); }
  friend Float rounded_to_float16(Float a) { return Float(from_float16(to_float16(a.v))); }
  friend Float rounded_to_bfloat16(Float a) { return Float(from_bfloat16(to_bfloat16(a.v))); }
};

struct Vectors {
  using Double = portable::Double;
  using Float = portable::Float;
  using Bfloat16 = portable::Float;
};

}  // namespace fused_sigmoid::portable
