// Launches of compiled GPU kernels without Python: Triton compiles a kernel at its first launch and
// hands it over; from then on the calls that it fits come here. Needs no header of CUDA.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "functions/functions.h"
#include "layout.h"

namespace fused_sigmoid::gpu {

// How the tensors of a call lie beside one another, by their numbers in triton/elementwise.py.
enum class Layout {
  // They have no gaps and lie in one order.
  dense,
  // So do all but the gradient, which is one number, expanded, as y.sum() gives it.
  of_one,
  // They have at most two dimensions, once those are joined that lie within one another in all of
  // them, each tensor with strides of its own, and less than 2^31 elements.
  rows,
};
constexpr size_t layout_count = 3;

// What is compiled apart. Bit i of `wide` says that the i-th tensor, inputs first, can be read or
// written 16 bytes at a time.
struct Key {
  KernelNumber kernel;
  Layout layout;
  c10::DeviceIndex device;
  at::ScalarType dtype;
  unsigned wide;
};

// A CUfunction and its grid: `threads` for every `block_size` elements, in calls over `fewest` to
// `most` of them. Python's hooks see every launch, so there is none from here while one of their
// lists, whose lengths `hook_counts` points to, is not empty.
struct Launch {
  void* function;
  int64_t block_size;
  int64_t fewest;
  int64_t most;
  unsigned threads;
  std::vector<const ssize_t*> hook_counts;
};

// How many numbers a kernel gets in a layout.
constexpr size_t numbers_in(Layout layout) {
  return layout == Layout::rows ? 4 + 2 * most_operands : 1;
}

// The tensors of a call as a kernel gets them: the memory of each, the count of elements and, in
// rows, the columns with what divides by them (see `Divisor` in gpu_launch.cpp) and each tensor's
// strides from row to row and from column to column.
struct Call {
  Layout layout;
  unsigned wide;
  std::array<const void*, most_operands> pointers;
  c10::SmallVector<int64_t, numbers_in(Layout::rows)> numbers;
};

// The call of a kernel over its inputs and then its outputs, which have one shape, dtype and device
// and at least one element. There is none if they lie in no layout, or an output overlaps itself.
std::optional<Call> call_of(Work work, Tensors tensors);

// Reads the environment variable FUSED_SIGMOID_LAUNCH; throws std::invalid_argument if it is
// neither extension nor triton.
bool is_left_to_triton();

// Makes a launch the one for its key from now on; returns why it cannot be, or nothing. The device
// has to be current and the kernel's module loaded.
std::string add(const Key& key, Launch launch);

// Runs a kernel over tensors as `call_of` takes them, on the device's current stream. Returns
// false, having done nothing, where no launch was added for them.
bool launch(KernelNumber kernel, Tensors tensors);

// Drops what was added; a launch that is under way in another thread ends as it began.
void forget();

// How many launches there were in this process.
uint64_t launches();

// Whether `run` takes these: they have one dtype and shape on a CUDA device that has a launch, and
// a kernel may write to the outputs, which may be undefined.
bool fits(at::ArrayRef<at::Tensor*> outputs, Tensors inputs);

// Launches a kernel; outputs that are undefined are allocated as torch lays them out. Returns false
// where no launch was added for such tensors.
bool run(KernelNumber kernel, at::ArrayRef<at::Tensor*> outputs, Tensors inputs);

}  // namespace fused_sigmoid::gpu
