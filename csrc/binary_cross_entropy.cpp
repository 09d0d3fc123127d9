// The kernels of cpu/ know neither shapes nor threads: blocks of elements go to them, in the order
// of the logits in memory. What lies in another order, has gaps or is broadcast is gathered.
#include "binary_cross_entropy.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "cpu/fresh_memory.h"
#include "cpu/kernels.h"
#include "elementwise.h"
#include "floating_point_mode.h"
#include "functions/functions.h"
#include "layout.h"

namespace fused_sigmoid::binary_cross_entropy {
namespace {

// In elements. The buffers of a block in float32 stay in the first-level cache.
constexpr int64_t block_size = 1024;
constexpr size_t most_bytes = block_size * sizeof(double);

// The dimensions of a tensor without gaps, as they lie in its memory.
at::DimVector memory_order(const at::Tensor& dense) {
  at::DimVector order(dense.dim());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return dense.stride(a) > dense.stride(b); });
  return order;
}

// An operand whose elements are had in the order of another tensor's memory, which has no gaps.
class Gathered {
 public:
  Gathered() = default;
  Gathered(at::Tensor tensor, const at::Tensor& like) : tensor_(std::move(tensor)) {
    is_dense_ = tensor_.sizes() == like.sizes() && tensor_.is_non_overlapping_and_dense() &&
                is_laid_out_alike(tensor_, like);
    if (!is_dense_) {
      tensor_ = tensor_.expand(like.sizes()).permute(memory_order(like));
      is_dense_ = tensor_.is_contiguous();
      dims_ = joined_dimensions(tensor_);
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
  // A dimension of more than one element, with the stride in elements, and where in it a block is.
  struct Dimension {
    int64_t size, stride, index;
  };
  using Dimensions = c10::SmallVector<Dimension, 4>;

  // Neighbours that are one in memory are joined, such as those that a number is expanded to.
  static Dimensions joined_dimensions(const at::Tensor& tensor) {
    Dimensions dims;
    for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
      const int64_t size = tensor.size(dim), stride = tensor.stride(dim);
      if (size == 1) continue;
      if (!dims.empty() && dims.back().stride == stride * size) {
        dims.back() = {dims.back().size * size, stride, 0};
      } else {
        dims.push_back({size, stride, 0});
      }
    }
    if (dims.empty()) dims.push_back({1, 0, 0});
    return dims;
  }

  template <int item>
  const char* gather(int64_t begin, int64_t count, char* buffer) const {
    Dimensions outer = dims_;
    const Dimension inner = outer.pop_back_val();
    const int64_t columns = inner.size, step = inner.stride * item;
    int64_t row = begin / columns, column = begin % columns, offset = 0;
    for (auto dim = outer.rbegin(); dim != outer.rend(); ++dim) {
      dim->index = row % dim->size;
      offset += dim->index * dim->stride;
      row /= dim->size;
    }
    for (char* to = buffer; count > 0; column = 0, step_to_next_row(outer, offset)) {
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

  static void step_to_next_row(Dimensions& outer, int64_t& offset) {
    for (auto dim = outer.rbegin(); dim != outer.rend(); ++dim) {
      offset += dim->stride;
      if (++dim->index < dim->size) return;
      offset -= dim->size * dim->stride;
      dim->index = 0;
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

// Calls run(first, last) for all blocks, of which `sums` has one element each, on torch's threads.
// These are reached by torch's own loop over the sums: at::parallel_for is compiled here, and where
// that is without OpenMP it knows one thread alone.
template <class Run>
void run_in_threads(std::vector<double>& sums, Run run) {
  const int64_t blocks = static_cast<int64_t>(sums.size());
  constexpr int64_t fewest = at::internal::GRAIN_SIZE / block_size;
  if (blocks <= fewest || at::get_num_threads() == 1) return run(0, blocks);
  const at::Tensor places = at::from_blob(sums.data(), {blocks}, at::kDouble);
  at::TensorIterator::borrowing_nullary_op(places).for_each(
      [&](char** data, const int64_t*, int64_t length) {
        const int64_t first = reinterpret_cast<const double*>(data[0]) - sums.data();
        run(first, first + length);
      },
      fewest);
}

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
  run_in_threads(sums, run);
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
    return Gathered(tensor.defined() ? tensor.to(to) : number(1, x.options().dtype(to)), like);
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
