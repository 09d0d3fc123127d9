// The kernels' vectors in registers of Advanced SIMD (NEON), which every 64-bit ARM has, with its
// fma and its conversions of float16. The file includes no torch header.
#pragma once

#include <arm_neon.h>

#include "vector.h"

namespace fused_sigmoid::neon {

// The intrinsics have the summand first. min and max are comparisons: of a number and a NaN, FMIN
// and FMAX return the NaN, whichever argument it is, and FMINNM and FMAXNM the number.
inline float64x2_t fma_doubles(float64x2_t a, float64x2_t b, float64x2_t c) {
  return vfmaq_f64(c, a, b);
}
inline float64x2_t min_doubles(float64x2_t a, float64x2_t b) {
  return vbslq_f64(vcltq_f64(a, b), a, b);
}
inline float64x2_t max_doubles(float64x2_t a, float64x2_t b) {
  return vbslq_f64(vcgtq_f64(a, b), a, b);
}
inline float32x4_t fma_floats(float32x4_t a, float32x4_t b, float32x4_t c) {
  return vfmaq_f32(c, a, b);
}
inline float32x4_t min_floats(float32x4_t a, float32x4_t b) {
  return vbslq_f32(vcltq_f32(a, b), a, b);
}
inline float32x4_t max_floats(float32x4_t a, float32x4_t b) {
  return vbslq_f32(vcgtq_f32(a, b), a, b);
}

struct Doubles : Registers<double, uint64_t, 16, fma_doubles, min_doubles, max_doubles> {
  static Register abs(Register a) { return vabsq_f64(a); }
  static void add_to(Wide (&sums)[2], Register numbers) { sums[0] += numbers; }
  // A look-up is of bytes. An entry's eight are numbered in halves: no product has 64 bits.
  static Bits entries(const uint64_t (&table)[8], Bits at) {
    const uint8_t* const bytes = reinterpret_cast<const uint8_t*>(table);
    const uint8x16x4_t all = {vld1q_u8(bytes), vld1q_u8(bytes + 16), vld1q_u8(bytes + 32),
                              vld1q_u8(bytes + 48)};
    const uint32x4_t low_words = vreinterpretq_u32_u64(at & 7);
    const uint32x4_t first_bytes = vmulq_n_u32(vtrn1q_u32(low_words, low_words), 0x08080808);
    const uint32x4_t each_byte = {0x03020100, 0x07060504, 0x03020100, 0x07060504};
    return Bits(vqtbl4q_u8(all, vreinterpretq_u8_u32(first_bytes + each_byte)));
  }
};

struct Floats : Registers<float, uint32_t, 16, fma_floats, min_floats, max_floats> {
  static Register abs(Register a) { return vabsq_f32(a); }
  static void add_to(Wide (&sums)[2], Register numbers) {
    sums[0] += vcvt_f64_f32(vget_low_f32(numbers));
    sums[1] += vcvt_high_f64_f32(numbers);
  }
  // A look-up is of bytes: entry j has the four from 4 j on.
  static Bits entries(const uint32_t (&table)[8], Bits at) {
    const uint8_t* const bytes = reinterpret_cast<const uint8_t*>(table);
    const uint8x16x2_t all = {vld1q_u8(bytes), vld1q_u8(bytes + 16)};
    const Bits each_byte = (at & 7) * 0x04040404 + 0x03020100;
    return Bits(vqtbl2q_u8(all, vreinterpretq_u8_u32(each_byte)));
  }
  static Register from_float16s(float16x4_t halves) { return vcvt_f32_f16(halves); }
  static float16x4_t to_float16s(Register a) { return vcvt_f16_f32(a); }
  // One register takes the even elements and one the odd, which a shift and a mask tell apart.
  static void from_bfloat16s(Bits both, Register (&to)[2]) {
    to[0] = Register(both << 16);
    to[1] = Register(both & 0xffff0000);
  }
  // The same for numbers that stand beside such elements.
  static void deal(Register first, Register second, Register (&to)[2]) {
    to[0] = vuzp1q_f32(first, second);
    to[1] = vuzp2q_f32(first, second);
  }
  // The even elements are shifted down, into the upper halves of the odd.
  template <bool half_up>
  static Bits to_bfloat16s(const Register (&from)[2]) {
    return vsriq_n_u32(round_upper<half_up>(from[1]), round_upper<half_up>(from[0]), 16);
  }
  static Register rounded_to_bfloat16(Register a) {
    return Register(round_upper<false>(a) & 0xffff0000);
  }
  // This is the rounding of vector_avx2.h.
  template <bool half_up>
  static Bits round_upper(Register a) {
    return Bits(a) + (half_up ? Bits() + 0x8000 : 0x7fff + ((Bits(a) >> 16) & 1));
  }
};

using Vectors = VectorsOf<Doubles, Floats, 2>;

}  // namespace fused_sigmoid::neon
