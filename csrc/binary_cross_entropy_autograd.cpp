// The node of the binary cross entropy in the autograd graph, and its operators. The forward pass
// writes the gradient as well, so that the backward pass has little to do; second derivatives are
// those of the formula in ATen operations.
#include <ATen/ExpandUtils.h>
#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/isinf.h>
#include <ATen/ops/log1p.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

#include <array>
#include <mutex>
#include <utility>

#include "binary_cross_entropy.h"
#include "layout.h"
#include "node.h"
#include "operators.h"

namespace fused_sigmoid::binary_cross_entropy {
namespace {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

constexpr const char* name = "fused_sigmoid::_binary_cross_entropy_with_logits";

OptionalTensor optional(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

template <class Signature>
c10::TypedOperatorHandle<Signature> find_operator(const std::string& full_name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(full_name.c_str(), "").typed<Signature>();
}

using Forward = std::vector<at::Tensor>(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                                        const OptionalTensor&, int64_t, bool, bool);
using Backward = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                            const OptionalTensor&, const OptionalTensor&, int64_t);
using Multiply = void(at::Tensor, const at::Tensor&);

// grad times the gradient that was not kept.
at::Tensor run_backward(const at::Tensor& grad, const Operands& of, Reduction reduction) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  if (reduction == Reduction::none) {
    // The gradients of the losses are weights of a sum.
    Operands of_sum = of;
    of_sum.weights = grad.to(at::kFloat);
    if (of.weights.defined()) of_sum.weights = of_sum.weights * of.weights;
    return run_backward(at::ones({}, of.logits.options()), of_sum, Reduction::sum);
  }
  if (of.logits.is_cpu()) {
    return run_on_cpu(of, reduction, {/*gradient=*/true}, grad.item<double>()).gradient;
  }
  static const auto op = find_operator<Backward>(std::string(name) + "_backward");
  return op.call(grad, of.logits, of.targets, optional(of.weights), optional(of.pos_weights),
                 static_cast<int64_t>(reduction));
}

// Multiplies by a number that lies on the tensor's device. Of a sum or a mean that number mostly is
// 1: then nothing is read or written, but for a few elements on a GPU, where torch's product takes
// less time than the launch of a kernel that finds it out.
void multiply_by_number(const at::Tensor& tensor, const at::Tensor& number) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  constexpr int64_t few = 1 << 18;
  if (tensor.is_cpu() || tensor.numel() <= few) {
    if (!tensor.is_cpu() || number.item<double>() != 1) tensor.mul_(number);
    return;
  }
  static const auto op = find_operator<Multiply>("fused_sigmoid::_multiply_by_number_");
  op.call(tensor, number);
}

// In the dtype that two operands are computed in.
at::Tensor widened(const at::Tensor& tensor, const at::Tensor& other) {
  const at::ScalarType both = c10::promoteTypes(tensor.scalar_type(), other.scalar_type());
  return tensor.to(c10::promoteTypes(both, at::kFloat));
}

// The formula in operations that autograd, transforms and dispatch modes can see. The selections
// have a derivative for all x, where abs() has none at 0.
struct Composed {
  explicit Composed(const Operands& of)
      : of_(of),
        x_(widened(of.logits, of.targets)),
        t_(widened(of.targets, of.logits)),
        positive_(of.pos_weights.defined() ? of.pos_weights * t_ : t_),
        is_negative_(x_ < 0),
        magnitude_(at::where(is_negative_, -x_, x_)),
        e_(at::exp(-magnitude_)) {}

  at::Tensor loss(Reduction reduction) const {
    const at::Tensor side = at::where(is_negative_, positive_, 1 - t_);
    at::Tensor rest = at::log1p(e_);
    if (of_.pos_weights.defined()) rest = (1 - t_ + positive_) * rest;
    // A target of 0 or 1 on the right side of an infinite logit costs nothing.
    const at::Tensor costs_nothing = at::isinf(magnitude_).logical_and(side == 0);
    at::Tensor loss = side * at::where(costs_nothing, 0, magnitude_) + rest;
    if (of_.weights.defined()) loss = of_.weights * loss;
    if (reduction == Reduction::mean) loss = loss.mean();
    if (reduction == Reduction::sum) loss = loss.sum();
    return loss.to(of_.targets.scalar_type());
  }

  // A factor times the gradient.
  at::Tensor gradient(const at::Tensor& factor, Reduction reduction) const {
    const auto [of_one, of_zero] = probabilities();
    at::Tensor gradient = (1 - t_) * of_one - positive_ * of_zero;
    if (of_.weights.defined()) gradient = gradient * of_.weights;
    at::Tensor wide = widened(factor, x_);
    if (reduction == Reduction::mean) wide = wide / at::Scalar(x_.sym_numel());
    return (gradient * wide).to(of_.logits.scalar_type());
  }

