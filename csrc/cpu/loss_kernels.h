// The CPU kernels of the binary cross entropy. Includes no torch header.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fused_sigmoid {

// Elements in memory without gaps. The weights are of float64 beside float64, and else of float32.
struct LossBlock {
  const char *logits, *targets, *weights, *pos_weights;
  char *losses, *gradients;
  double scale;  // which gradients are multiplied by before they are rounded
};

// Computes `count` elements, and returns the sum of their losses if it does not write these.
using LossKernel = double (*)(const LossBlock& block, int64_t count);

// What a kernel does, which its number tells.
struct LossWork {
  bool is_weighted, writes_losses, writes_gradients;
  constexpr size_t number() const {
    return size_t{is_weighted} | size_t{writes_losses} << 1 | size_t{writes_gradients} << 2;
  }
};
constexpr size_t loss_work_count = 8;
constexpr LossWork loss_work(size_t number) {
  return {(number & 1) != 0, (number & 2) != 0, (number & 4) != 0};
}

}  // namespace fused_sigmoid
