// Vectors of AVX2 with FMA and F16C. Includes no torch header.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "half.h"

namespace fused_sigmoid::avx2 {

struct Double {
  using Scalar = double;
  static constexpr int64_t size = 4;
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
  friend Double negate(Double a) { return Double(_mm256_xor_pd(_mm256_set1_pd(-0.0), a.v)); }
  friend Double min(Double a, Double b) { return Double(_mm256_min_pd(a.v, b.v)); }
  // By the sign bit; at -0 both choices are equal.
  friend Double select_negative(Double x, Double negative, Double other) {
    return Double(_mm256_blendv_pd(other.v, negative.v, x.v));
  }
  // The number whose exponent field is the low bits of `shifted`.
  friend Double from_exponent_field(Double shifted) {
    return Double(_mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(shifted.v), 52)));
  }
};

struct Float {
  using Scalar = float;
  static constexpr int64_t size = 8;
  __m256 v;

  Float() = default;
  explicit Float(__m256 vector) : v(vector) {}
  explicit Float(float scalar) : v(_mm256_set1_ps(scalar)) {}

  static Float load(const float* from) { return Float(_mm256_loadu_ps(from)); }
  static Float load(const Float16* from) {
    return Float(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
  static Float load(const BFloat16* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return Float(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)));
  }
  void store(float* to) const { _mm256_storeu_ps(to, v); }
  void store(Float16* to) const {
    const __m128i bits = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bits);
  }
  void store(BFloat16* to) const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    // To nearest, ties to even: just below one half of a last place, one half if that is odd.
    const __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd);
    const __m256i rounded = _mm256_add_epi32(bits, half);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    const __m256i packed = _mm256_packus_epi32(high, high);
    const __m256i ordered = _mm256_permute4x64_epi64(packed, 0b00001000);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(ordered));
  }

  friend Float operator+(Float a, Float b) { return Float(_mm256_add_ps(a.v, b.v)); }
  friend Float operator-(Float a, Float b) { return Float(_mm256_sub_ps(a.v, b.v)); }
  friend Float operator*(Float a, Float b) { return Float(_mm256_mul_ps(a.v, b.v)); }
  friend Float operator/(Float a, Float b) { return Float(_mm256_div_ps(a.v, b.v)); }
  friend Float fma(Float a, Float b, Float c) { return Float(_mm256_fmadd_ps(a.v, b.v, c.v)); }
  friend Float abs(Float a) { return Float(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)); }
  friend Float negate(Float a) { return Float(_mm256_xor_ps(_mm256_set1_ps(-0.0f), a.v)); }
  friend Float min(Float a, Float b) { return Float(_mm256_min_ps(a.v, b.v)); }
  // By the sign bit; at -0 both choices are equal.
  friend Float select_negative(Float x, Float negative, Float other) {
    return Float(_mm256_blendv_ps(other.v, negative.v, x.v));
  }
  // The number whose exponent field is the low bits of `shifted`.
  friend Float from_exponent_field(Float shifted) {
    return Float(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23)));
  }
};

struct Vectors {
  using Double = avx2::Double;
  using Float = avx2::Float;
  using Float16 = fused_sigmoid::Float16;
  using BFloat16 = fused_sigmoid::BFloat16;
};

}  // namespace fused_sigmoid::avx2
