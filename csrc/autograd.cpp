// The custom autograd Functions. Derivatives are exact on both tails to every order, except under
// Saved::output, which is torch's own gradient by choice.
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/where.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>

#include "ops.h"

namespace fused_sigmoid::autograd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// Where Saved::automatic keeps the derivative on the CPU, in bytes of it, and else the input;
// docs/performance.md has the measurement. Below, the arithmetic saved is less than what one more
// tensor costs; above, the derivative leaves the cache before it is read back.
constexpr int64_t automatic_derivative_from = 16 << 10;
constexpr int64_t automatic_derivative_to = 8 << 20;

Saved resolve(Saved saved, const at::Tensor& input) {
  if (saved != Saved::automatic) return saved;
  // On a GPU memory traffic decides at every size: 5 element sizes with the input against 6. A
  // tensor that is not plain may have no size yet.
  if (!input.is_cpu() || !is_plain(input)) return Saved::input;
  const int64_t bytes = input.numel() * static_cast<int64_t>(input.element_size());
  const bool derivative = bytes >= automatic_derivative_from && bytes <= automatic_derivative_to;
  return derivative ? Saved::derivative : Saved::input;
}

bool recorded(const at::Tensor& a) { return at::GradMode::is_enabled() && a.requires_grad(); }
bool recorded(const at::Tensor& a, const at::Tensor& b) {
  return at::GradMode::is_enabled() && (a.requires_grad() || b.requires_grad());
}

bool for_kernels(const at::Tensor& tensor) {
  return is_plain(tensor) && has_kernel_dtype(tensor) && !has_forward_gradient(tensor);
}

// Halves are computed in float32 and rounded once.
at::Tensor widened(const at::Tensor& tensor) {
  const at::ScalarType dtype = tensor.scalar_type();
  return dtype == at::kHalf || dtype == at::kBFloat16 ? tensor.to(at::kFloat) : tensor;
}

void check_no_forward_gradient(const at::Tensor& tensor, const char* op) {
  TORCH_CHECK_NOT_IMPLEMENTED(!has_forward_gradient(tensor), "the operator ", op,
                              " has no forward-mode derivative; fused_sigmoid.sigmoid and "
                              "fused_sigmoid.sigmoid_with_derivative have");
}

void check_writable(const at::Tensor& tensor) {
  TORCH_CHECK(!tensor.is_inference() || c10::InferenceMode::is_enabled(),
              "Inplace update to inference tensor outside InferenceMode is not allowed. You can "
              "make a clone to get a normal tensor before doing inplace update.");
}

void count_write(const at::Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

void check_out(const at::Tensor& input, const at::Tensor& out, const char* op) {
  check_no_forward_gradient(input, op);
  if (recorded(input, out)) torch::autograd::throw_error_out_requires_grad(op);
  check_writable(out);
}

// grad * sigma'(input) in ATen operations, for tensors that the kernels must not see: batched
// gradients, dual tensors, subclasses. Differentiable to every order: either side of the selection
// is a formula for all x, where abs() would lose the sign of x at 0.
at::Tensor composed_backward(const at::Tensor& grad, const at::Tensor& input) {
  const at::Tensor wide = widened(input);
  const at::Tensor e = at::where(wide < 0, wide, -wide).exp();
  const at::Tensor t = e / (1 + e);
  return (widened(grad) * (t - t * t)).to(grad.scalar_type());
}

struct SigmoidBackwardFunction : Function<SigmoidBackwardFunction> {
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& grad, const at::Tensor& input) {
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({grad, input});
    return dispatched::sigmoid_backward(grad, input);
  }

  // sigma'' = -sigma' tanh(x / 2), which is exact on both tails and at 0.
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const at::Tensor& outer = grads[0];
    if (!outer.defined()) return {at::Tensor(), at::Tensor()};
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &grad = saved[0], &input = saved[1];
    at::Tensor grad_grad, grad_input;
    // Qualified, since the arguments' namespace has a sigmoid_backward as well.
    if (ctx->needs_input_grad(0)) grad_grad = autograd::sigmoid_backward(outer, input);
    if (ctx->needs_input_grad(1)) {
      const at::Tensor wide = widened(input);
      const at::Tensor product = widened(outer) * widened(grad);
      grad_input = (autograd::sigmoid_backward(product, wide) * (wide * -0.5).tanh())
                       .to(input.scalar_type());
    }
    return {grad_grad, grad_input};
  }
};

