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
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <c10/util/hash.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>

#include "consumers.h"
#include "ops.h"

namespace fused_sigmoid::autograd {
namespace {

using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// Where Saved::automatic keeps the derivative on the CPU, in bytes of it, and else the input;
// docs/performance.md has the measurement. Below, the arithmetic saved is less than what one more
// tensor costs; above, the derivative leaves the cache before it is read back.
constexpr int64_t automatic_derivative_from = 16 << 10;
constexpr int64_t automatic_derivative_to = 8 << 20;

// Whether operations on the tensor are recorded to be compiled, forward and backward, with nothing
// left in place.
bool is_traced(const at::Tensor& tensor) {
  using c10::impl::TorchDispatchModeTLS, c10::impl::TorchDispatchModeKey;
  return !is_plain_kind(tensor) &&
         TorchDispatchModeTLS::get_mode(TorchDispatchModeKey::PROXY).has_value() &&
         TorchDispatchModeTLS::get_mode(TorchDispatchModeKey::FUNCTIONAL).has_value();
}

// What a node keeps for its backward pass. A checkpoint takes what is kept the second time for what
// was kept the first time, in the same order. So it follows from the call and the tensor alone,
// never from what is active around them: dispatch modes, hooks, forward-mode AD.
struct Keeps {
  bool derivative, input, output;
};

Keeps kept_for(Saved saved, const at::Tensor& input) {
  if (saved == Saved::output) return {false, false, true};
  // Compilers compute the derivative where it is needed.
  if (is_traced(input)) return {false, true, true};
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

// Whether a transform of torch.func is active: below this level of it lie others.
bool is_transformed() {
  return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerBackMode);
}

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

// t = e / (1 + e) with e = exp(-|x|), the smaller of sigma(x) and 1 - sigma(x), in ATen operations.
at::Tensor composed_smaller(const at::Tensor& wide) {
  // Either side of the selection has a derivative for all x, where abs() has none at 0. Without one
  // it is an operation less, and jagged tensors have it.
  const bool is_differentiated = recorded(wide) || has_forward_gradient(wide) || is_transformed();
  const at::Tensor magnitude = is_differentiated ? at::where(wide < 0, -wide, wide) : wide.abs();
  const at::Tensor e = (-magnitude).exp();
  return e / (1 + e);
}

// sigma'(x) = t - t^2 likewise. In float32 for halves.
at::Tensor composed_derivative(const at::Tensor& input) {
  const at::Tensor t = composed_smaller(widened(input));
  return t - t * t;
}

// sigma(x), for a compiler: a backward pass that computes sigma'(x) from x shares its exponential,
// and the negative tail is as small as it is, where that of compilers overflows.
at::Tensor composed_value(const at::Tensor& input) {
  const at::Tensor wide = widened(input);
  const at::Tensor t = composed_smaller(wide);
  return narrowed(at::where(wide < 0, t, 1 - t), input);
}

// grad * sigma'(input), for tensors that the kernels must not see: batched gradients, dual tensors,
// subclasses.
at::Tensor composed_backward(const at::Tensor& grad, const at::Tensor& input) {
  return narrowed(widened(grad) * composed_derivative(input), grad);
}

// sigma'' / sigma' = -tanh(x / 2), which is exact on both tails and at 0.
at::Tensor slope(const at::Tensor& wide) { return (wide * -0.5).tanh(); }

// A node, held by std::shared_ptr or, in newer releases of torch, by c10::intrusive_ptr.
template <class T>
auto make_node() {
  using Base = decltype(std::declval<T&>().getptr());
  if constexpr (std::is_same_v<Base, std::shared_ptr<torch::autograd::Node>>) {
    // Unqualified, so that releases without this function compile.
    return std::shared_ptr<T>(new T, [](T* made) { deleteNode(made); });
  } else {
    return c10::make_intrusive<T>();
  }
}

// A node behind the tensors.
template <class T, class... Tensors>
auto make_node_behind(const Tensors&... tensors) {
  auto node = make_node<T>();
  node->set_next_edges(torch::autograd::collect_next_edges(tensors...));
  return node;
}

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
  at::Tensor value;  // the output again, for the factors that are formed of it
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

// What the gradient of an output is multiplied by. docs/company.md
enum class Factor : uint8_t {
  derivative,         // sigma'(x)
  product,            // y (1 - y), as of nn.Sigmoid
  before_bce,         // max(y (1 - y), 1e-12), which nn.BCELoss divides by
  upper_before_bce,   // the same where y > 1/2, and the product elsewhere
  before_second_bce,  // what the second derivative of nn.BCELoss divides by, over that
  at_exit,            // one of these, by what a compiled region's output went to when it runs
};

struct Choice {
  Factor factor = Factor::derivative;
  // Of nn.BCELoss's input, and of what stands between, if that has fewer digits.
  at::ScalarType loss_dtype = at::kFloat, narrowest_dtype = at::kFloat;
  consumers::Exit exit = consumers::Exit::none;
};

Choice choice_for(const consumers::Uses& uses) {
  if (uses.is_complement_divided) return {Factor::product};
  // Elsewhere there may be a division by y, which must not meet the floor of 1e-12: that is far
  // more than a small y.
  const Factor before_bce = uses.is_elsewhere ? Factor::upper_before_bce : Factor::before_bce;
  if (uses.is_bce) return {before_bce, uses.loss_dtype, uses.narrowest_dtype};
  if (uses.is_second_bce) {
    return {Factor::before_second_bce, uses.loss_dtype, uses.narrowest_dtype};
  }
  return {};
}

// Of what nn.BCELoss divides by: torch's in every dtype.
constexpr float floor_of_bce = 1e-12f;

// The factor of a second pass, which goes through the node of nn.BCELoss's own gradient: that
// divides by the square of (y + 1e-12) (1 - y + 1e-12), and its gradient was multiplied by what the
// loss divides by.
at::Tensor product_before_second_bce(const at::Tensor& grad, const at::Tensor& value,
                                     const Choice& choice) {
  constexpr double summand = 1e-12;
  const at::Tensor y = value.to(choice.narrowest_dtype).to(choice.loss_dtype);
  const at::Tensor divisor = (y + summand).square() * (1 - y + summand).square();
  const at::Tensor multiplied = ((1 - y) * y).clamp_min(floor_of_bce);
  return narrowed(grad.to(choice.loss_dtype) * (divisor / multiplied), grad);
}

// grad * the factor, for those that are formed of the value as it was rounded.
at::Tensor product_from_value(const at::Tensor& grad, const at::Tensor& value,
                              const Choice& choice) {
  if (choice.factor == Factor::product) {
    return autograd::sigmoid_backward_from_output(grad, value);
  }
  if (choice.factor == Factor::before_second_bce) {
    return product_before_second_bce(grad, value, choice);
  }
  if (choice.factor == Factor::upper_before_bce) {
    Choice upper = choice;
    upper.factor = Factor::before_bce;
    return at::where(value > 0.5, product_from_value(grad, value, upper),
                     autograd::sigmoid_backward_from_output(grad, value));
  }
  const at::ScalarType dtype = value.scalar_type();
  const int digits = consumers::digits_of(choice.narrowest_dtype);
  const bool is_rounded =
      digits < consumers::digits_of(dtype) && digits < consumers::digits_of(choice.loss_dtype);
  return autograd::sigmoid_backward_before_bce(
      grad, is_rounded ? value.to(choice.narrowest_dtype).to(dtype) : value, choice.loss_dtype);
}

// The arguments of a node's gradient as compiled autograd passes them to a function of its own: the
// variables in place of which it has proxies, and numbers.
using Numbers = std::array<int64_t, 3>;

Numbers numbers_of(const Choice& choice) {
  return {static_cast<int64_t>(choice.factor), static_cast<int64_t>(choice.loss_dtype),
          static_cast<int64_t>(choice.narrowest_dtype)};
}

Choice choice_of(torch::dynamo::autograd::PackedArgs& arguments) {
  Choice choice;
  choice.factor = static_cast<Factor>(arguments.unpack<int64_t>());
  choice.loss_dtype = static_cast<at::ScalarType>(arguments.unpack<int64_t>());
  choice.narrowest_dtype = static_cast<at::ScalarType>(arguments.unpack<int64_t>());
  return choice;
}

using Traced = variable_list(const variable_list& grads, const std::vector<c10::IValue>& arguments);

variable_list call_traced(const Node& node, Traced* function, const variable_list& grads,
                          const std::array<at::Tensor, 3>& tensors, const Choice& choice,
                          torch::dynamo::autograd::SwapSavedVariables& swap) {
  namespace dynamo = torch::dynamo::autograd;
  dynamo::PackedArgs arguments;
  for (const at::Tensor& tensor : tensors) arguments.pack(tensor);
  for (const int64_t number : numbers_of(choice)) arguments.pack(number);
  std::vector<at::TypePtr> types(tensors.size(), at::TensorType::get());
  types.resize(types.size() + numbers_of(choice).size(), at::IntType::get());
  const auto& compiler = dynamo::getPyCompilerInterface();
  const std::string name =
      compiler->bind_function(swap.get_py_compiler(), node.name(), function, types,
                              /*is_custom_function=*/true, /*is_traceable=*/true);
  return compiler->call_function(
      swap.get_py_compiler(), "apply_functional", name, grads, std::move(arguments).vec(),
      dynamo::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
          dynamo::get_input_metadata(node.next_edges())));
}

// The node of a gradient that may be differentiated: grad * factor, where the factor is sigma' of
// an input, or max(y (1 - y), 1e-12) of a value y whose input has its gradient from here directly.
class ProductNode : public Node {
 public:
  static at::Tensor apply_to(const at::Tensor& grad, const at::Tensor& input) {
    const auto node = make_node_behind<ProductNode>(grad, input);
    const at::Tensor result = dispatched::sigmoid_backward(grad, input);
    torch::autograd::set_history(result, node);
    node->grad_ = SavedVariable(grad, /*is_output=*/false);
    node->source_ = SavedVariable(input, /*is_output=*/false);
    return result;
  }

