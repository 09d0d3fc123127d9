// The kernels' vectors in registers of AVX-512 (F, BW, DQ, VL). The file includes no torch header.
#pragma once

#include <immintrin.h>

#include "vector.h"

namespace fused_sigmoid::avx512 {

struct Doubles : Registers<double, uint64_t, 64, _mm512_fmadd_pd, _mm512_min_pd, _mm512_max_pd> {
  static Register abs(Register a) { return _mm512_abs_pd(a); }
  static void add_to(Wide (&sums)[2], Register numbers) { sums[0] += numbers; }
  static Bits entries(const uint64_t (&table)[8], Bits at) {
    return Bits(_mm512_permutexvar_epi64(__m512i(at), _mm512_loadu_si512(table)));
  }
};

struct Floats : Registers<float, uint32_t, 64, _mm512_fmadd_ps, _mm512_min_ps, _mm512_max_ps> {
  static Register abs(Register a) { return _mm512_abs_ps(a); }
  static void add_to(Wide (&sums)[2], Register numbers) {
    sums[0] += _mm512_cvtps_pd(_mm512_castps512_ps256(numbers));
    sums[1] += _mm512_cvtps_pd(_mm512_extractf32x8_ps(numbers, 1));
  }
  // The permutation goes by four bits, so that the table stands in the register twice.
  static Bits entries(const uint32_t (&table)[8], Bits at) {
    const __m256i once = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table));
    return Bits(_mm512_permutexvar_epi32(__m512i(at), _mm512_broadcast_i32x8(once)));
  }
  static Register from_float16s(__m256i halves) { return _mm512_cvtph_ps(halves); }
  static __m256i to_float16s(Register a) { return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT); }
  // One register takes the even elements and one the odd, which a shift and a mask tell apart.
  static void from_bfloat16s(__m512i both, Register (&to)[2]) {
    to[0] = Register(_mm512_slli_epi32(both, 16));
    to[1] = Register(Bits(both) & 0xffff0000);
  }
  // The same for numbers that stand beside such elements.
  static void deal(Register first, Register second, Register (&to)[2]) {
    const __m512i even =
        _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    to[0] = _mm512_permutex2var_ps(first, even, second);
    to[1] = _mm512_permutex2var_ps(first, _mm512_add_epi32(even, _mm512_set1_epi32(1)), second);
  }
  template <bool half_up>
  static __m512i to_bfloat16s(const Register (&from)[2]) {
    const __m512i even = _mm512_srli_epi32(__m512i(round_upper<half_up>(from[0])), 16);
    return _mm512_mask_mov_epi16(even, 0xaaaaaaaa, __m512i(round_upper<half_up>(from[1])));
  }
  static Register rounded_to_bfloat16(Register a) {
    return Register(round_upper<false>(a) & 0xffff0000);
  }
  // This is the rounding of vector_avx2.h, in integers because vcvtneps2bf16 flushes subnormals.
  template <bool half_up>
  static Bits round_upper(Register a) {
    if constexpr (half_up) return Bits(a) + 0x8000;
    const __m512i bits = __m512i(a), below = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    return Bits(_mm512_mask_add_epi32(below, odd, below, _mm512_set1_epi32(1)));
  }
};

using Vectors = VectorsOf<Doubles, Floats, 2>;

}  // namespace fused_sigmoid::avx512