  at::Tensor probability() const { return probabilities().first.to(of_.logits.scalar_type()); }

 private:
  // Of the labels 1 and 0: ATen's sigmoid is 0 in float32 where exp(x) still is a subnormal number.
  std::pair<at::Tensor, at::Tensor> probabilities() const {
    const at::Tensor smaller = e_ / (1 + e_), larger = 1 - smaller;
    return {at::where(is_negative_, smaller, larger), at::where(is_negative_, larger, smaller)};
  }

  const Operands& of_;
  at::Tensor x_, t_, positive_, is_negative_, magnitude_, e_;
};

}  // namespace

at::Tensor composed_gradient(const at::Tensor& factor, const Operands& of, Reduction reduction) {
  return Composed(of).gradient(factor, reduction);
}

Results composed(const Operands& of, Reduction reduction, Wanted wanted) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const Composed parts(of);
  Results results;
  results.loss = parts.loss(reduction);
  if (wanted.gradient) {
    results.gradient = parts.gradient(at::ones({}, of.logits.options()), reduction);
  }
  if (wanted.probability) results.probability = parts.probability();
  return results;
}

namespace {

Results run(const Operands& of, Reduction reduction, Wanted wanted) {
  if (!is_unobserved(of.logits)) return composed(of, reduction, wanted);
  const at::AutoDispatchBelowADInplaceOrView guard;
  if (of.logits.is_cpu()) {
    RECORD_FUNCTION(name, std::vector<c10::IValue>({of.logits, of.targets}));
    return run_on_cpu(of, reduction, wanted);
  }
  static const auto op = find_operator<Forward>(name);
  std::vector<at::Tensor> results =
      op.call(of.logits, of.targets, optional(of.weights), optional(of.pos_weights),
              static_cast<int64_t>(reduction), wanted.gradient, wanted.probability);
  Results found;
  found.loss = std::move(results[0]);
  // What Python has made is held by its Python object for as long as anything holds it: the
  // backward pass could not take that gradient's memory. This is another tensor of the same memory.
  if (wanted.gradient) found.gradient = results[1].variable_data();
  if (wanted.probability) found.probability = std::move(results.back());
  return found;
}

// Whether the forward pass writes the gradient. In float16 that of a mean, or of weighted losses,
// would underflow before it could meet the large number by which such losses are scaled.
bool keeps_gradient(const Operands& of, Reduction reduction) {
  const bool is_plain = !of.weights.defined() && !of.pos_weights.defined();
  return of.logits.scalar_type() != at::kHalf || (is_plain && reduction != Reduction::mean);
}

class LossNode : public torch::autograd::Node {
  // What a first backward pass is computed from.
  template <class Self>
  static auto needed(Self& self) {
    std::vector<decltype(&self.gradient_)> all;
    if (self.keeps_gradient_) return all = {&self.gradient_};
    return all = {&self.logits_, &self.targets_, &self.weights_, &self.pos_weights_};
  }

 public:
  static Results apply_to(const Operands& of, Reduction reduction, bool with_probability) {
    const auto node = make_node<LossNode>();
    node->set_next_edges(torch::autograd::collect_next_edges(of.logits));
    const bool keeps = keeps_gradient(of, reduction);
    Results results = run(of, reduction, {keeps, with_probability});
    torch::autograd::set_history(results.loss, node);
    node->reduction_ = reduction;
    if (keeps) node->gradient_ = SavedVariable(results.gradient, /*is_output=*/false);
    node->keeps_gradient_ = keeps;
    node->logits_ = SavedVariable(of.logits, /*is_output=*/false);
    node->targets_ = SavedVariable(of.targets, /*is_output=*/false);
    node->weights_ = SavedVariable(of.weights, /*is_output=*/false);
    node->pos_weights_ = SavedVariable(of.pos_weights, /*is_output=*/false);
    results.gradient.reset();
    return results;
  }

