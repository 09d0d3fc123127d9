// The table of CPU kernels and the choice of an instruction set. Includes no torch header.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fused_sigmoid {

// A kernel walks `count` elements of its operands, outputs first, each with a stride in bytes.
// An output may be exactly the memory of an input, and must not overlap one otherwise.
using Kernel = void (*)(char** data, const int64_t* strides, int64_t count);

enum class Dtype { float64, float32, float16, bfloat16 };
constexpr int dtype_count = 4;

enum class Work {
  value,
  value_and_derivative,
  backward_from_input,
  backward_from_output,
  backward_from_derivative,
  backward_before_bce,
  backward_before_float32_bce,
};
constexpr int work_count = 7;

struct KernelTable {
  const char* instruction_set;
  Kernel kernels[work_count][dtype_count];

  Kernel get(Work work, Dtype dtype) const {
    return kernels[static_cast<int>(work)][static_cast<int>(dtype)];
  }
};

// The kernels in use: the best the CPU can run, or what the environment variable
// FUSED_SIGMOID_CPU names. Throws std::invalid_argument if that is unknown or cannot run here.
const KernelTable& selected_kernels();

// Names of the instruction sets that are compiled in and that this CPU can run, best first.
std::vector<std::string> instruction_sets();

// Makes the named instruction set the one in use, for tests and comparisons. Not meant to be
// called while kernels run. Throws std::invalid_argument like selected_kernels().
void select_instruction_set(const std::string& name);

}  // namespace fused_sigmoid