  static at::Tensor apply_to(const at::Tensor& grad, const at::Tensor& value, const Choice& choice,
                             const torch::autograd::Edge& input) {
    const auto node = make_node<ProductNode>();
    node->set_next_edges({torch::autograd::impl::gradient_edge(grad), input});
    at::Tensor result;
    {
      const at::AutoDispatchBelowADInplaceOrView guard;
      result = product_from_value(grad, value, choice);
    }
    torch::autograd::set_history(result, node);
    node->grad_ = SavedVariable(grad, /*is_output=*/false);
    node->source_ = SavedVariable(value, /*is_output=*/false);
    node->choice_ = choice;
    return result;
  }

  std::string name() const override { return "FusedSigmoidBackwardBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    grad_.reset_data();
    source_.reset_data();
  }

  variable_list apply(variable_list&& outer) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return gradients(outer[0], grad_.unpack(), source_.unpack(), choice_, next_edge(1),
                     task_should_compute_output(0), task_should_compute_output(1));
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    for (const int64_t number : numbers_of(choice_)) args.collect(number);
    args.collect(grad_, /*is_output=*/false);
    args.collect(source_, /*is_output=*/false);
  }

  variable_list apply_with_saved(const variable_list& outer,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    swap.before(grad_);
    swap.before(source_);
    auto result =
        call_traced(*this, traced, outer, {grad_.unpack(), source_.unpack(), {}}, choice_, swap);
    swap.after(grad_);
    swap.after(source_);
    return result;
  }