  std::string name() const override { return "FusedBCEWithLogitsLossBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    release();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const at::Tensor& grad = grads[0];
    if (!grad.defined() || !task_should_compute_output(0)) return {at::Tensor()};
    if (at::GradMode::is_enabled()) return {composed_gradient(grad, unpack(), reduction_)};
    const bool is_plain = is_unobserved(grad) && !has_tangent(grad);
    if (!keeps_gradient_) {
      const Operands of = unpack();
      return {is_plain ? run_backward(grad, of, reduction_)
                       : composed_gradient(grad, of, reduction_)};
    }
    const at::Tensor gradient = gradient_.unpack();
    const bool fits = is_plain && is_ordinary(gradient) && grad.device() == gradient.device() &&
                      (reduction_ != Reduction::none || grad.sizes() == gradient.sizes());
    if (!fits || !is_last_use(*this, gradient_, gradient)) {
      return {at::mul(gradient, grad).to(gradient.scalar_type())};
    }
    // Whoever runs this node again is told so, even if an error ends this backward pass here.
    release();
    if (reduction_ == Reduction::none) {
      gradient.mul_(grad);
    } else {
      multiply_by_number(gradient, grad);
    }
    return {gradient};
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(static_cast<int64_t>(reduction_));
    args.collect(keeps_gradient_);
    for (const SavedVariable* saved : needed(*this)) args.collect(*saved, /*is_output=*/false);
  }

  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    for (SavedVariable* saved : needed(*this)) swap.before(*saved);
    std::array<at::Tensor, 5> tensors;
    if (keeps_gradient_) {
      tensors[0] = gradient_.unpack();
    } else {
      Operands of = unpack();
      tensors = {at::Tensor(), of.logits, of.targets, of.weights, of.pos_weights};
    }
    auto result = call_traced(*this, traced, grads, tensors,
                              std::array{static_cast<int64_t>(reduction_)}, swap);
    for (SavedVariable* saved : needed(*this)) swap.after(*saved);
    return result;
  }

 private:
  static variable_list traced(const variable_list& grads, const std::vector<c10::IValue>& packed) {
    torch::dynamo::autograd::PackedArgs arguments(packed);
    std::array<at::Tensor, 5> tensors;
    for (at::Tensor& tensor : tensors) tensor = arguments.unpack<at::Tensor>();
    const auto reduction = static_cast<Reduction>(arguments.unpack<int64_t>());
    if (!grads[0].defined()) return {at::Tensor()};
    const auto& [gradient, logits, targets, weights, pos_weights] = tensors;
    if (gradient.defined()) return {(gradient * grads[0]).to(gradient.scalar_type())};
    return {composed_gradient(grads[0], {logits, targets, weights, pos_weights}, reduction)};
  }

  Operands unpack() const {
    return {logits_.unpack(), targets_.unpack(), weights_.unpack(), pos_weights_.unpack()};
  }

  void release() {
    for (SavedVariable* saved : {&gradient_, &logits_, &targets_, &weights_, &pos_weights_}) {
      saved->reset_data();
    }
  }

  // The logits and what stands beside them are kept for second derivatives alone, unless the
  // gradient is not kept.
  SavedVariable gradient_, logits_, targets_, weights_, pos_weights_;
  Reduction reduction_ = Reduction::mean;
  bool keeps_gradient_ = false;
};

// Autocast has halves converted first. A checkpoint may compute in a dispatch mode what it computed
// without one, and has to find the same tensors kept: such a call has the node, but not the
// kernels.
bool is_for_node(const at::Tensor& tensor, const at::Tensor& logits) {
  const bool is_converted =
      tensor.element_size() == 2 && at::autocast::is_autocast_enabled(logits.device().type());
  return is_observed_by_mode_at_most(tensor) && !has_tangent(tensor) && !is_converted &&
         tensor.device() == logits.device();
}

}  // namespace

std::optional<Results> loss(const Operands& of, Reduction reduction, bool with_probability) {
  const at::Tensor& x = of.logits;
  const bool has_kernels = x.is_cpu() || x.is_cuda();
  if (!has_kernels || !is_for_node(x, x)) return std::nullopt;
  for (const at::Tensor* each : {&of.targets, &of.weights, &of.pos_weights}) {
    // Wrappers of transforms may have no sizes that are numbers.
    if (!each->defined()) continue;
    if (!is_for_node(*each, x) || (each->requires_grad() && records()) ||
        !at::is_expandable_to(each->sizes(), x.sizes())) {
      return std::nullopt;
    }
    const bool may_be_integer = each != &of.targets;
    const bool is_integer = at::isIntegralType(each->scalar_type(), /*includeBool=*/false);
    if (!has_kernel_dtype(*each) && !(may_be_integer && is_integer)) return std::nullopt;
  }
  if (!has_kernel_dtype(x) || of.targets.sizes() != x.sizes()) return std::nullopt;
  return x.requires_grad() && records() ? LossNode::apply_to(of, reduction, with_probability)
                                        : run(of, reduction, {false, with_probability});
}

}  // namespace fused_sigmoid::binary_cross_entropy

TORCH_LIBRARY_FRAGMENT(fused_sigmoid, library) {
  library.def(
      "_binary_cross_entropy_with_logits(Tensor input, Tensor target, Tensor? weight, Tensor? "
      "pos_weight, int reduction, bool gradient, bool probability) -> Tensor[]");
  library.def(
      "_binary_cross_entropy_with_logits_backward(Tensor grad, Tensor input, Tensor target, "
      "Tensor? "
      "weight, Tensor? pos_weight, int reduction) -> Tensor");
  library.def("_multiply_by_number_(Tensor(a!) self, Tensor number) -> ()");
}
