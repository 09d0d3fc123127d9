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

namespace fused_sigmoid::gpu {

// By their numbers in triton_kernels.py.
enum class Kernel {
  sigmoid,
  sigmoid_with_derivative,
  backward,
  backward_from_output,
  backward_from_derivative,
  backward_before_bce,
  backward_before_float32_bce,
  // Of an input that is kept for the backward pass.
  sigmoid_of_kept,
};
constexpr size_t kernels = 8;
constexpr std::array<size_t, kernels> operands = {1, 1, 2, 2, 2, 2, 2, 1};
constexpr std::array<size_t, kernels> results = {1, 2, 1, 1, 1, 1, 1, 1};
constexpr size_t most_tensors = 3;

// How the tensors of a call lie beside one another, by their numbers in triton_kernels.py.
enum class Layout {
  // Without gaps, all in one order.
  dense,
  // Likewise, but for a gradient that is one number, expanded, as y.sum() gives it.
  of_one,
  // Of two dimensions at the most, once those are joined that lie within one another in all of
  // them, each tensor with strides of its own; of less than 2^31 elements.
  rows,
};
constexpr size_t layouts = 3;

// What is compiled apart. Bit i of `wide` says that the i-th tensor, operands first, can be read or
// written 16 bytes at a time.
struct Key {
  Kernel kernel;
  Layout layout;
  c10::DeviceIndex device;
  at::ScalarType dtype;
  unsigned wide;
};

// A CUfunction and its grid: `threads` for every `block_size` elements, in calls over `fewest` to
// `most` of them. Python's hooks see every launch, so there is none from here while one of their
// `hook_counts` is not 0.
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
  return layout == Layout::rows ? 4 + 2 * most_tensors : 1;
}

// The tensors of a call as a kernel gets them: the memory of each, the count of elements and, in
// rows, the columns with what divides by them (see `Divisor` in gpu.cpp) and each tensor's strides
// from row to row and from column to column.
struct Call {
  Layout layout;
  unsigned wide;
  std::array<const void*, most_tensors> pointers;
  c10::SmallVector<int64_t, numbers_in(Layout::rows)> numbers;
};

// Of a kernel's operands and results, of one shape, dtype and device and at least one element. None
// if they lie in no layout, or a result's elements not one behind the other in its memory.
std::optional<Call> call_of(Kernel kernel, at::ArrayRef<at::Tensor> tensors);

// An empty tensor with the strides that torch gives the result of its operations on the operands.
at::Tensor empty_result(at::ArrayRef<at::Tensor> operands);

// Reads the environment variable FUSED_SIGMOID_LAUNCH; throws std::invalid_argument if it is
// neither extension nor triton.
bool is_left_to_triton();

// From now on the launch for its key; says why it cannot be, or nothing. Called with the device
// current and the kernel's module loaded.
std::string add(const Key& key, Launch launch);

// Runs a kernel over its operands and results, as `call_of` takes them, on the device's current
// stream. Returns false, having done nothing, where no launch was added for them.
bool launch(Kernel kernel, at::ArrayRef<at::Tensor> tensors);

// Drops what was added; a launch that is under way in another thread ends as it began.
void forget();

// How many there were in this process.
uint64_t launches();

// Whether the tensors have one dtype and shape on a CUDA device that has a launch, and are plain:
// what `run` takes.
bool fits(at::ArrayRef<at::Tensor> tensors);

// The results of a kernel, laid out as torch lays out those of its operands; none where no launch
// was added for such tensors.
c10::SmallVector<at::Tensor, 3> run(Kernel kernel, at::ArrayRef<at::Tensor> operands);

}  // namespace fused_sigmoid::gpu
