// The kernels' vectors in registers of AVX2 with FMA and F16C. The file includes no torch header.
#pragma once

#include <immintrin.h>

#include "vector.h"

namespace fused_sigmoid::avx2 {

// Every second word of eight 64-bit numbers, in their order.
template <int which>
inline __m256i words_of(__m256 first, __m256 second) {
  const __m256d by_lanes = _mm256_castps_pd(_mm256_shuffle_ps(first, second, which));
  return __m256i(_mm256_permute4x64_pd(by_lanes, _MM_SHUFFLE(3, 1, 2, 0)));
}
constexpr int low_words = _MM_SHUFFLE(2, 0, 2, 0), high_words = _MM_SHUFFLE(3, 1, 3, 1);

struct Doubles : Registers<double, uint64_t, 32, _mm256_fmadd_pd, _mm256_min_pd, _mm256_max_pd> {
  static Register abs(Register a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
  static void add_to(Wide (&sums)[2], Register numbers) { sums[0] += numbers; }
  // Permutations by three bits are of 32-bit words: one of the entries' low words, one of the high.
  static Bits entries(const uint64_t (&table)[8], Bits at) {
    const __m256 first = _mm256_loadu_ps(reinterpret_cast<const float*>(table));
    const __m256 second = _mm256_loadu_ps(reinterpret_cast<const float*>(table + 4));
    const __m256i words = _mm256_shuffle_epi32(__m256i(at), _MM_SHUFFLE(2, 2, 0, 0));
    const __m256i low = _mm256_permutevar8x32_epi32(words_of<low_words>(first, second), words);
    const __m256i high = _mm256_permutevar8x32_epi32(words_of<high_words>(first, second), words);
    return Bits(_mm256_blend_epi32(low, high, 0xaa));
  }
};

struct Floats : Registers<float, uint32_t, 32, _mm256_fmadd_ps, _mm256_min_ps, _mm256_max_ps> {
  static Register abs(Register a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static void add_to(Wide (&sums)[2], Register numbers) {
    sums[0] += _mm256_cvtps_pd(_mm256_castps256_ps128(numbers));
    sums[1] += _mm256_cvtps_pd(_mm256_extractf128_ps(numbers, 1));
  }
  static Bits entries(const uint32_t (&table)[8], Bits at) {
    const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table));
    return Bits(_mm256_permutevar8x32_epi32(all, __m256i(at)));
  }
  static Register from_float16s(__m128i halves) { return _mm256_cvtph_ps(halves); }
  static __m128i to_float16s(Register a) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT); }
  // One register takes the even elements and one the odd, which a shift and a mask tell apart.
  static void from_bfloat16s(__m256i both, Register (&to)[2]) {
    to[0] = Register(_mm256_slli_epi32(both, 16));
    to[1] = Register(Bits(both) & 0xffff0000);
  }
  // The same for numbers that stand beside such elements.
  static void deal(Register first, Register second, Register (&to)[2]) {
    to[0] = Register(words_of<low_words>(first, second));
    to[1] = Register(words_of<high_words>(first, second));
  }
  template <bool half_up>
  static __m256i to_bfloat16s(const Register (&from)[2]) {
    const __m256i even = _mm256_srli_epi32(__m256i(round_upper<half_up>(from[0])), 16);
    return _mm256_blend_epi16(even, __m256i(round_upper<half_up>(from[1])), 0xaa);
  }
  static Register rounded_to_bfloat16(Register a) {
    return Register(round_upper<false>(a) & 0xffff0000);
  }
  // The upper halves are rounded to nearest: half a last place is added, and for ties to go to even
  // a bit less to an even number. No NaN that comes of bfloat16 numbers overflows by it.
  template <bool half_up>
  static Bits round_upper(Register a) {
    return Bits(a) + (half_up ? Bits() + 0x8000 : 0x7fff + ((Bits(a) >> 16) & 1));
  }
};

// The 2 is of bfloat16: a register of the even elements and one of the odd. Why loops take two
// registers at a time of every dtype stands beside `Group` in vector.h.
using Vectors = VectorsOf<Doubles, Floats, 2>;

}  // namespace fused_sigmoid::avx2
