// The node of the autograd graph. Derivatives are exact on both tails to every order, except under
// Saved::output, which is torch's own gradient by choice.
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/result_type.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/where.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/hash.h>
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

// What a node keeps for its backward pass. A checkpoint takes what is kept the second time for what
// was kept the first time, in the same order. So it follows from the call and the tensor alone,
// never from what is active around them: dispatch modes, hooks, forward-mode AD.
struct Keeps {
  bool derivative, input, output;
};

Keeps kept_for(Saved saved, const at::Tensor& input) {
  if (saved == Saved::output) return {false, false, true};
  if (saved == Saved::input) return {false, true, false};
  if (saved == Saved::automatic) {
    // On a GPU memory traffic decides at every size: 5 element sizes with the input against 6. A
    // tensor of another kind may have no size yet. The output stands in for an input that was
    // changed.
    if (!input.is_cpu() || !is_plain_kind(input)) return {false, true, true};
    const int64_t bytes = input.numel() * static_cast<int64_t>(input.element_size());
    if (bytes < automatic_derivative_from || bytes > automatic_derivative_to) {
      return {false, true, true};
    }
  }
  // The second derivative's factor 1 - 2 y, from the rounded output, is wrong relatively as x nears
  // 0. Those who differentiate twice compute in float64: there, and only there, exactness costs
  // memory.
  return {true, input.scalar_type() == at::kDouble, true};
}

// In place the input is overwritten: float64 keeps a copy of it.
Keeps kept_in_place(const at::Tensor& input) {
  const bool copies = input.scalar_type() == at::kDouble;
  return {!copies, copies, true};
}

// In inference mode, and below autograd, nothing is recorded even where gradients were enabled.
bool records() {
  return at::GradMode::is_enabled() &&
         !c10::impl::tls_is_dispatch_key_excluded(c10::DispatchKey::AutogradFunctionality);
}
bool recorded(const at::Tensor& a) { return a.requires_grad() && records(); }
bool recorded(const at::Tensor& a, const at::Tensor& b) {
  return (a.requires_grad() || b.requires_grad()) && records();
}

bool for_kernels(const at::Tensor& tensor) {
  return is_plain(tensor) && has_kernel_dtype(tensor) && !has_forward_gradient(tensor);
}

// Whether the value of a tensor has to be composed of ATen operations, for whatever stands between
// the caller and the device to see: dispatch modes, subclasses.
bool is_composed(const at::Tensor& tensor) { return !is_plain(tensor) && has_kernel_dtype(tensor); }

// Halves are computed in float32 and rounded once.
at::Tensor widened(const at::Tensor& tensor) {
  const at::ScalarType dtype = tensor.scalar_type();
  return dtype == at::kHalf || dtype == at::kBFloat16 ? tensor.to(at::kFloat) : tensor;
}

// A conversion that changes nothing would be an operation that returns its input, which nobody
// below autograd may see.
at::Tensor narrowed(const at::Tensor& wide, const at::Tensor& like) {
  return wide.scalar_type() == like.scalar_type() ? wide : wide.to(like.scalar_type());
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
  TORCH_CHECK_NOT_IMPLEMENTED(!has_forward_gradient(input), "the operator fused_sigmoid::", op,
                              "_out has no forward-mode derivative; fused_sigmoid.sigmoid and "
                              "fused_sigmoid.sigmoid_with_derivative have");
  if (recorded(input, out)) torch::autograd::throw_error_out_requires_grad(op);
  check_writable(out);
}

// sigma'(x) = t - t^2 in ATen operations, with e = exp(-|x|) and t = e / (1 + e). In float32 for
// halves.
at::Tensor composed_derivative(const at::Tensor& input) {
  const at::Tensor wide = widened(input);
  // Either side of the selection has a derivative for all x, where abs() has none at 0. Without one
  // it is an operation less, and jagged tensors have it.
  const bool is_differentiated = recorded(wide) || has_forward_gradient(wide);
  const at::Tensor magnitude = is_differentiated ? at::where(wide < 0, -wide, wide) : wide.abs();
  const at::Tensor e = (-magnitude).exp();
  const at::Tensor t = e / (1 + e);
  return t - t * t;
}

// grad * sigma'(input), for tensors that the kernels must not see: batched gradients, dual tensors,
// subclasses.
at::Tensor composed_backward(const at::Tensor& grad, const at::Tensor& input) {
  return narrowed(widened(grad) * composed_derivative(input), grad);
}

// sigma'' / sigma' = -tanh(x / 2), which is exact on both tails and at 0.
at::Tensor slope(const at::Tensor& wide) { return (wide * -0.5).tanh(); }

