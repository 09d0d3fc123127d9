// Vectors of AVX2 with FMA and F16C. Includes no torch header.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "half.h"
#include "two.h"

namespace fused_sigmoid::avx2 {

struct Double {
  static constexpr int64_t size = 4;
  using Group = Two<Double>;
  static constexpr int groups = 1;
  __m256d v;

  Double() = default;
  explicit Double(__m256d vector) : v(vector) {}
  explicit Double(double scalar) : v(_mm256_set1_pd(scalar)) {}
  static Double load(const double* from) { return Double(_mm256_loadu_pd(from)); }
  void store(double* to) const { _mm256_storeu_pd(to, v); }

  friend Double operator+(Double a, Double b) { return Double(_mm256_add_pd(a.v, b.v)); }
  friend Double operator-(Double a, Double b) { return Double(_mm256_sub_pd(a.v, b.v)); }
  friend Double operator*(Double a, Double b) { return Double(_mm256_mul_pd(a.v, b.v)); }
  friend Double operator/(Double a, Double b) { return Double(_mm256_div_pd(a.v, b.v)); }
  friend Double fma(Double a, Double b, Double c) { return Double(_mm256_fmadd_pd(a.v, b.v, c.v)); }
  friend Double abs(Double a) { return Double(_mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v)); }
  // c - a b, rounded once.
  friend Double fnma(Double a, Double b, Double c) {
    return Double(_mm256_fnmadd_pd(a.v, b.v, c.v));
  }
  friend Double min(Double a, Double b) { return Double(_mm256_min_pd(a.v, b.v)); }
  friend Double max(Double a, Double b) { return Double(_mm256_max_pd(a.v, b.v)); }
  // t where x is negative, by the sign bit, 1 - t elsewhere; at -0 both are equal.
  friend Double complement_unless_negative(Double x, Double t) {
    return Double(_mm256_blendv_pd(_mm256_sub_pd(_mm256_set1_pd(1), t.v), t.v, x.v));
  }
  // The number whose exponent field is the low bits of `shifted`.
  friend Double from_exponent_field(Double shifted) {
    return Double(_mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(shifted.v), 52)));
  }
};

struct Float {
  static constexpr int64_t size = 8;
  using Group = Two<Float>;
  static constexpr int groups = 1;
  __m256 v;

  Float() = default;
  explicit Float(__m256 vector) : v(vector) {}
  explicit Float(float scalar) : v(_mm256_set1_ps(scalar)) {}

  static Float load(const float* from) { return Float(_mm256_loadu_ps(from)); }
  static Float load(const Float16* from) {
    return Float(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
  void store(float* to) const { _mm256_storeu_ps(to, v); }
  void store(Float16* to) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), to_float16()); }

  __m128i to_float16() const {
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  friend Float rounded_to_float16(Float a) { return Float(_mm256_cvtph_ps(a.to_float16())); }

  // The even and the odd elements of `from`, which a shift and a mask tell apart.
  static void load_even_odd(const BFloat16* from, Float& even, Float& odd) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    even.v = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
    odd.v = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(-0x10000)));
  }
  static void store_even_odd(BFloat16* to, Float even, Float odd) {
    const __m256i low = _mm256_srli_epi32(to_bfloat16(even), 16);
    const __m256i both = _mm256_blend_epi16(low, to_bfloat16(odd), 0xaa);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), both);
  }
  // In the upper halves of the lanes, to nearest, ties to even: half a last place is added, a bit
  // less if the number is even. The lower half of a NaN is 0 in arithmetic with bfloat16 numbers,
  // so that it stays one.
  static __m256i to_bfloat16(Float a) {
    const __m256i bits = _mm256_castps_si256(a.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  }
  friend Float rounded_to_bfloat16(Float a) {
    const __m256i upper = _mm256_set1_epi32(-0x10000);
    return Float(_mm256_castsi256_ps(_mm256_and_si256(to_bfloat16(a), upper)));
  }

  friend Float operator+(Float a, Float b) { return Float(_mm256_add_ps(a.v, b.v)); }
  friend Float operator-(Float a, Float b) { return Float(_mm256_sub_ps(a.v, b.v)); }
  friend Float operator*(Float a, Float b) { return Float(_mm256_mul_ps(a.v, b.v)); }
  friend Float operator/(Float a, Float b) { return Float(_mm256_div_ps(a.v, b.v)); }
  friend Float fma(Float a, Float b, Float c) { return Float(_mm256_fmadd_ps(a.v, b.v, c.v)); }
  friend Float abs(Float a) { return Float(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)); }
  // c - a b, rounded once.
  friend Float fnma(Float a, Float b, Float c) { return Float(_mm256_fnmadd_ps(a.v, b.v, c.v)); }
  friend Float min(Float a, Float b) { return Float(_mm256_min_ps(a.v, b.v)); }
  friend Float max(Float a, Float b) { return Float(_mm256_max_ps(a.v, b.v)); }
  // t where x is negative, by the sign bit, 1 - t elsewhere; at -0 both are equal.
  friend Float complement_unless_negative(Float x, Float t) {
    return Float(_mm256_blendv_ps(_mm256_sub_ps(_mm256_set1_ps(1), t.v), t.v, x.v));
  }
  // The number whose exponent field is the low bits of `shifted`.
  friend Float from_exponent_field(Float shifted) {
    return Float(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23)));
  }
};

struct Vectors {
  using Double = avx2::Double;
  using Float = avx2::Float;
  using Bfloat16 = Two<Float>;
};

}  // namespace fused_sigmoid::avx2
