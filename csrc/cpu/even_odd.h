// Two vectors of float32 that hold the even and the odd elements of bfloat16 memory: taking these
// apart and putting them together again needs no shuffle. Includes no torch header.
#pragma once

#include <cstdint>

#include "half.h"

namespace fused_sigmoid {

template <class Float>
struct EvenOdd {
  static constexpr int64_t size = 2 * Float::size;
  static constexpr int registers = 2;
  Float even, odd;

  EvenOdd() = default;
  EvenOdd(Float even_elements, Float odd_elements) : even(even_elements), odd(odd_elements) {}
  explicit EvenOdd(float scalar) : even(scalar), odd(scalar) {}
  static EvenOdd load(const BFloat16* from) {
    EvenOdd loaded;
    Float::load_even_odd(from, loaded.even, loaded.odd);
    return loaded;
  }
  void store(BFloat16* to) const { Float::store_even_odd(to, even, odd); }

  friend EvenOdd operator+(EvenOdd a, EvenOdd b) { return {a.even + b.even, a.odd + b.odd}; }
  friend EvenOdd operator-(EvenOdd a, EvenOdd b) { return {a.even - b.even, a.odd - b.odd}; }
  friend EvenOdd operator*(EvenOdd a, EvenOdd b) { return {a.even * b.even, a.odd * b.odd}; }
  friend EvenOdd operator/(EvenOdd a, EvenOdd b) { return {a.even / b.even, a.odd / b.odd}; }
  friend EvenOdd fma(EvenOdd a, EvenOdd b, EvenOdd c) {
    return {fma(a.even, b.even, c.even), fma(a.odd, b.odd, c.odd)};
  }
  friend EvenOdd fnma(EvenOdd a, EvenOdd b, EvenOdd c) {
    return {fnma(a.even, b.even, c.even), fnma(a.odd, b.odd, c.odd)};
  }
  friend EvenOdd abs(EvenOdd a) { return {abs(a.even), abs(a.odd)}; }
  friend EvenOdd min(EvenOdd a, EvenOdd b) { return {min(a.even, b.even), min(a.odd, b.odd)}; }
  friend EvenOdd max(EvenOdd a, EvenOdd b) { return {max(a.even, b.even), max(a.odd, b.odd)}; }
  friend EvenOdd complement_unless_negative(EvenOdd x, EvenOdd t) {
    return {complement_unless_negative(x.even, t.even), complement_unless_negative(x.odd, t.odd)};
  }
  friend EvenOdd from_exponent_field(EvenOdd shifted) {
    return {from_exponent_field(shifted.even), from_exponent_field(shifted.odd)};
  }
};

}  // namespace fused_sigmoid