struct SigmoidBackwardFunction : Function<SigmoidBackwardFunction> {
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& grad, const at::Tensor& input) {
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({grad, input});
    return dispatched::sigmoid_backward(grad, input);
  }

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
      grad_input = narrowed(autograd::sigmoid_backward(product, wide) * slope(wide), input);
    }
    return {grad_grad, grad_input};
  }
};

// Which part of a storage a tensor is and how it is laid out there, in a number.
size_t layout_of(const at::Tensor& tensor) {
  size_t layout = c10::hash_combine(static_cast<size_t>(tensor.storage_offset()),
                                    static_cast<size_t>(tensor.scalar_type()));
  for (const at::IntArrayRef numbers : {tensor.sizes(), tensor.strides()}) {
    for (const int64_t number : numbers) {
      layout = c10::hash_combine(layout, static_cast<size_t>(number));
    }
  }
  return layout;
}

// A tensor that a node keeps.
class Kept {
 public:
  Kept() = default;
  Kept(const at::Tensor& tensor, bool is_output, bool is_in_place_on_view = false)
      : variable(tensor, is_output, is_in_place_on_view),
        counter_(torch::autograd::impl::version_counter(tensor)),
        version_(counter_.current_version()) {}

  // Of a tensor that others have: they can free its memory, or give it other memory or another
  // shape by `x.data = y`, which are no writes that versions count.
  static Kept watched(const at::Tensor& tensor, bool is_output) {
    Kept kept(tensor, is_output);
    if (is_plain_kind(tensor)) {
      kept.storage_ = tensor.storage().getWeakStorageImpl();
      kept.bytes_ = tensor.storage().nbytes();
      kept.layout_ = layout_of(tensor);
    }
    return kept;
  }

  // Whether it was kept.
  explicit operator bool() const { return counter_.enabled(); }

  // Whether nobody has written to it since, as far as versions tell, nor taken its memory away. A
  // SavedVariable says so only when it is unpacked, by an error, and nothing where hooks have
  // packed it.
  bool is_unchanged() const {
    if (!*this || counter_.current_version() != version_) return false;
    if (bytes_ == 0) return true;
    const auto tensor = variable.get_raw_data();
    if (!is_at_hand(tensor)) return true;
    // The weak reference keeps the address from being given to another storage.
    return tensor->storage().unsafeGetStorageImpl() == storage_._unsafe_get_target() &&
           tensor->storage().nbytes() >= bytes_ && layout_of(*tensor) == layout_;
  }

  // Whether it still has the history that it was kept with, which detach_() takes from it.
  bool has_history() const {
    const auto tensor = variable.get_raw_data();
    return !is_at_hand(tensor) || tensor->requires_grad();
  }

  SavedVariable variable;

 private:
  // It is not where hooks have packed it, history and all, and where it was given back.
  static bool is_at_hand(const std::optional<at::Tensor>& tensor) {
    return tensor.has_value() && tensor->defined();
  }

  c10::VariableVersion counter_{c10::VariableVersion::DISABLED};
  uint32_t version_ = 0;
  c10::weak_intrusive_ptr<c10::StorageImpl> storage_{c10::intrusive_ptr<c10::StorageImpl>()};
  size_t bytes_ = 0, layout_ = 0;
};

// What a gradient is computed from. What is undefined is not needed.
struct Source {
  at::Tensor derivative, input, output;
};

// grad * sigma'.
at::Tensor first_product(const at::Tensor& grad, const Source& from) {
  if (!from.derivative.defined()) {
    return from.input.defined() ? autograd::sigmoid_backward(grad, from.input)
                                : autograd::sigmoid_backward_from_output(grad, from.output);
  }
  if (from.derivative.requires_grad() && at::GradMode::is_enabled()) {
    // The pair's, which its owner may change before the second backward pass.
    return grad * from.derivative.clone();
  }
  if (!from.output.defined() || from.derivative.requires_grad()) {
    return autograd::sigmoid_backward_from_derivative(grad, from.derivative);
  }
  // The derivative was kept as a number and has no history. Adding (y - c)(1 - y - c) =
  // y (1 - y) - c (1 - c) with the constant c = y gives it that of y (1 - y) and adds exactly 0.
  const at::Tensor constant = from.output.detach();
  return grad * (from.derivative + (from.output - constant) * (1 - from.output - constant));
}

// grad * sigma''.
at::Tensor second_product(const at::Tensor& grad, const Source& from) {
  const auto wide = [](const at::Tensor& t) { return t.defined() ? widened(t) : t; };
  const Source widely = {wide(from.derivative), wide(from.input), wide(from.output)};
  const at::Tensor factor = from.input.defined() ? slope(widely.input) : 1 - 2 * widely.output;
  return narrowed(first_product(widened(grad), widely) * factor, grad);
}

