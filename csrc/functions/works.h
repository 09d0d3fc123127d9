// The works: what can be computed per element with a function and its derivative, by numbers that
// CPU kernels, GPU kernels and fused_sigmoid/triton share. Includes no torch header.
#pragma once

#include <array>
#include <cstddef>

namespace fused_sigmoid {

enum class Work {
  value,
  value_and_derivative,
  // Gradients are formed of an incoming gradient and what was kept: the input, the output or the
  // derivative.
  backward,
  backward_from_output,
  backward_from_derivative,
  // These are for an output that nn.BCELoss was computed from: in the output's dtype, and in
  // float32 if the output has 16 bits.
  backward_before_bce,
  backward_before_float32_bce,
  // The value of an input that is kept for the backward pass: a GPU's cache is to hold it until
  // then.
  value_of_kept,
};
constexpr size_t work_count = 8;
constexpr size_t most_operands = 3;

constexpr std::array<const char*, work_count> work_names = {
    "value",
    "value_and_derivative",
    "backward",
    "backward_from_output",
    "backward_from_derivative",
    "backward_before_bce",
    "backward_before_float32_bce",
    "value_of_kept",
};

constexpr size_t number_of(Work work) { return static_cast<size_t>(work); }

constexpr size_t outputs_of(Work work) { return work == Work::value_and_derivative ? 2 : 1; }
constexpr size_t inputs_of(Work work) {
  const bool is_forward =
      work == Work::value || work == Work::value_and_derivative || work == Work::value_of_kept;
  return is_forward ? 1 : 2;
}
constexpr size_t operands_of(Work work) { return inputs_of(work) + outputs_of(work); }

}  // namespace fused_sigmoid