// grad * derivative, where the derivative was saved as a number and has no history. Adding
// (y - c)(1 - y - c) = y (1 - y) - c (1 - c) with the constant c = y gives it the history of
// y (1 - y) and adds exactly 0.
at::Tensor backward_from_saved_derivative(const at::Tensor& grad, const at::Tensor& derivative,
                                          const at::Tensor& output) {
  if (recorded(grad, output)) {
    const at::Tensor constant = output.detach();
    return grad * (derivative + (output - constant) * (1 - output - constant));
  }
  return sigmoid_backward_from_derivative(grad, derivative);
}

// Whether the input is kept where otherwise derivative and output would be enough. The second
// derivative's factor 1 - 2 y, from the rounded output, is wrong relatively as x nears 0. Those who
// differentiate twice compute in float64: there, and only there, it costs memory.
bool keeps_input(const at::Tensor& tensor) { return tensor.scalar_type() == at::kDouble; }

// The same for the output of an operation in place, whose input was copied: with c = y and
// k = -tanh(x / 2) the history is that of k (y - c) - (y - c)^2.
at::Tensor backward_from_copied_input(const at::Tensor& grad, const at::Tensor& copy,
                                      const at::Tensor& output) {
  const at::Tensor first = autograd::sigmoid_backward(grad, copy);
  if (!recorded(grad, output)) return first;
  const at::Tensor change = output - output.detach();
  return first + grad * change * ((copy * -0.5).tanh() - change);
}

// The node that sigmoid() adds to the autograd graph. A torch::autograd::Function would do the same
// and cost 2 us more in a training step, for records of its in- and outputs that one elementwise
// tensor does not need: 10 % of a whole step of one element.
template <Saved saved>
class SigmoidNode : public torch::autograd::Node {
 public:
  static at::Tensor apply_to(const at::Tensor& input) {
    const auto node = make_node();
    node->set_next_edges(torch::autograd::collect_next_edges(input));
    at::Tensor value, derivative;
    if constexpr (saved == Saved::derivative) {
      std::tie(value, derivative) = dispatched::sigmoid_with_derivative(input);
      node->derivative_ = SavedVariable(derivative, /*is_output=*/false);
    } else {
      value = dispatched::sigmoid(input);
    }
    torch::autograd::set_history(value, node);
    node->saves_input_ = saves_input(input);
    const bool is_output = !node->saves_input_;
    node->variable_ = SavedVariable(is_output ? value : input, is_output);
    return value;
  }

