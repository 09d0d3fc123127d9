// Launches of compiled GPU kernels without Python: Triton compiles a kernel at its first launch and
// hands it over; from then on the calls that it fits come here. Needs no header of CUDA.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <array>
#include <cstdint>
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
  // These three where one number is the whole gradient.
  backward_of_one,
  backward_from_output_of_one,
  backward_from_derivative_of_one,
  // The loss has no gradient that is one number, so that these have none of the kind.
  backward_before_bce,
  backward_before_float32_bce,
  // Of an input that is kept for the backward pass.
  sigmoid_of_kept,
};
constexpr size_t kernels = 11;
constexpr std::array<size_t, kernels> operands = {1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 1};
constexpr std::array<size_t, kernels> results = {1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// What is compiled apart: tensors of one dtype on one device, where bit i of `aligned` says that
// the i-th, operands first, begins at a multiple of 16 bytes.
struct Key {
  Kernel kernel;
  c10::DeviceIndex device;
  at::ScalarType dtype;
  unsigned aligned;
};

// A CUfunction and its grid: `threads` for every `block_size` elements. Python's hooks see every
// launch, so there is none from here while one of their `hook_counts` is not 0.
struct Launch {
  void* function;
  int64_t block_size;
  unsigned threads;
  std::vector<const ssize_t*> hook_counts;
};

// Reads the environment variable FUSED_SIGMOID_LAUNCH; throws std::invalid_argument if it is
// neither extension nor triton.
bool is_left_to_triton();

// From now on the launch for its key; says why it cannot be, or nothing. Called with the device
// current and the kernel's module loaded.
std::string add(const Key& key, Launch launch);

// Runs a kernel over its operands and results, which have one dtype, device and dense layout and at
// least one element (a gradient of one number: that alone), on the device's current stream. Returns
// false, having done nothing, where no launch was added for them.
bool launch(Kernel kernel, at::ArrayRef<at::Tensor> tensors);

// Drops what was added; a launch that is under way in another thread ends as it began.
void forget();

// How many there were in this process.
uint64_t launches();

// Whether the tensors have one dtype, shape and dense layout on a CUDA device that has a launch,
// and are plain: what `run` takes.
bool fits(const at::Tensor& tensor);
bool fits(const at::Tensor& tensor, const at::Tensor& other);

// Whether the gradient is one number expanded to a tensor that fits, as y.sum() gives it.
bool fits_of_one(const at::Tensor& grad, const at::Tensor& tensor);

// The results of a kernel; none where no launch was added for such tensors.
c10::SmallVector<at::Tensor, 3> run(Kernel kernel, at::ArrayRef<at::Tensor> operands);

}  // namespace fused_sigmoid::gpu
