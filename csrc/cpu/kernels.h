// The table of CPU kernels, the choice of an instruction set, and a kernel over strided memory.
// Includes no torch header.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../functions/functions.h"
#include "loss_kernels.h"

namespace fused_sigmoid {

// A kernel computes `count` elements of its operands, outputs first, without gaps. An output may be
// exactly the memory of an input, and must not overlap one otherwise.
using Kernel = void (*)(char* const* data, int64_t count);

enum class Dtype { float64, float32, float16, bfloat16 };
constexpr size_t dtype_count = 4;

// For each work, by dtype.
using LossKernels = std::array<std::array<LossKernel, dtype_count>, loss_work_count>;

struct KernelTable {
  const char* instruction_set;
  std::array<std::array<Kernel, dtype_count>, kernel_count> kernels;
  LossKernels losses;

  Kernel get(KernelNumber number, Dtype dtype) const {
    return kernels[number.index()][static_cast<size_t>(dtype)];
  }
  LossKernel get(LossWork work, Dtype dtype) const {
    return losses[work.number()][static_cast<size_t>(dtype)];
  }
};

// The kernels in use: the best the CPU can run, or what the environment variable FUSED_SIGMOID_CPU
// names. Throws std::invalid_argument if that is unknown or cannot run here.
const KernelTable& selected_kernels();

// Names of the instruction sets that are compiled in and that this CPU can run, best first.
std::vector<std::string> instruction_sets();

// Makes the named instruction set the one in use, for tests and comparisons. Not meant to be called
// while kernels run. Throws std::invalid_argument like selected_kernels().
void select_instruction_set(const std::string& name);

// Whether this is one of AMD's processors that are called Zen 5.
bool is_zen5();

// Runs the kernel of a work over `count` rows of `length` elements of `item` bytes. `strides` holds
// the operands' strides within a row, outputs first, then those from row to row, all in bytes.
void run_strided(Kernel kernel, Work work, int64_t item, char* const* data, const int64_t* strides,
                 int64_t length, int64_t count);

}  // namespace fused_sigmoid
