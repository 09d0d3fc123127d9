// Written by csrc/numerics/generate_coefficients.py; change that and run it again.
// Constants of 1 / (1 + exp(|x|)) and log(1 + exp(-|x|)); no torch header, no dependency.
// clang-format off
#pragma once

#include <cstdint>

namespace fused_sigmoid {

struct Float32Constants {
  // Whether results are rounded once more, to 16 bits.
  static constexpr bool is_half = false;
  // Larger arguments are clamped to it: sigmoid(-limit), times any number, rounds to 0.
  static constexpr float limit = 0x1.ap+6f;
  // 1 / ln 2.
  static constexpr float log2_e = 0x1.715476p+0f;
  // Adding it rounds to a multiple of 1/8, which the low bits then count.
  static constexpr float round_shift = 0x1.8p+20f;
  // ln 2.
  static constexpr float ln2_high = 0x1.62e43p-1f;
  // What ln2_high lacks of ln 2.
  static constexpr float ln2_low = -0x1.05c61p-29f;
  // What stands above in 1 / (1 + exp(|x|)), scaled.
  static constexpr float numerator = 0x1.a1af94p-31f;
  // What stands below beside the exponential, scaled.
  static constexpr float summand = 0x1.a1af94p-31f;
  // p(r) = r ((r + exp[0])^2 + exp[1]) + exp[2] is in proportion to exp(r),
  // within a factor of 1 +- 2**-25.625 on |r| <= ln(2)/16, proven.
  static constexpr float exp[3] = {
      0x1.801028p+0f,
      0x1.dfe956p+1f,
      0x1.8000c8p+2f,
  };
  // powers[j] + (j << 20) are the bits of a number in proportion to 2^(j/8),
  // off by at most 0.04 ulp. That for j = 0 times p(0) is about the numerator.
  static constexpr uint32_t powers[8] = {
      0x2f0b3a3e,
      0x2f07d424,
      0x2f059202,
      0x2f048e45,
      0x2f04e5be,
      0x2f06b7da,
      0x2f0a26de,
      0x2f0f5829,
  };
};

struct Float64Constants {
  // Whether results are rounded once more, to 16 bits.
  static constexpr bool is_half = false;
  // Larger arguments are clamped to it: sigmoid(-limit), times any number, rounds to 0.
  static constexpr double limit = 0x1.75p+9;
  // 1 / ln 2.
  static constexpr double log2_e = 0x1.71547652b82fep+0;
  // Adding it rounds to a multiple of 1/8, which the low bits then count.
  static constexpr double round_shift = 0x1.8p+49;
  // ln 2.
  static constexpr double ln2_high = 0x1.62e42fefa39efp-1;
  // What ln2_high lacks of ln 2.
  static constexpr double ln2_low = 0x1.abc9e3b39803fp-56;
  // What stands above in 1 / (1 + exp(|x|)), scaled.
  static constexpr double numerator = 0x1.bd70a3d7bdd37p-61;
  // What stands below beside the exponential, scaled.
  static constexpr double summand = 0x1.bd70a3d7bdd37p-61;
  // p(r) = exp[0] + r (exp[1] + r (exp[2] + ... + r exp[7])) is in proportion to exp(r),
  // within a factor of 1 +- 2**-58.029 on |r| <= ln(2)/16, proven.
  static constexpr double exp[8] = {
      0x1.e6666666666a7p+0,
      0x1.e6666666666a7p+0,
      0x1.e666666666964p-1,
      0x1.4444444443c85p-2,
      0x1.4444443602f41p-4,
      0x1.0369d053c1ee8p-6,
      0x1.59e85a3d74c0dp-9,
      0x1.8b46a1b2f46f7p-12,
  };
  // powers[j] + (j << 49) are the bits of a number in proportion to 2^(j/8),
  // off by at most 0.06 ulp. That for j = 0 times p(0) is about the numerator.
  static constexpr uint64_t powers[8] = {
      0x3c1d4e25b9fba53f,
      0x3c1df52653e4f097,
      0x3c1d6ccdb321b0a8,
      0x3c1d008a6d0e25e4,
      0x3c1cb8d1bc36cf4a,
      0x3c1c98f24a1a9729,
      0x3c1ca487615d1cd1,
      0x3c1cdf7fdd478447,
  };
};

struct Float16Constants {
  // Whether results are rounded once more, to 16 bits.
  static constexpr bool is_half = true;
  // Larger arguments are clamped to it: sigmoid(-limit), times any number, rounds to 0.
  static constexpr float limit = 0x1.4p+5f;
  // 1 / ln 2.
  static constexpr float log2_e = 0x1.715476p+0f;
  // Adding it rounds to a multiple of 1/8, which the low bits then count.
  static constexpr float round_shift = 0x1.8p+20f;
  // ln 2.
  static constexpr float ln2_high = 0x1.62e432p-1f;
  // What ln2_high lacks of ln 2.
  static constexpr float ln2_low = 0x0p+0f;
  // What stands above in 1 / (1 + exp(|x|)), scaled.
  static constexpr float numerator = 0x1.9f3b64p-1f;
  // What stands below beside the exponential, scaled.
  static constexpr float summand = 0x1.9f3b5p-1f;
  // p(r) = r ((r + exp[0])^2 + exp[1]) + exp[2] is in proportion to exp(r),
  // within a factor of 1 +- 2**-20.772 on |r| <= ln(2)/16, proven.
  static constexpr float exp[3] = {
      0x1.801a96p+0f,
      0x1.dfea92p+1f,
      0x1.80093ap+2f,
  };
  // powers[j] + (j << 20) are the bits of a number in proportion to 2^(j/8),
  // off by at most 1.92 ulp. That for j = 0 times p(0) is about the numerator.
  static constexpr uint32_t powers[8] = {
      0x3e0a65d3,
      0x3e06ec7f,
      0x3e049567,
      0x3e037acc,
      0x3e03b956,
      0x3e057042,
      0x3e08c1a0,
      0x3e0dd293,
  };
};

struct Bfloat16Constants {
  // Whether results are rounded once more, to 16 bits.
  static constexpr bool is_half = true;
  // Larger arguments are clamped to it: sigmoid(-limit), times any number, rounds to 0.
  static constexpr float limit = 0x1.ap+6f;
  // 1 / ln 2.
  static constexpr float log2_e = 0x1.715476p+0f;
  // Adding it rounds to a multiple of 1/8, which the low bits then count.
  static constexpr float round_shift = 0x1.8p+20f;
  // ln 2.
  static constexpr float ln2_high = 0x1.62e43p-1f;
  // What ln2_high lacks of ln 2.
  static constexpr float ln2_low = 0x0p+0f;
  // What stands above in 1 / (1 + exp(|x|)), scaled.
  static constexpr float numerator = 0x1.9f3b7ap-31f;
  // What stands below beside the exponential, scaled.
  static constexpr float summand = 0x1.9f3b0cp-31f;
  // p(r) = (r + exp[0])^2 + exp[1] is in proportion to exp(r),
  // within a factor of 1 +- 2**-17.008 on |r| <= ln(2)/16, proven.
  static constexpr float exp[2] = {
      0x1.001178p+0f,
      0x1.ffd8eep-1f,
  };
  // powers[j] + (j << 20) are the bits of a number in proportion to 2^(j/8),
  // off by at most 4.58 ulp. That for j = 0 times p(0) is about the numerator.
  static constexpr uint32_t powers[8] = {
      0x2fcf9774,
      0x2fd26159,
      0x2fd6de91,
      0x2fd69b46,
      0x2fd2ca18,
      0x2fd01335,
      0x2fce9029,
      0x2fce5cc3,
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
  // Adding it rounds to a multiple of 1/8, which the low bits then count.
  static constexpr float round_shift = 0x1.8p+20f;
  // ln 2.
  static constexpr float ln2_high = 0x1.62e432p-1f;
  // What ln2_high lacks of ln 2.
  static constexpr float ln2_low = 0x0p+0f;
  // What stands above in 1 / (1 + exp(|x|)), scaled.
  static constexpr float numerator = 0x1.9f3b64p-31f;
  // What stands below beside the exponential, scaled.
  static constexpr float summand = 0x1.9f3b64p-31f;
  // p(r) = (r + exp[0])^2 + exp[1] is in proportion to exp(r),
  // within a factor of 1 +- 2**-15.850 on |r| <= ln(2)/16, proven.
  static constexpr float exp[2] = {
      0x1.000772p+0f,
      0x1.00008p+0f,
  };
  // powers[j] + (j << 20) are the bits of a number in proportion to 2^(j/8),
  // off by at most 46.28 ulp. That for j = 0 times p(0) is about the numerator.
  static constexpr uint32_t powers[8] = {
      0x2fcf9775,
      0x2fd26159,
      0x2fd6de93,
      0x2fd69b44,
      0x2fd2ca1c,
      0x2fd01371,
      0x2fce9024,
      0x2fce5cc3,
  };
};

struct Float32LossConstants {
  // Whether results are rounded once more, to 16 bits.
  static constexpr bool is_half = false;
  // Larger |x| are clamped to it: exp(-limit) rounds to 0.
  static constexpr float limit = 0x1.ap+6f;
  // 1 / ln 2.
  static constexpr float log2_e = 0x1.715476p+0f;
  // Adding it rounds to a multiple of 1/8, which the low bits then count.
  static constexpr float round_shift = 0x1.8p+20f;
  // ln 2.
  static constexpr float ln2_high = 0x1.62e43p-1f;
  // What ln2_high lacks of ln 2.
  static constexpr float ln2_low = -0x1.05c61p-29f;
  // The exponential E is scaled up, so that it stays normal; this takes it back.
  static constexpr float inverse_scale = 0x1p-30f;
  // What stands below beside E in E / (E + 2^scale).
  static constexpr float summand = 0x1p+30f;
  // p(r) = exp_minus_one[0] + r (exp_minus_one[1] + ... + r exp_minus_one[4]):
  // 1 + p(r) is in proportion to exp(-r), within a factor of 1 +- 2**-30.260
  // on |r| <= ln(2)/16, proven.
  static constexpr float exp_minus_one[5] = {
      0x1.508a96p-9f,
      -0x1.00a846p+0f,
      0x1.00a844p-1f,
      -0x1.562ebcp-3f,
      0x1.5635c8p-5f,
  };
  // powers[j] + (j << 20) are the bits of a number in proportion to 2^(j/8),
  // off by at most 0.04 ulp. That for j = 0 times 1 + p(0) is about the scale.
  static constexpr uint32_t powers[8] = {
      0x4e7f5829,
      0x4e7b3a3e,
      0x4e77d424,
      0x4e759202,
      0x4e748e45,
      0x4e74e5be,
      0x4e76b7da,
      0x4e7a26de,
  };
  // q(e) = log1p[0] + e (log1p[1] + ... + e log1p[8]):
  // e + e^2 q(e) is log(1 + e), within a factor of 1 +- 2**-27.272
  // on 0 <= e <= 1, proven.
  static constexpr float log1p[9] = {
      -0x1.ffffccp-2f,
      0x1.554d22p-2f,
      -0x1.ff160ap-3f,
      0x1.9305f6p-3f,
      -0x1.39818cp-3f,
      0x1.b23326p-4f,
      -0x1.d1f56ap-5f,
      0x1.443a38p-6f,
      -0x1.a6f30ap-9f,
  };
};

struct Float64LossConstants {
  // Whether results are rounded once more, to 16 bits.
  static constexpr bool is_half = false;
  // Larger |x| are clamped to it: exp(-limit) rounds to 0.
  static constexpr double limit = 0x1.75p+9;
  // 1 / ln 2.
  static constexpr double log2_e = 0x1.71547652b82fep+0;
  // Adding it rounds to a multiple of 1/8, which the low bits then count.
  static constexpr double round_shift = 0x1.8p+49;
  // ln 2.
  static constexpr double ln2_high = 0x1.62e42fefa39efp-1;
  // What ln2_high lacks of ln 2.
  static constexpr double ln2_low = 0x1.abc9e3b39803fp-56;
  // The exponential E is scaled up, so that it stays normal; this takes it back.
  static constexpr double inverse_scale = 0x1p-60;
  // What stands below beside E in E / (E + 2^scale).
  static constexpr double summand = 0x1p+60;
  // p(r) = exp_minus_one[0] + r (exp_minus_one[1] + ... + r exp_minus_one[7]):
  // 1 + p(r) is in proportion to exp(-r), within a factor of 1 +- 2**-58.238
  // on |r| <= ln(2)/16, proven.
  static constexpr double exp_minus_one[8] = {
      0x1.4f0c2fecba178p-33,
      -0x1.00000000a7862p+0,
      0x1.00000000a79d3p-1,
      -0x1.555555563183bp-3,
      0x1.5555554730b33p-5,
      -0x1.111111c8c3197p-7,
      0x1.6c1d012028ebap-10,
      -0x1.9feb4e0ab2f31p-13,
  };
  // powers[j] + (j << 49) are the bits of a number in proportion to 2^(j/8),
  // off by at most 0.05 ulp. That for j = 0 times 1 + p(0) is about the scale.
  static constexpr uint64_t powers[8] = {
      0x43afffffffeb0f3d,
      0x43af72b83c71e681,
      0x43af06fe0a25438e,
      0x43aebfdad5289621,
      0x43aea09e66706d2b,
      0x43aeace5421a7b25,
      0x43aee89f994937d5,
      0x43af5818dce870b0,
  };
  // q(e) = log1p[0] + e (log1p[1] + ... + e log1p[19]):
  // e + e^2 q(e) is log(1 + e), within a factor of 1 +- 2**-56.225
  // on 0 <= e <= 1, proven.
  static constexpr double log1p[20] = {
      -0x1.fffffffffff8cp-2,
      0x1.5555555550558p-2,
      -0x1.fffffffd8ad4dp-3,
      0x1.99999949ef039p-3,
      -0x1.55554f35fae08p-3,
      0x1.2491f8d912de2p-3,
      -0x1.fffa2ca5ad1a2p-4,
      0x1.c6f48093538adp-4,
      -0x1.98c934fba8553p-4,
      0x1.710eb876e7211p-4,
      -0x1.4ab19ef65ac7dp-4,
      0x1.1f8c63a4df238p-4,
      -0x1.d517dbb272efap-5,
      0x1.58236d8a66483p-5,
      -0x1.b1ba5093f2e3ep-6,
      0x1.bf3997f25e029p-7,
      -0x1.64e71e1957d98p-8,
      0x1.9961580a7a6d6p-10,
      -0x1.2a3e927b59a2ep-12,
      0x1.9cb8017cd8463p-16,
  };
};

struct HalfLossConstants {
  // Whether results are rounded once more, to 16 bits.
  static constexpr bool is_half = true;
  // Larger |x| are clamped to it: exp(-limit) rounds to 0.
  static constexpr float limit = 0x1.ap+6f;
  // 1 / ln 2.
  static constexpr float log2_e = 0x1.715476p+0f;
  // Adding it rounds to a multiple of 1/8, which the low bits then count.
  static constexpr float round_shift = 0x1.8p+20f;
  // ln 2.
  static constexpr float ln2_high = 0x1.62e43p-1f;
  // What ln2_high lacks of ln 2.
  static constexpr float ln2_low = -0x1.05c61p-29f;
  // The exponential E is scaled up, so that it stays normal; this takes it back.
  static constexpr float inverse_scale = 0x1p-30f;
  // What stands below beside E in E / (E + 2^scale).
  static constexpr float summand = 0x1.fffffap+29f;
  // p(r) = exp_minus_one[0] + r (exp_minus_one[1] + ... + r exp_minus_one[4]):
  // 1 + p(r) is in proportion to exp(-r), within a factor of 1 +- 2**-24.001
  // on |r| <= ln(2)/16, proven.
  static constexpr float exp_minus_one[5] = {
      0x1.508a96p-9f,
      -0x1.00a846p+0f,
      0x1.00a842p-1f,
      -0x1.562ebcp-3f,
      0x1.5635c8p-5f,
  };
  // powers[j] + (j << 20) are the bits of a number in proportion to 2^(j/8),
  // off by at most 1.58 ulp. That for j = 0 times 1 + p(0) is about the scale.
  static constexpr uint32_t powers[8] = {
      0x4e7f5829,
      0x4e7b3a3c,
      0x4e77d425,
      0x4e759202,
      0x4e748e44,
      0x4e74e5be,
      0x4e76b7d9,
      0x4e7a26de,
  };
  // q(e) = log1p[0] + e (log1p[1] + ... + e log1p[8]):
  // e + e^2 q(e) is log(1 + e), within a factor of 1 +- 2**-25.350
  // on 0 <= e <= 1, proven.
  static constexpr float log1p[9] = {
      -0x1.ffffcep-2f,
      0x1.554d22p-2f,
      -0x1.ff160ap-3f,
      0x1.9305fap-3f,
      -0x1.39818cp-3f,
      0x1.b23326p-4f,
      -0x1.d1f56ap-5f,
      0x1.443a2ep-6f,
      -0x1.a6f316p-9f,
  };
};

}  // namespace fused_sigmoid
