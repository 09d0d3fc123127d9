// The quotient of the GPU kernels (divide in triton/exponential.py), by a reciprocal, which is
// corrected in float32 and for a loss, and one correction, beside the rounded division: does it
// give the same results, for all magnitudes of a dtype and reciprocals up to two units in the last
// place off? NVIDIA's is off by one at the most.
//
//   quotient STEP SHARE SHARES
//
// tries every STEP-th float32 and all halves, or of SHARES shares of them the one numbered SHARE
// from 0. Its output are the numbers tried and, for each way to divide, how many results differ.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../csrc/cpu/vector_portable.h"
#include "../../csrc/functions/sigmoid.h"
#include "../../csrc/numerics/logistic_loss.h"

namespace {

using fused_sigmoid::portable::bits_as;

struct Rounded {
  static float quotient(float numerator, float sum) { return numerator / sum; }
};

template <int ulps, bool corrects_reciprocal>
struct ByReciprocal {
  static float quotient(float numerator, float sum) {
    float reciprocal = bits_as<float>(bits_as<uint32_t>(1.0f / sum) + ulps);
    if (corrects_reciprocal) {
      reciprocal = std::fma(std::fma(-sum, reciprocal, 1.0f), reciprocal, reciprocal);
    }
    const float quotient = numerator * reciprocal;
    return std::fma(std::fma(-sum, quotient, numerator), reciprocal, quotient);
  }
};

// Which must be seen to differ, or nothing would be.
struct Uncorrected {
  static float quotient(float numerator, float sum) { return numerator * (1.0f / sum); }
};

// What csrc/numerics computes with, with a division of one's choice.
template <class Division>
struct Number {
  float v;
  Number(float value) : v(value) {}
  friend Number operator+(Number a, Number b) { return a.v + b.v; }
  friend Number operator-(Number a, Number b) { return a.v - b.v; }
  friend Number operator*(Number a, Number b) { return a.v * b.v; }
  friend Number operator/(Number a, Number b) { return Division::quotient(a.v, b.v); }
  friend Number abs(Number a) { return std::fabs(a.v); }
  friend Number min(Number a, Number b) { return a.v < b.v ? a.v : b.v; }
  friend Number fma(Number a, Number b, Number c) { return std::fma(a.v, b.v, c.v); }
  friend Number fnma(Number a, Number b, Number c) { return std::fma(-a.v, b.v, c.v); }
  friend Number power_of_two(Number shifted, const uint32_t (&powers)[8]) {
    const uint32_t bits = bits_as<uint32_t>(shifted.v);
    return bits_as<float>(powers[bits & 7] + (bits << 20));
  }
};

struct Float32 {
  using Constants = fused_sigmoid::Float32Constants;
  static constexpr bool corrects_reciprocal = true;
  // Of the constants' limit, to which larger numbers are clamped.
  static constexpr uint32_t last = 0x42d00000;
  static float number(uint32_t bits) { return bits_as<float>(bits); }
  static uint32_t stored(float x) { return bits_as<uint32_t>(x); }
};

struct Float16 {
  using Constants = fused_sigmoid::Float16Constants;
  static constexpr bool corrects_reciprocal = false;
  static constexpr uint32_t last = 0x7c00;
  static float number(uint32_t bits) {
    return fused_sigmoid::portable::from_float16({static_cast<uint16_t>(bits)});
  }
  static uint32_t stored(float x) { return fused_sigmoid::portable::to_float16(x).bits; }
};

struct Bfloat16 {
  using Constants = fused_sigmoid::Bfloat16Constants;
  static constexpr bool corrects_reciprocal = false;
  static constexpr uint32_t last = 0x7f80;
  static float number(uint32_t bits) { return bits_as<float>(bits << 16); }
  static uint32_t stored(float x) { return fused_sigmoid::portable::to_bfloat16(x).bits; }
};

// The smaller of sigmoid(x) and 1 - sigmoid(x), as the sigmoid's kernels compute it, and as those
// of the loss do, whose numerator is no constant.
template <class Dtype>
struct OfSigmoid : Dtype {
  template <class V>
  static V smaller(V x) {
    return fused_sigmoid::Sigmoid::prepare<typename Dtype::Constants>(x);
  }
};

template <class Dtype, class Constants>
struct OfLoss : Dtype {
  static constexpr bool corrects_reciprocal = true;
  template <class V>
  static V smaller(V x) {
    return fused_sigmoid::logistic_loss<Constants>(abs(x)).smaller;
  }
};

constexpr uint32_t run = 4096;

// Value, complement and derivative, of which every kernel's results are made; in simple loops,
// which compilers make vectors of.
struct Results {
  uint32_t value[run], complement[run], derivative[run];
};

template <class Dtype, class Division>
void compute(const float* x, uint32_t many, Results& results) {
  using C = typename Dtype::Constants;
  for (uint32_t i = 0; i < many; ++i) {
    const auto t = Dtype::smaller(Number<Division>(x[i]));
    results.value[i] = Dtype::stored(1.0f - t.v);
    results.complement[i] = Dtype::stored(t.v);
    results.derivative[i] = Dtype::stored(fused_sigmoid::Sigmoid::derivative<C>(t, t).v);
  }
}

template <class Dtype, class Division>
uint32_t differences(const float* x, uint32_t many, const Results& expected) {
  static Results found;
  compute<Dtype, Division>(x, many, found);
  uint32_t differing = 0;
  for (uint32_t i = 0; i < many; ++i) {
    const uint32_t bits = (found.value[i] ^ expected.value[i]) |
                          (found.complement[i] ^ expected.complement[i]) |
                          (found.derivative[i] ^ expected.derivative[i]);
    differing += bits != 0;
  }
  return differing;
}

constexpr int ways = 6;
const char* const names[ways] = {"-2 ulp", "-1 ulp", "exact", "+1 ulp", "+2 ulp", "uncorrected"};

struct Count {
  uint64_t numbers = 0;
  uint64_t differences[ways] = {};
};

template <class Dtype>
Count count(uint32_t step, uint32_t share, uint32_t shares) {
  static Results expected;
  static float x[run];
  Count found;
  const uint64_t last = Dtype::last / step;
  for (uint64_t first = uint64_t{share} * run; first <= last; first += uint64_t{shares} * run) {
    const uint32_t many = static_cast<uint32_t>(last - first < run ? last - first + 1 : run);
    for (uint32_t i = 0; i < many; ++i) {
      x[i] = Dtype::number((static_cast<uint32_t>(first) + i) * step);
    }
    compute<Dtype, Rounded>(x, many, expected);
    uint64_t* to = found.differences;
    *to++ += differences<Dtype, ByReciprocal<-2, Dtype::corrects_reciprocal>>(x, many, expected);
    *to++ += differences<Dtype, ByReciprocal<-1, Dtype::corrects_reciprocal>>(x, many, expected);
    *to++ += differences<Dtype, ByReciprocal<0, Dtype::corrects_reciprocal>>(x, many, expected);
    *to++ += differences<Dtype, ByReciprocal<1, Dtype::corrects_reciprocal>>(x, many, expected);
    *to++ += differences<Dtype, ByReciprocal<2, Dtype::corrects_reciprocal>>(x, many, expected);
    *to++ += differences<Dtype, Uncorrected>(x, many, expected);
    found.numbers += many;
  }
  return found;
}

void print(const char* dtype, const Count& found, const char* end) {
  std::printf("\"%s\": {\"numbers\": %llu", dtype, static_cast<unsigned long long>(found.numbers));
  for (int way = 0; way < ways; ++way) {
    std::printf(", \"%s\": %llu", names[way],
                static_cast<unsigned long long>(found.differences[way]));
  }
  std::printf("}%s", end);
}

}  // namespace

static_assert(fused_sigmoid::Float32Constants::limit == 104.0f, "Float32::last is its bits");
static_assert(fused_sigmoid::Float32LossConstants::limit == 104.0f, "Float32::last is its bits");

int main(int count_of_arguments, char** arguments) {
  if (count_of_arguments != 4) return 2;
  const auto argument = [&](int i) {
    return static_cast<uint32_t>(std::strtoul(arguments[i], nullptr, 10));
  };
  const uint32_t step = argument(1), share = argument(2), shares = argument(3);
  std::printf("{");
  using fused_sigmoid::Float32LossConstants, fused_sigmoid::HalfLossConstants;
  print("float32", count<OfSigmoid<Float32>>(step, share, shares), ", ");
  print("float16", count<OfSigmoid<Float16>>(1, share, shares), ", ");
  print("bfloat16", count<OfSigmoid<Bfloat16>>(1, share, shares), ", ");
  print("float32 loss", count<OfLoss<Float32, Float32LossConstants>>(step, share, shares), ", ");
  print("float16 loss", count<OfLoss<Float16, HalfLossConstants>>(1, share, shares), ", ");
  print("bfloat16 loss", count<OfLoss<Bfloat16, HalfLossConstants>>(1, share, shares), "}\n");
}
