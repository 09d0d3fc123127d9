// Vectors of AVX-512 (F, BW, DQ, VL). Includes no torch header.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "half.h"

namespace fused_sigmoid::avx512 {

struct Double {
  using Scalar = double;
  static constexpr int64_t size = 8;
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
  friend Double negate(Double a) { return Double(_mm512_xor_pd(_mm512_set1_pd(-0.0), a.v)); }
  friend Double min(Double a, Double b) { return Double(_mm512_min_pd(a.v, b.v)); }
  // By the sign bit; at -0 both choices are equal.
  friend Double select_negative(Double x, Double negative, Double other) {
    const __mmask8 sign = _mm512_movepi64_mask(_mm512_castpd_si512(x.v));
    return Double(_mm512_mask_blend_pd(sign, other.v, negative.v));
  }
  // The number whose exponent field is the low bits of `shifted`.
  friend Double from_exponent_field(Double shifted) {
    return Double(_mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(shifted.v), 52)));
  }
};

struct Float {
  using Scalar = float;
  static constexpr int64_t size = 16;
  __m512 v;

  Float() = default;
  explicit Float(__m512 vector) : v(vector) {}
  explicit Float(float scalar) : v(_mm512_set1_ps(scalar)) {}

  static Float load(const float* from) { return Float(_mm512_loadu_ps(from)); }
  static Float load(const Float16* from) {
    return Float(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
  }
  static Float load(const BFloat16* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return Float(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)));
  }
  void store(float* to) const { _mm512_storeu_ps(to, v); }
  void store(Float16* to) const {
    const __m256i bits = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
  }
  // In integers, since vcvtneps2bf16 flushes subnormals.
  void store(BFloat16* to) const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    // To nearest, ties to even: just below one half of a last place, one half if that is odd.
    const __m512i half = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), odd);
    const __m512i rounded = _mm512_add_epi32(bits, half);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i quieted =
        _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(quieted, 16)));
  }

  friend Float operator+(Float a, Float b) { return Float(_mm512_add_ps(a.v, b.v)); }
  friend Float operator-(Float a, Float b) { return Float(_mm512_sub_ps(a.v, b.v)); }
  friend Float operator*(Float a, Float b) { return Float(_mm512_mul_ps(a.v, b.v)); }
  friend Float operator/(Float a, Float b) { return Float(_mm512_div_ps(a.v, b.v)); }
  friend Float fma(Float a, Float b, Float c) { return Float(_mm512_fmadd_ps(a.v, b.v, c.v)); }
  friend Float abs(Float a) { return Float(_mm512_abs_ps(a.v)); }
  friend Float negate(Float a) { return Float(_mm512_xor_ps(_mm512_set1_ps(-0.0f), a.v)); }
  friend Float min(Float a, Float b) { return Float(_mm512_min_ps(a.v, b.v)); }
  // By the sign bit; at -0 both choices are equal.
  friend Float select_negative(Float x, Float negative, Float other) {
    const __mmask16 sign = _mm512_movepi32_mask(_mm512_castps_si512(x.v));
    return Float(_mm512_mask_blend_ps(sign, other.v, negative.v));
  }
  // The number whose exponent field is the low bits of `shifted`.
  friend Float from_exponent_field(Float shifted) {
    return Float(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23)));
  }
};

struct Vectors {
  using Double = avx512::Double;
  using Float = avx512::Float;
  using Float16 = fused_sigmoid::Float16;
  using BFloat16 = fused_sigmoid::BFloat16;
};

}  // namespace fused_sigmoid::avx512
