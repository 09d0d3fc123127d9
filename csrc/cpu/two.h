// Two vectors computed operation by operation: each hides the latency of the other even where the
// processor does not look far enough ahead to find independent work itself. Of bfloat16 they are
// the even and the odd elements, on every instruction set. Includes no torch header.
#pragma once

#include <cstdint>

#include "half.h"

namespace fused_sigmoid {

template <class V>
struct Two {
  static constexpr int64_t size = 2 * V::size;
  using Group = Two;
  static constexpr int groups = 2;
  V first, second;

  Two() = default;
  Two(V a, V b) : first(a), second(b) {}
  template <class Scalar>
  explicit Two(Scalar scalar) : first(scalar), second(scalar) {}

  template <class Element>
  static Two load(const Element* from) {
    return {V::load(from), V::load(from + V::size)};
  }
  template <class Element>
  void store(Element* to) const {
    first.store(to);
    second.store(to + V::size);
  }
  // To take even and odd elements apart and to put them together again needs no shuffle.
  static Two load(const BFloat16* from) {
    Two loaded;
    V::load_even_odd(from, loaded.first, loaded.second);
    return loaded;
  }
  void store(BFloat16* to) const { V::store_even_odd(to, first, second); }

  friend Two operator+(Two a, Two b) { return {a.first + b.first, a.second + b.second}; }
  friend Two operator-(Two a, Two b) { return {a.first - b.first, a.second - b.second}; }
  friend Two operator*(Two a, Two b) { return {a.first * b.first, a.second * b.second}; }
  friend Two operator/(Two a, Two b) { return {a.first / b.first, a.second / b.second}; }
  friend Two fma(Two a, Two b, Two c) {
    return {fma(a.first, b.first, c.first), fma(a.second, b.second, c.second)};
  }
  friend Two fnma(Two a, Two b, Two c) {
    return {fnma(a.first, b.first, c.first), fnma(a.second, b.second, c.second)};
  }
  friend Two abs(Two a) { return {abs(a.first), abs(a.second)}; }
  friend Two min(Two a, Two b) { return {min(a.first, b.first), min(a.second, b.second)}; }
  friend Two max(Two a, Two b) { return {max(a.first, b.first), max(a.second, b.second)}; }
  friend Two complement_unless_negative(Two x, Two t) {
    return {complement_unless_negative(x.first, t.first),
            complement_unless_negative(x.second, t.second)};
  }
  friend Two rounded_to_float16(Two a) {
    return {rounded_to_float16(a.first), rounded_to_float16(a.second)};
  }
  friend Two rounded_to_bfloat16(Two a) {
    return {rounded_to_bfloat16(a.first), rounded_to_bfloat16(a.second)};
  }
  friend Two from_exponent_field(Two shifted) {
    return {from_exponent_field(shifted.first), from_exponent_field(shifted.second)};
  }
};

}  // namespace fused_sigmoid
