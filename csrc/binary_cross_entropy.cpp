// The kernels of cpu/ know neither shapes nor threads: blocks of elements go to them, in the order
// of the logits in memory. What lies in another order, has gaps or is broadcast is gathered.
#include "binary_cross_entropy.h"

#include <ATen/Dispatch.h>
#include <ATen/TensorIterator.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/fresh_memory.h"
#include "cpu/kernels.h"
#include "elementwise.h"
#include "floating_point_mode.h"
#include "functions/functions.h"
#include "layout.h"
#include "threads.h"

namespace fused_sigmoid::binary_cross_entropy {
namespace {

// In elements. The buffers of a block in float32 stay in the first-level cache.
constexpr int64_t block_size = 1024;
constexpr size_t most_bytes = block_size * sizeof(double);

// An operand whose elements are had in the order of another tensor's memory, which has no gaps.
class Gathered {
 public:
  Gathered() = default;
  Gathered(at::Tensor tensor, const at::Tensor& like) : tensor_(std::move(tensor)) {
    is_dense_ = tensor_.sizes() == like.sizes() && tensor_.is_non_overlapping_and_dense() &&
                is_laid_out_alike(tensor_, like);
    if (!is_dense_) {
      tensor_ = tensor_.expand(like.sizes());
      dims_ = dimensions_of({&tensor_, &like});
      remove_ones(dims_);
      sort_by_memory(dims_, /*i=*/1);
      // Such as those that a number is expanded to.
      join(dims_, /*tensors=*/1);
      if (dims_.empty()) dims_.push_back({1, {1}});
      is_dense_ = dims_.size() == 1 && dims_[0].strides[0] == 1;
    }
    data_ = static_cast<const char*>(tensor_.const_data_ptr());
    item_ = static_cast<int64_t>(tensor_.element_size());
  }

  // The elements of a block, in the buffer if they do not lie in memory as they are to be.
  const char* block(int64_t begin, int64_t count, char* buffer) const {
    if (is_dense_) return data_ + begin * item_;
    if (item_ == 8) return gather<8>(begin, count, buffer);
    if (item_ == 4) return gather<4>(begin, count, buffer);
    return gather<2>(begin, count, buffer);
  }

 private:
  template <int item>
  const char* gather(int64_t begin, int64_t count, char* buffer) const {
    const int64_t columns = dims_.back().size, step = dims_.back().strides[0] * item;
    int64_t row = begin / columns, column = begin % columns, offset = 0;
    at::DimVector index(dims_.size() - 1);
    for (size_t dim = index.size(); dim-- > 0;) {
      index[dim] = row % dims_[dim].size;
      offset += index[dim] * dims_[dim].strides[0];
      row /= dims_[dim].size;
    }
    for (char* to = buffer; count > 0; column = 0, step_to_next_row(index, offset)) {
      const int64_t part = std::min(count, columns - column);
      const char* from = data_ + offset * item + column * step;
      count -= part;
      if (step == item) {
        std::memcpy(to, from, static_cast<size_t>(part * item));
        to += part * item;
        continue;
      }
      for (int64_t i = 0; i < part; ++i, from += step, to += item) std::memcpy(to, from, item);
    }
    return buffer;
  }

  void step_to_next_row(at::DimVector& index, int64_t& offset) const {
    for (size_t dim = index.size(); dim-- > 0;) {
      const int64_t size = dims_[dim].size, stride = dims_[dim].strides[0];
      offset += stride;
      if (++index[dim] < size) return;
      offset -= size * stride;
      index[dim] = 0;
    }
  }

  at::Tensor tensor_;
  Dimensions dims_;
  const char* data_ = nullptr;
  int64_t item_ = 0;
  bool is_dense_ = false;
};

at::Tensor fresh(const at::Tensor& like, at::ScalarType dtype) {
  const at::Tensor made = at::empty_like(like, at::TensorOptions(at::kCPU).dtype(dtype));
  prepare_fresh_memory(made.mutable_data_ptr(), made.nbytes());
  return made;
}

// One number; what overflows is infinite, where scalar_tensor() would raise.
at::Tensor number(double value, const at::TensorOptions& options) {
  const at::Tensor made = at::empty({}, options);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, made.scalar_type(), "number", [&] {
    *made.mutable_data_ptr<scalar_t>() = static_cast<scalar_t>(value);
  });
  return made;
}

char* memory_of(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<char*>(tensor.mutable_data_ptr()) : nullptr;
}

// Adds neighbours, and then their sums: the error grows with the logarithm of the count.
double pairwise_sum(std::vector<double>& sums) {
  const size_t count = sums.size();
  for (size_t width = 1; width < count; width *= 2) {
    for (size_t i = 0; i + width < count; i += 2 * width) sums[i] += sums[i + width];
  }
  return sums.empty() ? 0 : sums[0];
}

// A call over operands of one dtype, and results that lie as the logits do.
struct Call {
  Gathered logits, targets, weights, pos_weights;
  char *losses, *gradients, *probabilities;
  double scale;
  int64_t item;
  LossKernel kernel;
  Kernel probability_kernel;
  bool is_weighted;