// sigma and, where it is asked for, sigma' of the input, the former in the input's memory if so
// wished. Forward-mode AD follows both; nothing is recorded.
struct Results {
  at::Tensor value, derivative;
};

Results compute(const at::Tensor& input, bool with_derivative, bool in_place) {
  const at::Tensor& tangent = input._fw_grad(/*level=*/0);
  at::Tensor value_tangent, derivative_tangent;
  if (tangent.defined()) {
    const Source primal = {{}, input._fw_primal(/*level=*/0), {}};
    // What is kept for a gradient of the tangent must not be overwritten by the value's.
    const at::Tensor along = in_place ? tangent.clone() : tangent;
    value_tangent = first_product(along, primal);
    if (with_derivative) derivative_tangent = second_product(along, primal);
  }
  Results results;
  if (is_composed(input)) {
    const at::NoGradGuard no_grad;
    const at::AutoDispatchBelowADInplaceOrView guard;
    if (!in_place) results.value = at::sigmoid(input);
    if (with_derivative) results.derivative = narrowed(composed_derivative(input), input);
    if (in_place) {
      results.value = input;
      at::sigmoid_(results.value);
    }
  } else if (!in_place) {
    if (with_derivative) {
      std::tie(results.value, results.derivative) = dispatched::sigmoid_with_derivative(input);
    } else {
      results.value = dispatched::sigmoid(input);
    }
  } else {
    results.value = input;
    if (with_derivative) {
      const at::NoGradGuard no_grad;
      results.derivative = at::empty_like(input);
      dispatched::sigmoid_with_derivative_out(input, input, results.derivative);
    } else {
      dispatched::sigmoid_out(input, input);
    }
  }
  if (tangent.defined()) {
    if (in_place) {
      const at::Tensor own = tangent;
      value_tangent = own.copy_(value_tangent);
    }
    results.value._set_fw_grad(value_tangent, /*level=*/0, in_place);
    if (with_derivative) {
      results.derivative._set_fw_grad(derivative_tangent, /*level=*/0, /*is_inplace_op=*/false);
    }
  }
  return results;
}

// A node behind the input, held by std::shared_ptr or, in newer releases of torch, by
// c10::intrusive_ptr.
template <class T>
auto make_node(const at::Tensor& input) {
  const auto node = [] {
    using Base = decltype(std::declval<T&>().getptr());
    if constexpr (std::is_same_v<Base, std::shared_ptr<torch::autograd::Node>>) {
      // Unqualified, so that releases without this function compile.
      return std::shared_ptr<T>(new T, [](T* made) { deleteNode(made); });
    } else {
      return c10::make_intrusive<T>();
    }
  }();
  node->set_next_edges(torch::autograd::collect_next_edges(input));
  return node;
}

// The node that sigmoid() adds to the autograd graph, in place or not, and with two outputs
// sigmoid_with_derivative(). A torch::autograd::Function would do the same and cost 2 us more in a
// training step, for records of its in- and outputs that one elementwise tensor does not need: 10 %
// of a whole step of one element. Nor could it pass over a kept tensor that was changed.
class SigmoidNode : public torch::autograd::Node {
 public:
  static at::Tensor apply_to(const at::Tensor& input, Saved saved) {
    const auto node = make_node<SigmoidNode>(input);
    const Keeps keeps = kept_for(saved, input);
    Results results = compute(input, keeps.derivative, /*in_place=*/false);
    torch::autograd::set_history(results.value, node);
    if (keeps.derivative) node->derivative_ = Kept(results.derivative, /*is_output=*/false);
    if (keeps.input) node->input_ = Kept::watched(input, /*is_output=*/false);
    if (keeps.output) node->output_ = Kept(results.value, /*is_output=*/true);
    return std::move(results.value);
  }

  static void apply_in_place(const at::Tensor& input) {
    const auto node = make_node<SigmoidNode>(input);
    const Keeps keeps = kept_in_place(input);
    // The copy has the history that the input is about to lose.
    const at::Tensor copy = keeps.input ? input.clone() : at::Tensor();
    const Results results = compute(input, keeps.derivative, /*in_place=*/true);
    count_write(input);
    torch::autograd::rebase_history(input, node);
    if (keeps.derivative) node->derivative_ = Kept(results.derivative, /*is_output=*/false);
    if (keeps.input) node->input_ = Kept(copy, /*is_output=*/false);
    node->output_ = Kept(input, /*is_output=*/true, input.is_view());
  }