  std::string name() const override { return "FusedSigmoidBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_.reset_data();
    derivative_.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!task_should_compute_output(0)) return {at::Tensor()};
    const at::Tensor variable = unpacked_variable(), derivative = derivative_.unpack();
    if (!takes_derivative(grads[0], derivative)) return {gradient(grads[0], variable, derivative)};
    // Whoever runs this node again is told so, even if an error ends this backward pass here.
    variable_.reset_data();
    derivative_.reset_data();
    dispatched::sigmoid_backward_from_derivative_(grads[0], derivative);
    return {derivative};
  }

  // Compiled autograd: what its cache depends on, and a call of traced() with proxies.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(variable_, /*is_output=*/!saves_input_);
    args.collect(derivative_, /*is_output=*/false);
  }

  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    namespace dynamo = torch::dynamo::autograd;
    swap.before(variable_);
    swap.before(derivative_);
    dynamo::PackedArgs arguments;
    arguments.pack(variable_.unpack(getptr()));
    arguments.pack(derivative_.unpack());
    const auto& compiler = dynamo::getPyCompilerInterface();
    const std::string function = compiler->bind_function(
        swap.get_py_compiler(), name() + std::to_string(static_cast<int>(saved)), traced,
        {at::TensorType::get(), at::TensorType::get()}, /*is_custom_function=*/true,
        /*is_traceable=*/true);
    auto result = compiler->call_function(
        swap.get_py_compiler(), "apply_functional", function, grads, std::move(arguments).vec(),
        dynamo::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
            dynamo::get_input_metadata(next_edges())));
    swap.after(variable_);
    swap.after(derivative_);
    return result;
  }

 private:
  // std::shared_ptr or, in newer releases of torch, c10::intrusive_ptr.
  using Base = decltype(std::declval<torch::autograd::Node&>().getptr());

  static auto make_node() {
    if constexpr (std::is_same_v<Base, std::shared_ptr<torch::autograd::Node>>) {
      // Unqualified, so that releases without this function compile.
      return std::shared_ptr<SigmoidNode>(new SigmoidNode,
                                          [](SigmoidNode* node) { deleteNode(node); });
    } else {
      return c10::make_intrusive<SigmoidNode>();
    }
  }

  static bool saves_input(const at::Tensor& tensor) {
    return saved == Saved::input || (saved == Saved::derivative && keeps_input(tensor));
  }

  // Torch's sigmoid keeps its output alone, and models rely on it: x.mul_(x.sigmoid()). Its error
  // for a saved tensor that was changed does not name the sigmoid.
  at::Tensor unpacked_variable() {
    try {
      return variable_.unpack(getptr());
    } catch (c10::Error& error) {
      if (saves_input_ &&
          error.msg().find("modified by an inplace operation") != std::string::npos) {
        error.add_context(
            "fused_sigmoid keeps the sigmoid's input for an exact gradient, so it must not change "
            "before the backward pass; with saved=\"output\" it may, as with nn.Sigmoid");
      }
      throw;
    }
  }

  // Whether the gradient may take the memory of the saved derivative: nothing else holds it, and
  // this node runs no more. One allocation, and one tensor in the cache, less.
  bool takes_derivative(const at::Tensor& grad, const at::Tensor& derivative) const {
    if (!derivative.defined() || !grad.defined() || derivative_.has_hooks()) return false;
    if (at::GradMode::is_enabled() || torch::autograd::get_current_graph_task_keep_graph()) {
      return false;
    }
    constexpr size_t references = 2;  // the saved one and the caller's
    if (derivative.use_count() != references || derivative.storage().use_count() != 1) return false;
    // The result's strides are then the derivative's.
    const bool laid_out_alike =
        (derivative.is_contiguous() && grad.is_contiguous()) ||
        (derivative.is_non_overlapping_and_dense() && grad.strides() == derivative.strides());
    const auto is_zero = [](int64_t stride) { return stride == 0; };
    const bool is_expanded_scalar =
        std::all_of(grad.strides().begin(), grad.strides().end(), is_zero);
    return for_kernels(grad) && grad.scalar_type() == derivative.scalar_type() &&
           grad.sizes() == derivative.sizes() && grad.device() == derivative.device() &&
           (laid_out_alike || (derivative.is_non_overlapping_and_dense() && is_expanded_scalar));
  }

  static at::Tensor gradient(const at::Tensor& grad, const at::Tensor& variable,
                             const at::Tensor& derivative) {
    if (!grad.defined()) return at::Tensor();
    if constexpr (saved == Saved::derivative) {
      if (!saves_input(variable)) return backward_from_saved_derivative(grad, derivative, variable);
      return recorded(grad, variable) ? autograd::sigmoid_backward(grad, variable)
                                      : sigmoid_backward_from_derivative(grad, derivative);
    } else if constexpr (saved == Saved::input) {
      return autograd::sigmoid_backward(grad, variable);
    } else {
      return autograd::sigmoid_backward_from_output(grad, variable);
    }
  }

  static variable_list traced(const variable_list& grads, const std::vector<c10::IValue>& args) {
    torch::dynamo::autograd::PackedArgs arguments(args);
    const auto variable = arguments.unpack<at::Tensor>();
    const auto derivative = arguments.unpack<at::Tensor>();
    return {gradient(grads[0], variable, derivative)};
  }

  bool saves_input_ = false;
  SavedVariable variable_;    // the input or the output
  SavedVariable derivative_;  // under Saved::derivative
};

// The input is overwritten, so that a copy of it or the derivative is kept.
struct SigmoidInPlaceFunction : Function<SigmoidInPlaceFunction> {
  static at::Tensor forward(AutogradContext* ctx, at::Tensor input) {
    ctx->set_materialize_grads(false);
    const bool copies = keeps_input(input);
    const at::Tensor kept = copies ? input.clone() : at::empty_like(input);
    if (copies) {
      dispatched::sigmoid_out(kept, input);
    } else {
      dispatched::sigmoid_with_derivative_out(input, input, kept);
    }
    ctx->mark_dirty({input});
    ctx->save_for_backward({kept, input});
    return input;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) return {at::Tensor()};
    const auto tensors = ctx->get_saved_variables();
    const at::Tensor &kept = tensors[0], &output = tensors[1];
    return {keeps_input(output) ? backward_from_copied_input(grads[0], kept, output)
                                : backward_from_saved_derivative(grads[0], kept, output)};
  }
};

