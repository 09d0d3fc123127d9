// The kernels' vectors in registers of AVX2 with FMA and F16C. The file includes no torch header.
#pragma once

#include <immintrin.h>

#include "vector.h"

namespace fused_sigmoid::avx2 {

struct Doubles : Registers<double, uint64_t, 32, _mm256_fmadd_pd, _mm256_min_pd, _mm256_max_pd> {
  static Register abs(Register a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
};

struct Floats : Registers<float, uint32_t, 32, _mm256_fmadd_ps, _mm256_min_ps, _mm256_max_ps> {
  static Register abs(Register a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static Register from_float16s(__m128i halves) { return _mm256_cvtph_ps(halves); }
  static __m128i to_float16s(Register a) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT); }
  // One register takes the even elements and one the odd, which a shift and a mask tell apart.
  static void from_bfloat16s(__m256i both, Register (&to)[2]) {
    to[0] = Register(_mm256_slli_epi32(both, 16));
    to[1] = Register(Bits(both) & 0xffff0000);
  }
  static __m256i to_bfloat16s(const Register (&from)[2]) {
    const __m256i even = _mm256_srli_epi32(__m256i(round_upper(from[0])), 16);
    return _mm256_blend_epi16(even, __m256i(round_upper(from[1])), 0xaa);
  }
  static Register rounded_to_bfloat16(Register a) { return Register(round_upper(a) & 0xffff0000); }
  // The upper halves are rounded to nearest, ties to even: half a last place is added, a bit less
  // to an even number. The lower half of a NaN of bfloat16 numbers is 0, so that it stays one.
  static Bits round_upper(Register a) { return Bits(a) + 0x7fff + ((Bits(a) >> 16) & 1); }
};

using Vectors = VectorsOf<Doubles, Floats, 2>;

}  // namespace fused_sigmoid::avx2