  static std::tuple<at::Tensor, at::Tensor> apply_to_pair(const at::Tensor& input) {
    const auto node = make_node<SigmoidNode>(input);
    node->is_pair_ = true;
    const Results results = compute(input, /*with_derivative=*/true, /*in_place=*/false);
    torch::autograd::set_history(results.value, node);
    torch::autograd::set_history(results.derivative, node);
    node->derivative_ = Kept::watched(results.derivative, /*is_output=*/true);
    node->input_ = Kept::watched(input, /*is_output=*/false);
    node->output_ = Kept(results.value, /*is_output=*/true);
    return {results.value, results.derivative};
  }

  std::string name() const override { return "FusedSigmoidBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    reset();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!task_should_compute_output(0)) return {at::Tensor()};
    const Source source = unpack(choose(/*needs_second=*/is_pair_ && grads[1].defined()));
    if (!takes_derivative(grads[0], source)) return {gradient(grads, source)};
    // Whoever runs this node again is told so, even if an error ends this backward pass here.
    reset();
    dispatched::sigmoid_backward_from_derivative_(grads[0], source.derivative);
    return {source.derivative};
  }

  // Compiled autograd: what its cache depends on, and a call of traced() with proxies.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    const Keeps chosen = choose(/*needs_second=*/is_pair_);
    for (const bool is_chosen : {chosen.derivative, chosen.input, chosen.output}) {
      args.collect(is_chosen);
    }
    if (chosen.derivative) args.collect(derivative_.variable, /*is_output=*/is_pair_);
    if (chosen.input) args.collect(input_.variable, /*is_output=*/false);
    if (chosen.output) args.collect(output_.variable, /*is_output=*/true);
  }

  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    namespace dynamo = torch::dynamo::autograd;
    const Keeps chosen = choose(/*needs_second=*/is_pair_);
    if (chosen.derivative) swap.before(derivative_.variable);
    if (chosen.input) swap.before(input_.variable);
    if (chosen.output) swap.before(output_.variable);
    const Source source = unpack(chosen);
    dynamo::PackedArgs arguments;
    for (const at::Tensor& tensor : {source.derivative, source.input, source.output}) {
      arguments.pack(tensor);
    }
    const auto tensor = at::TensorType::get();
    const auto& compiler = dynamo::getPyCompilerInterface();
    const std::string function =
        compiler->bind_function(swap.get_py_compiler(), name(), traced, {tensor, tensor, tensor},
                                /*is_custom_function=*/true, /*is_traceable=*/true);
    auto result = compiler->call_function(
        swap.get_py_compiler(), "apply_functional", function, grads, std::move(arguments).vec(),
        dynamo::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
            dynamo::get_input_metadata(next_edges())));
    if (chosen.derivative) swap.after(derivative_.variable);
    if (chosen.input) swap.after(input_.variable);
    if (chosen.output) swap.after(output_.variable);
    return result;
  }

 private:
  void reset() {
    derivative_.variable.reset_data();
    input_.variable.reset_data();
    output_.variable.reset_data();
  }

  // What the gradients are computed from: the exact, unless it was changed, and no more than that.
  // Torch's sigmoid keeps its output alone, and models rely on it: x.mul_(x.sigmoid()).
  Keeps choose(bool needs_second) const {
    const bool derivative = derivative_.is_unchanged();
    const bool needs_history = at::GradMode::is_enabled();
    const bool input = input_.is_unchanged() && (!needs_history || input_.has_history());
    if (derivative && !needs_second) {
      // The pair's derivative has a history of its own, others have one through input or output.
      if (is_pair_ || !needs_history) return {true, false, false};
      return input ? Keeps{false, true, false} : Keeps{true, false, true};
    }
    if (input) return {derivative, true, false};
    if (!output_) {
      TORCH_CHECK(input_.is_unchanged(),
                  "one of the variables needed for gradient computation has been modified by an "
                  "inplace operation: the input of a sigmoid, which fused_sigmoid keeps under "
                  "saved=\"input\". With saved=\"auto\" it may change, as with nn.Sigmoid");
      return {false, true, false};
    }
    if (input_) {
      TORCH_WARN_ONCE(
          "fused_sigmoid: the input of a sigmoid was changed in place before the backward pass, so "
          "that its gradient is nn.Sigmoid's, from the rounded output. For the exact one write "
          "x = x * x.sigmoid() in place of x.mul_(x.sigmoid()), or pass saved=\"derivative\". "
          "This is said once.");
    }
    return {derivative, false, true};
  }

  Source unpack(const Keeps& chosen) {
    Source source;
    if (chosen.derivative) source.derivative = derivative_.variable.unpack(getptr());
    if (chosen.input) {
      // Without a node to stand in, torch says that an input was detached whose history is needed.
      source.input = input_.variable.unpack(at::GradMode::is_enabled() ? nullptr : getptr());
    }
    if (chosen.output) source.output = output_.variable.unpack(getptr());
    return source;
  }

  // Whether the gradient may take the memory of the kept derivative: nothing else holds it, and
  // this node runs no more. One allocation, and one tensor in the cache, less.
  bool takes_derivative(const at::Tensor& grad, const Source& source) {
    const at::Tensor& derivative = source.derivative;
    if (is_pair_ || !derivative.defined() || !grad.defined() || derivative_.variable.has_hooks()) {
      return false;
    }
    if (at::GradMode::is_enabled() || torch::autograd::get_current_graph_task_keep_graph()) {
      return false;
    }
    // A hook may run the node as well, and in place on a view another node does.
    if (torch::autograd::get_current_node().get() != this || !pre_hooks().empty() ||
        !tensor_pre_hooks().empty() || !post_hooks().empty()) {
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
    return for_kernels(grad) && for_kernels(derivative) &&
           grad.scalar_type() == derivative.scalar_type() && grad.sizes() == derivative.sizes() &&
           grad.device() == derivative.device() &&
           (laid_out_alike || (derivative.is_non_overlapping_and_dense() && is_expanded_scalar));
  }

  static at::Tensor gradient(const variable_list& grads, const Source& source) {
    at::Tensor sum;
    if (grads[0].defined()) sum = first_product(grads[0], source);
    if (grads.size() > 1 && grads[1].defined()) {
      const at::Tensor term = second_product(grads[1], source);
      sum = sum.defined() ? sum + term : term;
    }
    return sum;
  }

  static variable_list traced(const variable_list& grads, const std::vector<c10::IValue>& args) {
    torch::dynamo::autograd::PackedArgs arguments(args);
    Source source;
    source.derivative = arguments.unpack<at::Tensor>();
    source.input = arguments.unpack<at::Tensor>();
    source.output = arguments.unpack<at::Tensor>();
    return {gradient(grads, source)};
  }

  Kept derivative_, input_, output_;
  bool is_pair_ = false;
};

}  // namespace

