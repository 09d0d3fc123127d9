// The binary cross entropy of logits: over tensors on a CPU, without autograd, and with it on any
// device that has kernels. The formula is in losses/binary_cross_entropy.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace fused_sigmoid::binary_cross_entropy {

// By torch's numbers.
enum class Reduction { none, mean, sum };

// Targets have the logits' shape, and weights one that broadcasts to it; undefined ones are 1.
struct Operands {
  at::Tensor logits, targets, weights, pos_weights;
};

struct Results {
  at::Tensor loss;      // one number, or reduction "none": of the targets' dtype and layout
  at::Tensor gradient;  // of the loss's sum or mean by the logits, times a factor
  at::Tensor probability;
};

// What is asked for beside the loss.
struct Wanted {
  bool gradient = false, probability = false;
};

// Runs the kernels over tensors of floating dtypes and any strides. The sum is one of fixed
// blocks, in float64, and so the same for any number of threads. A gradient is multiplied by
// `factor`, and by 1 / n for the mean over n elements, before it is rounded.
Results run_on_cpu(const Operands& operands, Reduction reduction, Wanted wanted, double factor = 1);

// The same in operations of ATen, for tensors that the kernels must not see, and for a GPU without
// Triton. The gradient's factor is a tensor.
Results composed(const Operands& operands, Reduction reduction, Wanted wanted);
at::Tensor composed_gradient(const at::Tensor& factor, const Operands& operands,
                             Reduction reduction);

// With autograd: the loss and, if wanted, the probability, which has no history. No result if the
// operands need another route than the kernels.
std::optional<Results> loss(const Operands& operands, Reduction reduction, bool with_probability);

}  // namespace fused_sigmoid::binary_cross_entropy
