// Written by csrc/numerics/generate_coefficients.py; change that and run it again.
// Constants of 1 / (1 + exp(|x|)); no torch header, no dependency.
// clang-format off
#pragma once

namespace fused_sigmoid {

struct Float32Constants {
  // Whether results are rounded once more, to 16 bits.
  static constexpr bool is_half = false;
  // Larger arguments are clamped to it: sigmoid(-limit), times any number, rounds to 0.
  static constexpr float limit = 0x1.ap+6f;
  // 1 / ln 2.
  static constexpr float log2_e = 0x1.715476p+0f;
  // Adding it rounds to an integer; the low bits are then an exponent field.
  static constexpr float round_shift = 0x1.8000c2p+23f;
  // ln 2.
  static constexpr float ln2_high = 0x1.62e43p-1f;
  // What ln2_high lacks of ln 2.
  static constexpr float ln2_low = -0x1.05c61p-29f;
  // What stands above in 1 / (1 + exp(|x|)), scaled.
  static constexpr float numerator = 0x1.a98p-31f;
  // What stands below beside the exponential, scaled.
  static constexpr float summand = 0x1.a98p-31f;
  // |p(r) / (0.8310546875 exp(r)) - 1| <= 2**-27.916 on |r| <= ln(2)/2, proven.
  static constexpr float exp[7] = {
      0x1.a98p-1f,
      0x1.a98p-1f,
      0x1.a97ffcp-2f,
      0x1.1baa08p-3f,
      0x1.1badaap-5f,
      0x1.c7cb2p-8f,
      0x1.2cf5bap-10f,
  };
};

struct Float64Constants {
  // Whether results are rounded once more, to 16 bits.
  static constexpr bool is_half = false;
  // Larger arguments are clamped to it: sigmoid(-limit), times any number, rounds to 0.
  static constexpr double limit = 0x1.75p+9;
  // 1 / ln 2.
  static constexpr double log2_e = 0x1.71547652b82fep+0;
  // Adding it rounds to an integer; the low bits are then an exponent field.
  static constexpr double round_shift = 0x1.80000000003c3p+52;
  // ln 2.
  static constexpr double ln2_high = 0x1.62e42fefa39efp-1;
  // What ln2_high lacks of ln 2.
  static constexpr double ln2_low = 0x1.abc9e3b39803fp-56;
  // What stands above in 1 / (1 + exp(|x|)), scaled.
  static constexpr double numerator = 0x1.a98p-61;
  // What stands below beside the exponential, scaled.
  static constexpr double summand = 0x1.a98p-61;
  // |p(r) / (0.8310546875 exp(r)) - 1| <= 2**-57.494 on |r| <= ln(2)/2, proven.
  static constexpr double exp[12] = {
      0x1.a98p-1,
      0x1.a98p-1,
      0x1.a98000000001p-2,
      0x1.1baaaaaaaaa5fp-3,
      0x1.1baaaaaaa6adbp-5,
      0x1.c5ddddde038ccp-8,
      0x1.2e93e95292e4dp-10,
      0x1.59cd9c77f0585p-13,
      0x1.59cd46ce88599p-16,
      0x1.33623250bff25p-19,
      0x1.ed1c39835bff3p-23,
      0x1.64ef7f968459bp-26,
  };
};

struct Float16Constants {
  // Whether results are rounded once more, to 16 bits.
  static constexpr bool is_half = true;
  // Larger arguments are clamped to it: sigmoid(-limit), times any number, rounds to 0.
  static constexpr float limit = 0x1.4p+5f;
  // 1 / ln 2.
  static constexpr float log2_e = 0x1.715476p+0f;
  // Adding it rounds to an integer; the low bits are then an exponent field.
  static constexpr float round_shift = 0x1.8000fep+23f;
  // ln 2.
  static constexpr float ln2_high = 0x1.62e432p-1f;
  // What ln2_high lacks of ln 2.
  static constexpr float ln2_low = 0x0p+0f;
  // What stands above in 1 / (1 + exp(|x|)), scaled.
  static constexpr float numerator = 0x1.00000ap+0f;
  // What stands below beside the exponential, scaled.
  static constexpr float summand = 0x1.fffffep-1f;
  // |p(r) / exp(r) - 1| <= 2**-19.477 on |r| <= ln(2)/2, proven.
  static constexpr float exp[6] = {
      0x1.000012p+0f,
      0x1.00001p+0f,
      0x1.fffep-2f,
      0x1.555ba6p-3f,
      0x1.575966p-5f,
      0x1.0fd06p-7f,
  };
};

struct Bfloat16Constants {
  // Whether results are rounded once more, to 16 bits.
  static constexpr bool is_half = true;
  // Larger arguments are clamped to it: sigmoid(-limit), times any number, rounds to 0.
  static constexpr float limit = 0x1.ap+6f;
  // 1 / ln 2.
  static constexpr float log2_e = 0x1.715476p+0f;
  // Adding it rounds to an integer; the low bits are then an exponent field.
  static constexpr float round_shift = 0x1.8000c2p+23f;
  // ln 2.
  static constexpr float ln2_high = 0x1.62e43p-1f;
  // What ln2_high lacks of ln 2.
  static constexpr float ln2_low = 0x0p+0f;
  // What stands above in 1 / (1 + exp(|x|)), scaled.
  static constexpr float numerator = 0x1p-30f;
  // What stands below beside the exponential, scaled.
  static constexpr float summand = 0x1p-30f;
  // |p(r) / exp(r) - 1| <= 2**-17.162 on |r| <= ln(2)/2, proven.
  static constexpr float exp[5] = {
      0x1.ffffe8p-1f,
      0x1.fff9ccp-1f,
      0x1.0004e4p-1f,
      0x1.57e0bcp-3f,
      0x1.53a0d8p-5f,
  };
};

struct Bfloat16ValueConstants {
  // Whether results are rounded once more, to 16 bits.
  static constexpr bool is_half = true;
  // Larger arguments are clamped to it: sigmoid(-limit), times any number, rounds to 0.
  static constexpr float limit = 0x1.ap+6f;
  // Of 1 / (1 + exp(-x)), where `limit` is that of -x: sigmoid(x) rounds to 1.
  static constexpr float upper_limit = 0x1.4p+5f;
  // 1 / ln 2.
  static constexpr float log2_e = 0x1.715476p+0f;
  // Adding it rounds to an integer; the low bits are then an exponent field.
  static constexpr float round_shift = 0x1.8000c2p+23f;
  // ln 2.
  static constexpr float ln2_high = 0x1.62e43p-1f;
  // What ln2_high lacks of ln 2.
  static constexpr float ln2_low = 0x0p+0f;
  // What stands above in 1 / (1 + exp(|x|)), scaled.
  static constexpr float numerator = 0x1p-30f;
  // What stands below beside the exponential, scaled.
  static constexpr float summand = 0x1p-30f;
  // |p(r) / exp(r) - 1| <= 2**-17.019 on |r| <= ln(2)/2, proven.
  static constexpr float exp[5] = {
      0x1.fffff8p-1f,
      0x1.fff9c4p-1f,
      0x1.0004dcp-1f,
      0x1.57e13cp-3f,
      0x1.53a2e2p-5f,
  };
};

}  // namespace fused_sigmoid
