// The binary cross entropy of logits on a GPU by kernels that Triton compiled: operands of one
// dtype and layout, without weights. All others take Triton's own launches.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <cstring>

#include "binary_cross_entropy.h"
#include "gpu_launch.h"
#include "layout.h"
#include "operators.h"

namespace fused_sigmoid::binary_cross_entropy {
namespace {

using gpu::Added;
using gpu::LossKernel;

// For Triton a pointer to a multiple of 16 bytes is another kernel.
bool is_aligned(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

// The pointers and numbers of a launch, in the order of the kernel's parameters.
class Parameters {
 public:
  void add_read(const at::Tensor& tensor) { add(tensor.const_data_ptr()); }
  void add_written(const at::Tensor& tensor) { add(tensor.mutable_data_ptr()); }

  template <class Value>
  void add(Value value) {
    static_assert(sizeof(Value) == sizeof(uint64_t));
    std::memcpy(&values_.emplace_back(), &value, sizeof value);
  }

  void run(const Added& kernel, const at::Tensor& on, int64_t count) {
    c10::SmallVector<void*, most> pointers;
    for (uint64_t& each : values_) pointers.push_back(&each);
    gpu::run(kernel, on.device(), count, pointers);
  }

 private:
  static constexpr size_t most = 8;
  c10::SmallVector<uint64_t, most> values_;
};

}  // namespace

std::optional<Results> run_on_gpu(const Operands& of, Reduction reduction, Wanted wanted) {
  const at::Tensor &x = of.logits, &t = of.targets;
  const int64_t count = x.numel();
  if (!x.is_cuda() || count == 0 || of.weights.defined() || of.pos_weights.defined() ||
      t.scalar_type() != x.scalar_type() || t.device() != x.device() || !is_unobserved(t) ||
      !x.is_non_overlapping_and_dense() || !t.is_non_overlapping_and_dense() ||
      !is_laid_out_alike(x, t) || !is_aligned(x) || !is_aligned(t)) {
    return std::nullopt;
  }
  const bool is_reduced = reduction != Reduction::none;
  const unsigned form =
      (is_reduced ? 0 : 1) | (wanted.gradient ? 2 : 0) | (wanted.probability ? 4 : 0);
  const Added* of_losses =
      gpu::find({LossKernel::losses, form, x.device().index(), x.scalar_type()}, count);
  if (of_losses == nullptr) return std::nullopt;
  const int64_t blocks = gpu::programs(*of_losses, count);
  const Added* of_total = nullptr;
  if (is_reduced) {
    of_total = gpu::find({LossKernel::total, 0, x.device().index(), x.scalar_type()}, blocks);
    if (of_total == nullptr) return std::nullopt;
  }

  Results results;
  at::Tensor sums;
  if (is_reduced) {
    sums = at::empty({blocks}, x.options().dtype(at::kDouble));
    results.loss = at::empty({}, x.options());
  } else {
    results.loss = at::empty_like(t);
  }
  const double divisor = reduction == Reduction::mean ? static_cast<double>(count) : 1;
  Parameters parameters;
  parameters.add_read(x);
  parameters.add_read(t);
  parameters.add_written(is_reduced ? sums : results.loss);
  if (wanted.gradient) parameters.add_written(results.gradient = at::empty_like(x));
  if (wanted.probability) parameters.add_written(results.probability = at::empty_like(x));
  parameters.add(1 / divisor);
  parameters.add(count);
  parameters.run(*of_losses, x, count);
  if (is_reduced) {
    Parameters of_sums;
    of_sums.add_read(sums);
    of_sums.add_written(results.loss);
    of_sums.add(divisor);
    of_sums.add(blocks);
    of_sums.run(*of_total, x, blocks);
  }
  return results;
}

bool multiply_on_gpu(const at::Tensor& tensor, const at::Tensor& number) {
  const int64_t count = tensor.numel();
  if (!tensor.is_cuda() || number.device() != tensor.device() ||
      number.scalar_type() != tensor.scalar_type() || count == 0 ||
      !tensor.is_non_overlapping_and_dense() || !is_aligned(tensor) || !is_aligned(number)) {
    return false;
  }
  const Added* found =
      gpu::find({LossKernel::multiply, 0, tensor.device().index(), tensor.scalar_type()}, count);
  if (found == nullptr) return false;
  Parameters parameters;
  parameters.add_written(tensor);
  parameters.add_read(number);
  parameters.add(count);
  parameters.run(*found, tensor, count);
  return true;
}

}  // namespace fused_sigmoid::binary_cross_entropy