  double run(int64_t begin, int64_t count) const {
    alignas(64) char buffers[4][most_bytes];
    LossBlock block{logits.block(begin, count, buffers[0]),
                    targets.block(begin, count, buffers[1]),
                    is_weighted ? weights.block(begin, count, buffers[2]) : nullptr,
                    is_weighted ? pos_weights.block(begin, count, buffers[3]) : nullptr,
                    part(losses, begin),
                    part(gradients, begin),
                    scale};
    if (probabilities != nullptr) {
      // The block is in the cache now: this reads no memory.
      char* const data[] = {part(probabilities, begin), const_cast<char*>(block.logits)};
      probability_kernel(data, count);
    }
    return kernel(block, count);
  }

  char* part(char* memory, int64_t begin) const {
    return memory == nullptr ? nullptr : memory + begin * item;
  }
};

double run_blocks(const Call& call, int64_t count) {
  const int64_t blocks = (count + block_size - 1) / block_size;
  std::vector<double> sums(static_cast<size_t>(blocks));
  const FloatingPointMode mode;
  const auto run = [&](int64_t first, int64_t last) {
    mode.run([&] {
      for (int64_t block = first; block < last; ++block) {
        const int64_t begin = block * block_size;
        sums[static_cast<size_t>(block)] = call.run(begin, std::min(block_size, count - begin));
      }
    });
  };
  run_in_threads(sums.data(), blocks, at::internal::GRAIN_SIZE / block_size, run);
  return pairwise_sum(sums);
}

}  // namespace

Results run_on_cpu(const Operands& operands, Reduction reduction, Wanted wanted, double factor) {
  const at::Tensor &x = operands.logits, &t = operands.targets;
  const at::ScalarType dtype = c10::promoteTypes(x.scalar_type(), t.scalar_type());
  const at::ScalarType weight_dtype = dtype == at::kDouble ? at::kDouble : at::kFloat;
  const bool is_none = reduction == Reduction::none;
  const bool is_weighted = operands.weights.defined() || operands.pos_weights.defined();

  // What is written lies as the logits do, or where these have gaps, as torch closes them up.
  Results results;
  const at::Tensor like =
      x.is_non_overlapping_and_dense() ? x : at::empty_like(x, x.options().device(at::kMeta));
  // The loss has the strides of the targets, which may differ even where the order is the same.
  const bool is_target_alike = t.is_non_overlapping_and_dense() && is_laid_out_alike(t, like);
  if (is_none) results.loss = fresh(is_target_alike ? t : like, dtype);
  if (wanted.gradient) results.gradient = fresh(like, dtype);
  if (wanted.probability) results.probability = fresh(like, dtype);

  const auto gathered = [&](const at::Tensor& tensor, at::ScalarType to) {
    return Gathered(tensor.defined() ? converted(tensor, to) : number(1, x.options().dtype(to)),
                    like);
  };
  const int64_t count = x.numel();
  const double scale = reduction == Reduction::mean ? factor / static_cast<double>(count) : factor;
  const KernelTable& kernels = selected_kernels();
  const LossWork work{is_weighted, is_none, wanted.gradient};
  const Dtype of_kernel = kernel_dtype(dtype, "binary_cross_entropy_with_logits");
  Call call{gathered(x, dtype),
            gathered(t, dtype),
            is_weighted ? gathered(operands.weights, weight_dtype) : Gathered(),
            is_weighted ? gathered(operands.pos_weights, weight_dtype) : Gathered(),
            memory_of(results.loss),
            memory_of(results.gradient),
            memory_of(results.probability),
            scale,
            static_cast<int64_t>(c10::elementSize(dtype)),
            kernels.get(work, of_kernel),
            kernels.get({number_of_function<Sigmoid>, Work::value}, of_kernel),
            is_weighted};
  double sum = run_blocks(call, count);
  if (reduction == Reduction::mean) sum /= static_cast<double>(count);

  if (!is_none) {
    results.loss = number(sum, t.options());
  } else if (!is_target_alike || dtype != t.scalar_type()) {
    results.loss = at::empty_like(t).copy_(results.loss);
  }
  if (dtype != x.scalar_type()) {
    for (at::Tensor* result : {&results.gradient, &results.probability}) {
      if (result->defined()) *result = result->to(x.scalar_type());
    }
  }
  return results;
}

}  // namespace fused_sigmoid::binary_cross_entropy