struct SigmoidWithDerivativeFunction : Function<SigmoidWithDerivativeFunction> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const at::Tensor& input) {
    ctx->set_materialize_grads(false);
    auto [value, derivative] = dispatched::sigmoid_with_derivative(input);
    ctx->save_for_backward({input, derivative});
    return {value, derivative};
  }

  // The saved derivative is an output: under create_graph its history is this node, which makes
  // the products below differentiable to every order.
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &input = saved[0], &derivative = saved[1];
    at::Tensor grad_input;
    if (grads[0].defined()) grad_input = sigmoid_backward_from_derivative(grads[0], derivative);
    if (grads[1].defined()) {
      const at::Tensor second = widened(derivative) * (widened(input) * -0.5).tanh();
      const at::Tensor term = (widened(grads[1]) * second).to(input.scalar_type());
      grad_input = grad_input.defined() ? grad_input + term : term;
    }
    return {grad_input};
  }
};

}  // namespace

at::Tensor sigmoid(const at::Tensor& input, Saved saved) {
  check_no_forward_gradient(input, "fused_sigmoid::sigmoid");
  if (!recorded(input)) return dispatched::sigmoid(input);
  switch (resolve(saved, input)) {
    case Saved::derivative:
      return SigmoidNode<Saved::derivative>::apply_to(input);
    case Saved::output:
      return SigmoidNode<Saved::output>::apply_to(input);
    default:
      return SigmoidNode<Saved::input>::apply_to(input);
  }
}

at::Tensor& sigmoid_(at::Tensor& input) {
  check_no_forward_gradient(input, "fused_sigmoid::sigmoid_");
  check_writable(input);
  if (recorded(input)) {
    // Before the kernel runs: an error leaves the input as it was.
    torch::autograd::check_inplace(input, /*requires_grad=*/true);
    SigmoidInPlaceFunction::apply(input);
  } else {
    dispatched::sigmoid_out(input, input);
    count_write(input);
  }
  return input;
}

void sigmoid_out(const at::Tensor& input, at::Tensor out) {
  check_out(input, out, "sigmoid");
  dispatched::sigmoid_out(input, out);
  count_write(out);
}

std::tuple<at::Tensor, at::Tensor> sigmoid_with_derivative(const at::Tensor& input) {
  check_no_forward_gradient(input, "fused_sigmoid::sigmoid_with_derivative");
  if (!recorded(input)) return dispatched::sigmoid_with_derivative(input);
  auto outputs = SigmoidWithDerivativeFunction::apply(input);
  return {outputs[0], outputs[1]};
}

void sigmoid_with_derivative_out(const at::Tensor& input, at::Tensor value, at::Tensor derivative) {
  check_out(input, value, "sigmoid_with_derivative");
  check_out(input, derivative, "sigmoid_with_derivative");
  dispatched::sigmoid_with_derivative_out(input, value, derivative);
  count_write(value);
  count_write(derivative);
}

at::Tensor sigmoid_backward(const at::Tensor& grad, const at::Tensor& input) {
  if (!for_kernels(grad) || !for_kernels(input)) return composed_backward(grad, input);
  if (recorded(grad, input)) return SigmoidBackwardFunction::apply(grad, input);
  return dispatched::sigmoid_backward(grad, input);
}

at::Tensor sigmoid_backward_from_output(const at::Tensor& grad, const at::Tensor& output) {
  if (recorded(grad, output) || !for_kernels(grad) || !for_kernels(output)) {
    return at::sigmoid_backward(grad, output);
  }
  return dispatched::sigmoid_backward_from_output(grad, output);
}

at::Tensor sigmoid_backward_from_derivative(const at::Tensor& grad, const at::Tensor& derivative) {
  if (recorded(grad, derivative) || !for_kernels(grad) || !for_kernels(derivative)) {
    return grad * derivative;
  }
  return dispatched::sigmoid_backward_from_derivative(grad, derivative);
}

}  // namespace fused_sigmoid::autograd
