// Vectors of AVX-512 (F, BW, DQ, VL). Includes no torch header.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "half.h"
#include "two.h"

namespace fused_sigmoid::avx512 {

struct Double {
  static constexpr int64_t size = 8;
  using Group = Double;
  static constexpr int groups = 4;
  __m512d v;

  Double() = default;
  explicit Double(__m512d vector) : v(vector) {}
  explicit Double(double scalar) : v(_mm512_set1_pd(scalar)) {}
  static Double load(const double* from) { return Double(_mm512_loadu_pd(from)); }
  void store(double* to) const { _mm512_storeu_pd(to, v); }

  friend Double operator+(Double a, Double b) { return Double(_mm512_add_pd(a.v, b.v)); }
  friend Double operator-(Double a, Double b) { return Double(_mm512_sub_pd(a.v, b.v)); }
  friend Double operator*(Double a, Double b) { return Double(_mm512_mul_pd(a.v, b.v)); }
  friend Double operator/(Double a, Double b) { return Double(_mm512_div_pd(a.v, b.v)); }
  friend Double fma(Double a, Double b, Double c) { return Double(_mm512_fmadd_pd(a.v, b.v, c.v)); }
  friend Double abs(Double a) { return Double(_mm512_abs_pd(a.v)); }
  // c - a b, rounded once.
  friend Double fnma(Double a, Double b, Double c) {
    return Double(_mm512_fnmadd_pd(a.v, b.v, c.v));
  }
  friend Double min(Double a, Double b) { return Double(_mm512_min_pd(a.v, b.v)); }
  friend Double max(Double a, Double b) { return Double(_mm512_max_pd(a.v, b.v)); }
  // t where x is negative, by the sign bit, 1 - t elsewhere; at -0 both are equal.
  friend Double complement_unless_negative(Double x, Double t) {
    const __m512i sign = _mm512_castpd_si512(_mm512_set1_pd(-0.0));
    const __mmask8 positive = _mm512_testn_epi64_mask(_mm512_castpd_si512(x.v), sign);
    return Double(_mm512_mask_sub_pd(t.v, positive, _mm512_set1_pd(1), t.v));
  }
  // The number whose exponent field is the low bits of `shifted`.
  friend Double from_exponent_field(Double shifted) {
    return Double(_mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(shifted.v), 52)));
  }
};

struct Float {
  static constexpr int64_t size = 16;
  using Group = Float;
  static constexpr int groups = 4;
  __m512 v;

  Float() = default;
  explicit Float(__m512 vector) : v(vector) {}
  explicit Float(float scalar) : v(_mm512_set1_ps(scalar)) {}

  static Float load(const float* from) { return Float(_mm512_loadu_ps(from)); }
  static Float load(const Float16* from) {
    return Float(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
  }
  void store(float* to) const { _mm512_storeu_ps(to, v); }
  void store(Float16* to) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_float16());
  }

  __m256i to_float16() const {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  friend Float rounded_to_float16(Float a) { return Float(_mm512_cvtph_ps(a.to_float16())); }

  // The even and the odd elements of `from`, which a shift and a mask tell apart.
  static void load_even_odd(const BFloat16* from, Float& even, Float& odd) {
    const __m512i bits = _mm512_loadu_si512(from);
    even.v = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
    odd.v = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-0x10000)));
  }
  static void store_even_odd(BFloat16* to, Float even, Float odd) {
    const __m512i low = _mm512_srli_epi32(to_bfloat16(even), 16);
    const __m512i both = _mm512_mask_mov_epi16(low, 0xaaaaaaaa, to_bfloat16(odd));
    _mm512_storeu_si512(to, both);
  }
  // In the upper halves of the lanes, to nearest, ties to even: half a last place is added, a bit
  // less if the number is even. In integers, since vcvtneps2bf16 flushes subnormals. The lower
  // half of a NaN is 0 in arithmetic with bfloat16 numbers, so that it stays one.
  static __m512i to_bfloat16(Float a) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const __m512i below = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    return _mm512_mask_add_epi32(below, odd, below, _mm512_set1_epi32(1));
  }
  friend Float rounded_to_bfloat16(Float a) {
    const __m512i upper = _mm512_set1_epi32(-0x10000);
    return Float(_mm512_castsi512_ps(_mm512_and_si512(to_bfloat16(a), upper)));
  }

  friend Float operator+(Float a, Float b) { return Float(_mm512_add_ps(a.v, b.v)); }
  friend Float operator-(Float a, Float b) { return Float(_mm512_sub_ps(a.v, b.v)); }
  friend Float operator*(Float a, Float b) { return Float(_mm512_mul_ps(a.v, b.v)); }
  friend Float operator/(Float a, Float b) { return Float(_mm512_div_ps(a.v, b.v)); }
  friend Float fma(Float a, Float b, Float c) { return Float(_mm512_fmadd_ps(a.v, b.v, c.v)); }
  friend Float abs(Float a) { return Float(_mm512_abs_ps(a.v)); }
  // c - a b, rounded once.
  friend Float fnma(Float a, Float b, Float c) { return Float(_mm512_fnmadd_ps(a.v, b.v, c.v)); }
  friend Float min(Float a, Float b) { return Float(_mm512_min_ps(a.v, b.v)); }
  friend Float max(Float a, Float b) { return Float(_mm512_max_ps(a.v, b.v)); }
  // t where x is negative, by the sign bit, 1 - t elsewhere; at -0 both are equal.
  friend Float complement_unless_negative(Float x, Float t) {
    const __m512i sign = _mm512_castps_si512(_mm512_set1_ps(-0.0f));
    const __mmask16 positive = _mm512_testn_epi32_mask(_mm512_castps_si512(x.v), sign);
    return Float(_mm512_mask_sub_ps(t.v, positive, _mm512_set1_ps(1), t.v));
  }
  // The number whose exponent field is the low bits of `shifted`.
  friend Float from_exponent_field(Float shifted) {
    return Float(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23)));
  }
};

struct Vectors {
  using Double = avx512::Double;
  using Float = avx512::Float;
  using Bfloat16 = Two<Float>;
};

}  // namespace fused_sigmoid::avx512
