// Written by csrc/numerics/generate_coefficients.py; change that and run it again.
// Constants of exp(-|x|); no torch header, no dependency.
// clang-format off
#pragma once

namespace fused_sigmoid {

struct Float32Constants {
  // Arguments are clamped to it: its exponential rounds to zero.
  static constexpr float limit = 0x1.b8p+6f;
  // 1 / ln 2.
  static constexpr float log2_e = 0x1.715476p+0f;
  // ln 2 rounded.
  static constexpr float ln2_high = 0x1.62e43p-1f;
  // ln 2 - ln2_high.
  static constexpr float ln2_low = -0x1.05c61p-29f;
  // Adding it rounds to an integer, kept in the low bits.
  static constexpr float round_shift = 0x1.8p+23f;
  // |p(r) / exp(r) - 1| <= 2**-27.961 on |r| <= ln(2)/2, proven.
  static constexpr float exp[7] = {
      0x1p+0f,
      0x1p+0f,
      0x1.fffffcp-2f,
      0x1.555492p-3f,
      0x1.5558f2p-5f,
      0x1.1239d6p-7f,
      0x1.6a246p-10f,
  };
};

struct Float64Constants {
  // Arguments are clamped to it: its exponential rounds to zero.
  static constexpr double limit = 0x1.77p+9;
  // 1 / ln 2.
  static constexpr double log2_e = 0x1.71547652b82fep+0;
  // ln 2 rounded.
  static constexpr double ln2_high = 0x1.62e42fefa39efp-1;
  // ln 2 - ln2_high.
  static constexpr double ln2_low = 0x1.abc9e3b39803fp-56;
  // Adding it rounds to an integer, kept in the low bits.
  static constexpr double round_shift = 0x1.8p+52;
  // |p(r) / exp(r) - 1| <= 2**-56.296 on |r| <= ln(2)/2, proven.
  static constexpr double exp[12] = {
      0x1p+0,
      0x1p+0,
      0x1.000000000000ap-1,
      0x1.55555555554fap-3,
      0x1.555555555088cp-5,
      0x1.1111111127bd1p-7,
      0x1.6c16c1842660ap-10,
      0x1.a01a012a57a75p-13,
      0x1.a0199a16e6d9ep-16,
      0x1.71df2561775cbp-19,
      0x1.28ad68b1b396dp-22,
      0x1.ad7f3efa4e08ap-26,
  };
};

}  // namespace fused_sigmoid