 private:
  static variable_list gradients(const at::Tensor& outer, const at::Tensor& grad,
                                 const at::Tensor& source, const Choice& choice,
                                 const torch::autograd::Edge& input, bool needs_grad,
                                 bool needs_input) {
    if (!outer.defined()) return {at::Tensor(), at::Tensor()};
    at::Tensor grad_grad, grad_input;
    if (choice.factor == Factor::derivative) {
      if (needs_grad) grad_grad = autograd::sigmoid_backward(outer, source);
      if (needs_input) {
        const at::Tensor wide = widened(source);
        const at::Tensor product = widened(outer) * widened(grad);
        grad_input = narrowed(autograd::sigmoid_backward(product, wide) * slope(wide), source);
      }
    } else {
      if (needs_grad) grad_grad = product_or_node(outer, source, choice, input);
      if (needs_input) {
        const at::Tensor product = product_or_node(outer * grad, source, choice, input);
        grad_input = narrowed(widened(product) * (1 - 2 * widened(source)), source);
      }
    }
    return {grad_grad, grad_input};
  }

  static at::Tensor product_or_node(const at::Tensor& grad, const at::Tensor& value,
                                    const Choice& choice, const torch::autograd::Edge& input) {
    return recorded(grad, value) ? apply_to(grad, value, choice, input)
                                 : product_from_value(grad, value, choice);
  }