bool is_followed(const at::Tensor& input) { return recorded(input) || has_forward_gradient(input); }

at::Tensor sigmoid(const at::Tensor& input, Saved saved) {
  if (recorded(input)) return SigmoidNode::apply_to(input, saved);
  if (!has_forward_gradient(input)) return dispatched::sigmoid(input);
  return compute(input, /*with_derivative=*/false, /*in_place=*/false).value;
}

at::Tensor& sigmoid_(at::Tensor& input) {
  check_writable(input);
  if (recorded(input)) {
    // Before the kernel runs: an error leaves the input as it was.
    torch::autograd::check_inplace(input, /*requires_grad=*/true);
    SigmoidNode::apply_in_place(input);
  } else {
    compute(input, /*with_derivative=*/false, /*in_place=*/true);
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
  if (recorded(input)) return SigmoidNode::apply_to_pair(input);
  if (!has_forward_gradient(input)) return dispatched::sigmoid_with_derivative(input);
  const Results results = compute(input, /*with_derivative=*/true, /*in_place=*/false);
  return {results.value, results.derivative};
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
  // Of a copy, which nobody changes before the second backward pass.
  if (recorded(grad, input)) return SigmoidBackwardFunction::apply(grad, input.clone());
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

at::Tensor sigmoid_backward_before_bce(const at::Tensor& grad, const at::Tensor& output,
                                       at::ScalarType loss_dtype) {
  if (!recorded(grad, output) && for_kernels(grad) && for_kernels(output)) {
    return dispatched::sigmoid_backward_before_bce(grad, output, loss_dtype);
  }
  const auto converted = [](const at::Tensor& tensor, at::ScalarType dtype) {
    return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
  };
  const at::Tensor y = converted(output, loss_dtype);
  const at::Tensor product = (1 - y) * y;
  // What is multiplied by is what the loss divided by, a constant; the derivative is the sigmoid's,
  // also where the floor was the larger. Adding the product less itself gives it that and adds
  // exactly 0.
  const at::Tensor divisor = at::clamp_min(product.detach(), 1e-12f);
  const at::Tensor result = converted(grad, loss_dtype) * (divisor + (product - product.detach()));
  return converted(result, at::result_type(grad, output));
}

}  // namespace fused_sigmoid::autograd