  static variable_list traced(const variable_list& outer, const std::vector<c10::IValue>& args) {
    torch::dynamo::autograd::PackedArgs arguments(args);
    const auto grad = arguments.unpack<at::Tensor>(), source = arguments.unpack<at::Tensor>();
    arguments.unpack<at::Tensor>();
    return gradients(outer[0], grad, source, choice_of(arguments), {}, /*needs_grad=*/true,
                     /*needs_input=*/true);
  }

  SavedVariable grad_, source_;
  Choice choice_;
};

// sigma and, where it is asked for, sigma' of the input, the former in the input's memory if so
// wished. Forward-mode AD follows both; nothing is recorded.
struct Results {
  at::Tensor value, derivative;
};

Results compute(const at::Tensor& input, bool with_derivative, bool in_place,
                Saved saved = Saved::automatic) {
  const at::Tensor& tangent = input._fw_grad(/*level=*/0);
  at::Tensor value_tangent, derivative_tangent;
  if (tangent.defined()) {
    const Source primal = {{}, input._fw_primal(/*level=*/0), {}};
    // What is kept for a gradient of the tangent must not be overwritten by the value's.
    const at::Tensor along = in_place ? tangent.clone() : tangent;
    if (saved != Saved::output) value_tangent = first_product(along, primal);
    if (with_derivative) derivative_tangent = second_product(along, primal);
  }
  Results results;
  if (is_composed(input) && !is_transformed()) {
    const at::NoGradGuard no_grad;
    const at::AutoDispatchBelowADInplaceOrView guard;
    if (!in_place) results.value = is_traced(input) ? composed_value(input) : at::sigmoid(input);
    if (with_derivative) results.derivative = narrowed(composed_derivative(input), input);
    if (in_place) {
      results.value = input;
      at::sigmoid_(results.value);
    }
  } else if (!in_place) {
    if (with_derivative) {
      std::tie(results.value, results.derivative) = dispatched::sigmoid_with_derivative(input);
    } else {
      results.value = dispatched::sigmoid(input, saved);
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
    if (saved == Saved::output) value_tangent = at::sigmoid_backward(tangent, results.value);
    // A loss above may divide by the rounded 1 - y, and needs a tangent that cancels. What another
    // one computes of it is a product with sigma' more, which the difference is lost in.
    if (saved == Saved::above) {
      value_tangent = at::where(results.value > 0.5, at::sigmoid_backward(tangent, results.value),
                                value_tangent);
    }
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

// The node that sigmoid() adds to the autograd graph, in place or not, and with two outputs
// sigmoid_with_derivative(). A torch::autograd::Function would do the same and cost 2 us more in a
// training step, for records of its in- and outputs that one elementwise tensor does not need: 10 %
// of a whole step of one element. Nor could it pass over a kept tensor that was changed.
class SigmoidNode : public consumers::Asking {
 public:
  static at::Tensor apply_to(const at::Tensor& input, Saved saved) {
    const auto node = make_node_behind<SigmoidNode>(input);
    node->enclosing_ = enclosing_uses();
    const Keeps keeps = kept_for(saved, input);
    if (!is_transformed()) {
      saved = keeps.input ? Saved::input : saved;
    } else if (saved != Saved::output) {
      saved = Saved::above;
    }
    Results results = compute(input, keeps.derivative, /*in_place=*/false, saved);
    torch::autograd::set_history(results.value, node);
    if (keeps.derivative) node->derivative_ = Kept(results.derivative, /*is_output=*/false);
    if (keeps.input) node->input_ = kept_input(input);
    if (keeps.output) node->output_ = Kept(results.value, /*is_output=*/true);
    return std::move(results.value);
  }

  static void apply_in_place(const at::Tensor& input) {
    const auto node = make_node_behind<SigmoidNode>(input);
    node->enclosing_ = enclosing_uses();
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
    const auto node = make_node_behind<SigmoidNode>(input);
    node->enclosing_ = enclosing_uses();
    node->is_pair_ = true;
    const Results results = compute(input, /*with_derivative=*/true, /*in_place=*/false);
    torch::autograd::set_history(results.value, node);
    torch::autograd::set_history(results.derivative, node);
    node->derivative_ = Kept::watched(results.derivative, /*is_output=*/true);
    node->input_ = kept_input(input);
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
    const Choice choice = grads[0].defined() ? choose_factor(grads[0]) : Choice();
    Source source = unpack(choose(needs_first(grads, choice), needs_second(grads)));
    if (takes_derivative(grads[0], source)) {
      // Whoever runs this node again is told so, even if an error ends this backward pass here.
      reset();
      dispatched::sigmoid_backward_from_derivative_(grads[0], source.derivative);
      return {source.derivative};
    }
    if (choice.factor != Factor::derivative) {
      source.value = unpack_value();
      if (choice.factor == Factor::at_exit && input_) source.input = unpack_input();
      if (takes_gradient(grads[0], source.value, choice)) {
        dispatched::sigmoid_backward_before_bce_(grads[0], source.value, choice.loss_dtype);
        return {std::move(grads[0])};
      }
    }
    const bool is_before_bce =
        choice.factor == Factor::before_bce || choice.factor == Factor::upper_before_bce;
    if (is_before_bce && recorded(grads[0], source.value) && !has_forward_gradient(grads[0]) &&
        !has_forward_gradient(source.value)) {
      const at::Tensor first = ProductNode::apply_to(grads[0], source.value, choice, next_edge(0));
      if (!needs_second(grads)) return {first};
      return {first + second_product(grads[1], source)};
    }
    return {gradient(grads, source, choice)};
  }

  // Compiled autograd: what its cache depends on, and a call of traced() with proxies.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    const Choice choice = choose_factor({});
    for (const int64_t number : numbers_of(choice)) args.collect(number);
    const Keeps chosen = choose_for_compiler(choice);
    for (const bool is_chosen : {chosen.derivative, chosen.input, chosen.output}) {
      args.collect(is_chosen);
    }
    if (chosen.derivative) args.collect(derivative_.variable, /*is_output=*/is_pair_);
    if (chosen.input) args.collect(input_.variable, /*is_output=*/false);
    if (chosen.output) args.collect(output_.variable, /*is_output=*/true);
  }

  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    const Choice choice = choose_factor({});
    const Keeps chosen = choose_for_compiler(choice);
    if (chosen.derivative) swap.before(derivative_.variable);
    if (chosen.input) swap.before(input_.variable);
    if (chosen.output) swap.before(output_.variable);
    const Source source = unpack(chosen);
    auto result = call_traced(*this, traced, grads,
                              {source.derivative, source.input, source.output}, choice, swap);
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

  // What becomes of a node that is made while a checkpoint, say, computes again what the outputs of
  // a node that is being run came from.
  static std::optional<consumers::Uses> enclosing_uses() {
    if (!consumers::is_in_pass()) return std::nullopt;
    return consumers::uses_of_running_node();
  }

  // A compiler looks at no versions: what is kept is a copy, which a change of the input in place
  // leaves as it is, and which costs nothing where there is no change.
  static Kept kept_input(const at::Tensor& input) {
    return is_traced(input) || is_transformed() ? Kept(input.clone(), /*is_output=*/false)
                                                : Kept::watched(input, /*is_output=*/false);
  }

  Choice choose_factor(const at::Tensor& grad) const {
    const consumers::Consumer consumer = consumers::consumer_of(*this);
    const consumers::Uses& uses = consumer.uses;
    if (consumer.exit == consumers::Exit::none || uses.is_bce || uses.is_second_bce ||
        uses.is_complement_divided) {
      return choice_for(uses);
    }
    if (!grad.defined() || !is_traced(grad)) {
      return choice_for(enclosing_.has_value() ? consumers::beyond(*enclosing_, consumer.exit)
                                               : consumers::beyond_pass(consumer));
    }
    if (consumer.exit_of_many != consumers::Exit::none && !at::GradMode::is_enabled()) {
      Choice choice{Factor::at_exit};
      choice.exit = consumer.exit_of_many;
      return choice;
    }
    return choice_for(uses);
  }

  // Whether the value's gradient is that of sigma'(x), or of what nn.Sigmoid keeps by choice.
  static bool needs_first(const variable_list& grads, const Choice& choice) {
    return grads[0].defined() && choice.factor == Factor::derivative;
  }
  bool needs_second(const variable_list& grads) const { return is_pair_ && grads[1].defined(); }

  // What the gradients are computed from: the exact, unless it was changed, and no more than that.
  // Torch's sigmoid keeps its output alone, and models rely on it: x.mul_(x.sigmoid()).
  Keeps choose(bool needs_first, bool needs_second) const {
    if (!needs_first && !needs_second) return {false, false, false};
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
      check_input_unchanged();
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

  // The same for a compiler, and what the value is had from. A graph that was compiled serves with
  // and without a gradient of the pair's derivative.
  Keeps choose_for_compiler(const Choice& choice) const {
    if (choice.factor == Factor::derivative) return choose(/*needs_first=*/true, is_pair_);
    Keeps chosen = choose(/*needs_first=*/false, is_pair_);
    (has_value() ? chosen.output : chosen.input) = true;
    return chosen;
  }

  Source unpack(const Keeps& chosen) {
    Source source;
    if (chosen.derivative) source.derivative = derivative_.variable.unpack(getptr());
    if (chosen.input) source.input = unpack_input();
    if (chosen.output) source.output = output_.variable.unpack(getptr());
    return source;
  }

  at::Tensor unpack_input() {
    // Without a node to stand in, torch says that an input was detached whose history is needed.
    return input_.variable.unpack(at::GradMode::is_enabled() ? nullptr : getptr());
  }

  bool has_value() const { return output_.is_unchanged() || (output_ && !input_); }

  // The value as it was rounded, with this node for its history.
  at::Tensor unpack_value() {
    if (has_value()) return output_.variable.unpack(getptr());
    check_input_unchanged();
    at::Tensor value;
    {
      const at::NoGradGuard no_grad;
      const at::Tensor input = input_.variable.unpack(getptr());
      value = compute(input, /*with_derivative=*/false, /*in_place=*/false).value;
    }
    if (!at::GradMode::is_enabled()) return value;
    return SavedVariable(value, /*is_output=*/true).unpack(getptr());
  }

  void check_input_unchanged() const {
    TORCH_CHECK(input_.is_unchanged(),
                "one of the variables needed for gradient computation has been modified by an "
                "inplace operation: the input of a sigmoid, which fused_sigmoid keeps under "
                "saved=\"input\". With saved=\"auto\" it may change, as with nn.Sigmoid");
  }

  // Whether the result may take the memory of the gradient, which nothing else holds.
  bool takes_gradient(const at::Tensor& grad, const at::Tensor& value, const Choice& choice) const {
    return choice.factor == Factor::before_bce && !is_pair_ && !at::GradMode::is_enabled() &&
           grad.is_cpu() && for_kernels(grad) && for_kernels(value) && grad.use_count() == 1 &&
           grad.storage().use_count() == 1 && !grad.requires_grad() &&
           grad.is_non_overlapping_and_dense() && grad.strides() == value.strides() &&
           grad.sizes() == value.sizes() && grad.scalar_type() == value.scalar_type() &&
           consumers::digits_of(choice.narrowest_dtype) >=
               std::min(consumers::digits_of(grad.scalar_type()),
                        consumers::digits_of(choice.loss_dtype));
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

  static at::Tensor gradient(const variable_list& grads, const Source& source,
                             const Choice& choice) {
    at::Tensor sum;
    if (grads[0].defined()) sum = first_term(grads[0], source, choice);
    if (grads.size() > 1 && grads[1].defined()) {
      const at::Tensor term = second_product(grads[1], source);
      sum = sum.defined() ? sum + term : term;
    }
    return sum;
  }

  static at::Tensor first_term(const at::Tensor& grad, const Source& source, const Choice& choice) {
    if (choice.factor == Factor::derivative) return first_product(grad, source);
    if (choice.factor != Factor::at_exit) return product_from_value(grad, source.value, choice);
    const auto input = source.input.defined() ? std::optional(source.input) : std::nullopt;
    return dispatched::sigmoid_backward_at_exit(grad, input, source.value,
                                                static_cast<int64_t>(choice.exit));
  }

  static variable_list traced(const variable_list& grads, const std::vector<c10::IValue>& args) {
    torch::dynamo::autograd::PackedArgs arguments(args);
    Source source;
    source.derivative = arguments.unpack<at::Tensor>();
    source.input = arguments.unpack<at::Tensor>();
    source.output = arguments.unpack<at::Tensor>();
    const Choice choice = choice_of(arguments);
    if (choice.factor != Factor::derivative) {
      source.value = source.output.defined() ? source.output : at::sigmoid(source.input);
    }
    return {gradient(grads, source, choice)};
  }

  Kept derivative_, input_, output_;
  std::optional<consumers::Uses> enclosing_;
  bool is_pair_ = false;
};

// That of grad * sigma'(input), of which either has one.
void set_tangent(const at::Tensor& product, const at::Tensor& grad, const at::Tensor& input) {
  constexpr uint64_t level = 0;
  const at::Tensor primal = input._fw_primal(level);
  at::Tensor tangent;
  if (const at::Tensor& along = grad._fw_grad(level); along.defined()) {
    tangent = autograd::sigmoid_backward(along, primal);
  }
  if (const at::Tensor& along = input._fw_grad(level); along.defined()) {
    const at::Tensor wide = widened(primal);
    const at::Tensor scaled = widened(grad._fw_primal(level)) * widened(along);
    const at::Tensor term = narrowed(autograd::sigmoid_backward(scaled, wide) * slope(wide), input);
    tangent = tangent.defined() ? tangent + term : term;
  }
  product._set_fw_grad(tangent, level, /*is_inplace_op=*/false);
}

}  // namespace

bool is_followed(const at::Tensor& input) { return recorded(input) || has_forward_gradient(input); }

at::Tensor sigmoid(const at::Tensor& input, Saved saved) {
  if (recorded(input)) return SigmoidNode::apply_to(input, saved);
  if (!has_forward_gradient(input) && !is_traced(input)) {
    return dispatched::sigmoid(input, is_transformed() ? saved : Saved::automatic);
  }
  return compute(input, /*with_derivative=*/false, /*in_place=*/false, saved).value;
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
  if (!is_transformed() && (!for_kernels(grad) || !for_kernels(input))) {
    return composed_backward(grad, input);
  }
  // Of a copy, which nobody changes before the second backward pass.
  const at::Tensor result = recorded(grad, input) ? ProductNode::apply_to(grad, input.clone())
                                                  : dispatched::sigmoid_backward(grad, input);
  if (is_transformed() && (has_forward_gradient(grad) || has_forward_gradient(input))) {
    set_tangent(result, grad, input);
  }
  return result;
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
  const bool has_tangent = has_forward_gradient(grad) || has_forward_gradient(output);
  if (recorded(grad, output)) {
    // Of the output of a sigmoid: under transforms, where another level asked for this.
    const auto node = output.grad_fn();
    if (!has_tangent && node && dynamic_cast<const SigmoidNode*>(node.get()) != nullptr) {
      return ProductNode::apply_to(grad, output, {Factor::before_bce, loss_dtype, loss_dtype},
                                   node->next_edge(0));
    }
  } else if (!has_tangent && (is_transformed() || (for_kernels(grad) && for_kernels(output)))) {
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
  const at::Tensor divisor = at::clamp_min(product.detach(), floor_of_bce);
  const at::Tensor result = converted(grad, loss_dtype) * (divisor + (product - product.detach()));
  return converted(result, at::result_type(grad, output));
}

at::Tensor sigmoid_backward_at_exit(const at::Tensor& grad, const std::optional<at::Tensor>& input,
                                    const at::Tensor& output, int64_t exit) {
  const consumers::Uses uses =
      consumers::beyond(consumers::uses_of_running_node(), static_cast<consumers::Exit>(exit));
  const Choice choice = choice_for(uses);
  if (choice.factor != Factor::derivative) return product_from_value(grad, output, choice);
  return input.has_value() ? dispatched::sigmoid_backward(grad, *input)
                           : dispatched::sigmoid_backward_from_output(grad, output);
}

}  // namespace fused_sigmoid::autograd
