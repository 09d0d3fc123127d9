// The nodes of the autograd graph. Derivatives are exact on both tails to every order, except under
// Saved::output, which is torch's own gradient by choice.
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/result_type.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/where.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>

#include "consumers.h"
#include "kept.h"
#include "layout.h"
#include "node.h"
#include "operators.h"

namespace fused_sigmoid {
namespace {

using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// The result of an operator below autograd.
template <class F>
at::Tensor call(Work work, Tensors inputs, Argument argument = {}) {
  at::Tensor result;
  call_operator({number_of_function<F>, work}, {&result}, inputs, argument);
  return result;
}

template <class F>
at::Tensor call_value(const at::Tensor& input, Saved saved) {
  return call<F>(saved == Saved::input ? Work::value_of_kept : Work::value, {&input}, saved);
}

// Calls an operator that writes into these tensors; undefined ones are allocated.
template <class F>
void call_into(Work work, at::ArrayRef<at::Tensor*> outputs, Tensors inputs) {
  call_operator({number_of_function<F>, work}, outputs, inputs);
}

// The same from above autograd and torch.func, as torch's own nodes call theirs.
template <class F>
at::Tensor call_above(Work work, Tensors inputs, Argument argument = {}) {
  return call_from_above({number_of_function<F>, work}, inputs, argument);
}

// These tell what is active around a call, and what it means for a tensor.

// A batch of gradients (is_grads_batched) has its history beneath it, where operations of ATen
// record it.
bool is_batch(const at::Tensor& tensor) { return tensor.key_set().has(c10::DispatchKey::Batched); }

template <class... Tensors>
bool is_recorded(const Tensors&... tensors) {
  return (tensors.requires_grad() || ...) && !(is_batch(tensors) || ...) && records();
}

// Whether a compiler traces the tensor, forward and backward, and replaces operations in place.
bool is_traced(const at::Tensor& tensor) {
  using c10::impl::TorchDispatchModeTLS, c10::impl::TorchDispatchModeKey;
  return !is_ordinary(tensor) &&
         TorchDispatchModeTLS::get_mode(TorchDispatchModeKey::PROXY).has_value() &&
         TorchDispatchModeTLS::get_mode(TorchDispatchModeKey::FUNCTIONAL).has_value();
}

// Whether a transform of torch.func is active: below this level of it lie others.
bool is_transformed() {
  return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerBackMode);
}

// Whether torch.func differentiates by the tensor, on one level or more.
bool is_of_transform(const at::Tensor& tensor) {
  return tensor.key_set().has(c10::DispatchKey::FuncTorchGradWrapper);
}

// Whether torch.func has yet to see the call. The engine calls a node where its backward pass
// began: above all transforms that are active there, or, with tensors of a transform that has
// ended, such as the function of torch.func.vjp, above none. Autograd below them follows what the
// dispatcher hands down to it, and nothing else.
template <class... Tensors>
bool is_above_transforms(const Tensors&... tensors) {
  using c10::DispatchKey;
  if (is_transformed()) {
    return c10::impl::tls_is_dispatch_key_included(DispatchKey::FuncTorchDynamicLayerFrontMode) &&
           !c10::impl::tls_is_dispatch_key_excluded(DispatchKey::FuncTorchDynamicLayerFrontMode);
  }
  return (is_of_transform(tensors) || ...);
}

// Whether a node is to be made here, and not on a level of torch.func that lies beneath.
template <class... Tensors>
bool is_recorded_here(const Tensors&... tensors) {
  return is_recorded(tensors...) && !is_above_transforms(tensors...);
}

bool is_for_kernels(const at::Tensor& tensor) {
  return is_unobserved(tensor) && has_kernel_dtype(tensor) && !has_tangent(tensor);
}

void check_writable(const at::Tensor& tensor) {
  TORCH_CHECK(!tensor.is_inference() || c10::InferenceMode::is_enabled(),
              "Inplace update to inference tensor outside InferenceMode is not allowed. You can "
              "make a clone to get a normal tensor before doing inplace update.");
}

void check_out(const at::Tensor& input, const at::Tensor& out, const std::string& name) {
  TORCH_CHECK_NOT_IMPLEMENTED(!has_tangent(input), "the operator fused_sigmoid::", name,
                              "_out has no forward-mode derivative; without `out` there is one");
  if (is_recorded(input, out)) torch::autograd::throw_error_out_requires_grad(name.c_str());
  check_writable(out);
}

void count_write(const at::Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

// What a node keeps for its backward pass. A checkpoint takes what is kept the second time for what
// was kept the first time, in the same order. So it follows from the call and the tensor alone,
// never from what is active around them: dispatch modes, hooks, forward-mode AD.
struct Keeps {
  bool derivative, input, output;
};

// Saved::automatic keeps the derivative on a CPU if that has so many bytes, and else the input;
// docs/performance.md has the measurement. Below, the arithmetic saved is less than what one more
// tensor costs; above, the derivative leaves the cache before it is read back.
constexpr int64_t automatic_derivative_from = 16 << 10;
constexpr int64_t automatic_derivative_to = 8 << 20;

Keeps kept_for(Saved saved, const at::Tensor& input) {
  if (saved == Saved::output) return {false, false, true};
  // Compilers compute the derivative where it is needed.
  if (is_traced(input)) return {false, true, true};
  if (saved == Saved::input) return {false, true, false};
  // A derivative that is kept would have a history on the levels beneath, to which one of the
  // output would be added.
  if (is_of_transform(input)) return {false, true, true};
  if (saved == Saved::automatic) {
    // On a GPU memory traffic decides at every size: 5 element sizes with the input against 6. A
    // tensor of another kind may have no size yet. The output stands in for an input that was
    // changed.
    if (!input.is_cpu() || !is_ordinary(input)) return {false, true, true};
    const int64_t bytes = input.numel() * static_cast<int64_t>(input.element_size());
    if (bytes < automatic_derivative_from || bytes > automatic_derivative_to) {
      return {false, true, true};
    }
  }
  // The second derivative formed of the rounded output is wrong relatively as x nears 0. Those who
  // differentiate twice compute in float64: there, and only there, exactness costs memory.
  return {true, input.scalar_type() == at::kDouble, true};
}

// In place the input is overwritten: float64 keeps a copy of it, and so does torch.func.
Keeps kept_in_place(const at::Tensor& input) {
  const bool copies = input.scalar_type() == at::kDouble || is_of_transform(input);
  return {!copies, copies, true};
}

// A compiler looks at no versions: what is kept is a copy, which a change of the input in place
// leaves as it is, and which costs nothing where there is no change.
Kept kept_input(const at::Tensor& input) {
  return is_traced(input) || is_transformed()
             ? Kept(input.clone(), /*is_output=*/false)
             : Kept::watched(input, /*is_output=*/false, is_ordinary(input));
}

// Formulas in ATen operations, for tensors that the kernels must not see: batched gradients, dual
// tensors, subclasses.

// Halves are computed in float32 and rounded once.
at::Tensor widened(const at::Tensor& tensor) {
  const at::ScalarType dtype = tensor.scalar_type();
  return dtype == at::kHalf || dtype == at::kBFloat16 ? tensor.to(at::kFloat) : tensor;
}

at::Tensor narrowed(const at::Tensor& wide, const at::Tensor& like) {
  return converted(wide, like.scalar_type());
}

// |x|. The selection has a derivative for all x, where abs() has none at 0. Where nothing is
// differentiated, abs() is an operation less, and jagged tensors have it.
at::Tensor magnitude(const at::Tensor& wide) {
  const bool is_differentiated = is_recorded(wide) || has_tangent(wide) || is_transformed();
  return is_differentiated ? at::where(wide < 0, -wide, wide) : wide.abs();
}

template <class F>
at::Tensor composed_value(const at::Tensor& input) {
  const at::Tensor wide = widened(input);
  return narrowed(F::composed_value(wide, magnitude(wide)), input);
}

template <class F>
at::Tensor composed_backward(const at::Tensor& grad, const at::Tensor& input) {
  return narrowed(widened(grad) * F::composed_derivative(magnitude(widened(input))), grad);
}

// What a gradient is computed from. What is undefined is not needed.
struct Source {
  at::Tensor derivative, input, output;
  at::Tensor value;  // the output again, for the factors that are formed of it
};

// grad * f'.
template <class F>
at::Tensor first_product(const at::Tensor& grad, const Source& from) {
  if (!from.derivative.defined()) {
    return from.input.defined() ? Autograd<F>::backward(grad, from.input)
                                : Autograd<F>::backward_from_output(grad, from.output);
  }
  if (is_recorded(from.derivative)) {
    // The derivative is an output of the pair, whose owner may change it before the second pass.
    return grad * from.derivative.clone();
  }
  if (!from.output.defined() || from.derivative.requires_grad()) {
    return Autograd<F>::backward_from_derivative(grad, from.derivative);
  }
  // The derivative was kept as a number and has no history. What is added is exactly 0, and its
  // history and tangent are those of a derivative formed of the output.
  const at::Tensor number =
      has_tangent(from.derivative) ? from.derivative._fw_primal(/*level=*/0) : from.derivative;
  return grad * (number + F::derivative_difference(from.output, from.output.detach()));
}

// grad * f''.
template <class F>
at::Tensor second_product(const at::Tensor& grad, const Source& from) {
  const auto wide = [](const at::Tensor& t) { return t.defined() ? widened(t) : t; };
  const Source widely = {wide(from.derivative), wide(from.input), wide(from.output), {}};
  const at::Tensor factor =
      from.input.defined() ? F::curvature(widely.input) : F::curvature_from_output(widely.output);
  return narrowed(first_product<F>(widened(grad), widely) * factor, grad);
}

// What the gradient of an output is multiplied by. docs/company.md has the rule.
enum class Factor : uint8_t {
  derivative,         // f'(x)
  product,            // y (1 - y), as torch forms it
  before_bce,         // max(y (1 - y), 1e-12), which nn.BCELoss divides by
  upper_before_bce,   // the same where y > 1/2, and the product elsewhere
  before_second_bce,  // what the second derivative of nn.BCELoss divides by, over that
  at_exit,            // one of these, by what a compiled region's output went to when it runs
};

struct Choice {
  Factor factor = Factor::derivative;
  // These are the dtypes of nn.BCELoss's input and, if it has fewer digits, of what stands between.
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

// The factor of a second pass, which goes through the node of nn.BCELoss's own gradient: that
// divides by the square of (y + 1e-12) (1 - y + 1e-12), and its gradient was multiplied by what the
// loss divides by.
template <class F>
at::Tensor product_before_second_bce(const at::Tensor& grad, const at::Tensor& value,
                                     const Choice& choice) {
  constexpr double summand = 1e-12;
  const at::Tensor y = value.to(choice.narrowest_dtype).to(choice.loss_dtype);
  const at::Tensor divisor = (y + summand).square() * (1 - y + summand).square();
  const at::Tensor multiplied = ((1 - y) * y).clamp_min(floor_of_bce);
  return narrowed(grad.to(choice.loss_dtype) * (divisor / multiplied), grad);
}

// grad * the factor, for those that are formed of the value as it was rounded.
template <class F>
at::Tensor product_from_value(const at::Tensor& grad, const at::Tensor& value,
                              const Choice& choice) {
  if (choice.factor == Factor::product) return Autograd<F>::backward_from_output(grad, value);
  if (choice.factor == Factor::before_second_bce) {
    return product_before_second_bce<F>(grad, value, choice);
  }
  if (choice.factor == Factor::upper_before_bce) {
    Choice upper = choice;
    upper.factor = Factor::before_bce;
    return at::where(value > 0.5, product_from_value<F>(grad, value, upper),
                     Autograd<F>::backward_from_output(grad, value));
  }
  const at::ScalarType dtype = value.scalar_type();
  const int digits = consumers::digits_of(choice.narrowest_dtype);
  const bool is_rounded =
      digits < consumers::digits_of(dtype) && digits < consumers::digits_of(choice.loss_dtype);
  return Autograd<F>::backward_before_bce(
      grad, is_rounded ? value.to(choice.narrowest_dtype).to(dtype) : value, choice.loss_dtype);
}

// Compiled autograd calls a function of tensors and numbers in place of a node, with proxies for
// the tensors.

using Numbers = std::array<int64_t, 3>;

Numbers numbers_of(const Choice& choice) {
  return {static_cast<int64_t>(choice.factor), static_cast<int64_t>(choice.loss_dtype),
          static_cast<int64_t>(choice.narrowest_dtype)};
}

struct TracedArguments {
  std::array<at::Tensor, 3> tensors;
  Choice choice;

  explicit TracedArguments(const std::vector<c10::IValue>& packed) {
    torch::dynamo::autograd::PackedArgs arguments(packed);
    for (at::Tensor& tensor : tensors) tensor = arguments.unpack<at::Tensor>();
    choice.factor = static_cast<Factor>(arguments.unpack<int64_t>());
    choice.loss_dtype = static_cast<at::ScalarType>(arguments.unpack<int64_t>());
    choice.narrowest_dtype = static_cast<at::ScalarType>(arguments.unpack<int64_t>());
  }
};

template <class F>
std::string name_of_node(const char* suffix) {
  std::string name = F::name;
  name[0] = static_cast<char>(std::toupper(name[0]));
  return "Fused" + name + suffix;
}

// The node of a gradient that may be differentiated: grad * factor, where the factor is f' of an
// input, or is formed of a value; the second edge leads straight to that value's input.
template <class F>
class ProductNode : public Node {
 public:
  static at::Tensor apply_to(const at::Tensor& grad, const at::Tensor& input) {
    return apply_to(grad, input, {}, torch::autograd::impl::gradient_edge(input));
  }

  // `edge` leads to the input.
  static at::Tensor apply_to(const at::Tensor& grad, const at::Tensor& source, const Choice& choice,
                             const torch::autograd::Edge& edge) {
    const auto node = make_node<ProductNode>();
    node->set_next_edges({torch::autograd::impl::gradient_edge(grad), edge});
    at::Tensor result;
    if (choice.factor == Factor::derivative) {
      result = call<F>(Work::backward, {&grad, &source});
    } else {
      const at::AutoDispatchBelowADInplaceOrView guard;
      result = product_from_value<F>(grad, source, choice);
    }
    torch::autograd::set_history(result, node);
    node->grad_ = SavedVariable(grad, /*is_output=*/false);
    node->source_ = SavedVariable(source, /*is_output=*/false);
    node->choice_ = choice;
    return result;
  }

  std::string name() const override { return name_of_node<F>("BackwardBackward"); }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    grad_.reset_data();
    source_.reset_data();
  }

  variable_list apply(variable_list&& outer) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!outer[0].defined()) return {at::Tensor(), at::Tensor()};
    const at::Tensor grad = grad_.unpack(), source = source_.unpack();
    variable_list gradients(2);
    if (task_should_compute_output(0)) {
      gradients[0] = product(outer[0], source, choice_, next_edge(1));
    }
    if (task_should_compute_output(1)) {
      gradients[1] = gradient_of_source(outer[0], grad, source, choice_, next_edge(1));
    }
    return gradients;
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
    auto result = call_traced(*this, traced, outer,
                              std::array{grad_.unpack(), source_.unpack(), at::Tensor()},
                              numbers_of(choice_), swap);
    swap.after(grad_);
    swap.after(source_);
    return result;
  }

 private:
  static variable_list traced(const variable_list& outer, const std::vector<c10::IValue>& packed) {
    if (!outer[0].defined()) return {at::Tensor(), at::Tensor()};
    const TracedArguments of(packed);
    const auto& [grad, source, none] = of.tensors;
    return {product(outer[0], source, of.choice, {}),
            gradient_of_source(outer[0], grad, source, of.choice, {})};
  }

  // grad * the factor, which has a node like this one where it may be differentiated again.
  static at::Tensor product(const at::Tensor& grad, const at::Tensor& source, const Choice& choice,
                            const torch::autograd::Edge& edge) {
    if (choice.factor == Factor::derivative) return Autograd<F>::backward(grad, source);
    return is_recorded_here(grad, source) ? apply_to(grad, source, choice, edge)
                                          : product_from_value<F>(grad, source, choice);
  }

  static at::Tensor gradient_of_source(const at::Tensor& outer, const at::Tensor& grad,
                                       const at::Tensor& source, const Choice& choice,
                                       const torch::autograd::Edge& edge) {
    const at::Tensor wide = widened(source);
    if (choice.factor == Factor::derivative) {
      // The order of operations is the order in which the engine sums up their gradients.
      const at::Tensor product = widened(outer) * widened(grad);
      const at::Tensor curvature = F::curvature(wide);
      return narrowed(Autograd<F>::backward(product, wide) * curvature, source);
    }
    const at::Tensor first = product(outer * grad, source, choice, edge);
    return narrowed(widened(first) * F::curvature_from_output(wide), source);
  }

  SavedVariable grad_, source_;
  Choice choice_;
};

struct Results {
  at::Tensor value, derivative;
};

// What `compute` does where forward-mode AD follows nothing.
template <class F>
Results compute_without_tangent(const at::Tensor& input, bool with_derivative, bool in_place,
                                Saved saved, const NodePointer& node) {
  Results results;
  if (in_place) results.value = input;
  if (!is_unobserved(input) && has_kernel_dtype(input) && !is_transformed()) {
    // Operations of ATen are what dispatch modes and subclasses are to see.
    const at::NoGradGuard no_grad;
    const at::AutoDispatchBelowADInplaceOrView guard;
    if (!in_place)
      results.value = is_traced(input) ? composed_value<F>(input) : F::torch_value(input);
    if (with_derivative) {
      results.derivative = narrowed(F::composed_derivative(magnitude(widened(input))), input);
    }
    if (in_place) F::torch_in_place(input);
  } else if (with_derivative) {
    if (in_place) {
      const at::NoGradGuard no_grad;
      results.derivative = at::empty_like(input);
    }
    call_into<F>(Work::value_and_derivative, {&results.value, &results.derivative}, {&input});
  } else if (in_place) {
    call_into<F>(Work::value, {&results.value}, {&input});
  } else {
    results.value = call_value<F>(input, saved);
  }
  if (node) torch::autograd::set_history(results.value, node);
  return results;
}

// f and, where it is asked for, f' of the input, the former in the input's memory if so wished.
// Forward-mode AD follows both. Nothing is recorded, unless a node is given: the value's history is
// then that, which a tangent that is formed of it has as well.
template <class F>
Results compute(const at::Tensor& input, bool with_derivative, bool in_place,
                Saved saved = Saved::automatic, const NodePointer& node = {}) {
  constexpr uint64_t level = 0;
  if (!has_tangent(input)) {
    return compute_without_tangent<F>(input, with_derivative, in_place, saved, node);
  }
  const at::Tensor tangent = input._fw_grad(level);
  const Source primal = {{}, input._fw_primal(level), {}, {}};
  // What is kept for a gradient of the tangent must not be overwritten by the value's.
  const at::Tensor along = in_place ? tangent.clone() : tangent;
  at::Tensor value_tangent, derivative_tangent;
  if (saved != Saved::output) value_tangent = first_product<F>(along, primal);
  if (with_derivative) derivative_tangent = second_product<F>(along, primal);
  const Results results = compute_without_tangent<F>(input, with_derivative, in_place, saved, node);
  if (saved == Saved::output) value_tangent = F::torch_gradient(tangent, results.value);
  // A loss above may divide by the rounded 1 - y, and needs a tangent that cancels. What another
  // one computes of it is a product with f' more, which the difference is lost in.
  if (saved == Saved::above && F::is_probability) {
    value_tangent =
        at::where(results.value > 0.5, F::torch_gradient(tangent, results.value), value_tangent);
  }
  if (in_place) tangent.copy_(value_tangent);
  results.value._set_fw_grad(in_place ? tangent : value_tangent, level, in_place);
  if (with_derivative) {
    results.derivative._set_fw_grad(derivative_tangent, level, /*is_inplace_op=*/false);
  }
  return results;
}

// The node of a function of an input, in place or not, and with two outputs of value and
// derivative. A torch::autograd::Function would do the same and cost 6 us more in a training step,
// for records of its in- and outputs that one elementwise tensor does not need: a third of a whole
// step of one element. Nor could it pass over a kept tensor that was changed.
template <class F>
class FunctionNode : public consumers::Asking {
 public:
  static at::Tensor apply_to(const at::Tensor& input, Saved saved) {
    const auto node = make_behind(input);
    const Keeps keeps = kept_for(saved, input);
    if (!is_transformed()) {
      saved = keeps.input ? Saved::input : saved;
    } else if (saved != Saved::output) {
      saved = Saved::above;
    }
    Results results = compute<F>(input, keeps.derivative, /*in_place=*/false, saved, node);
    if (keeps.derivative) node->derivative_ = Kept(results.derivative, /*is_output=*/false);
    if (keeps.input) node->input_ = kept_input(input);
    if (keeps.output) node->output_ = Kept(results.value, /*is_output=*/true);
    return std::move(results.value);
  }

  static void apply_in_place(const at::Tensor& input) {
    const auto node = make_behind(input);
    const Keeps keeps = kept_in_place(input);
    // The copy has the history that the input is about to lose.
    if (keeps.input) node->input_ = Kept(input.clone(), /*is_output=*/false);
    const Results results = compute<F>(input, keeps.derivative, /*in_place=*/true);
    count_write(input);
    torch::autograd::rebase_history(input, node);
    if (keeps.derivative) node->derivative_ = Kept(results.derivative, /*is_output=*/false);
    node->output_ = Kept(input, /*is_output=*/true, input.is_view());
  }

  static Pair apply_to_pair(const at::Tensor& input) {
    const auto node = make_behind(input);
    node->is_pair_ = true;
    const Results results = compute<F>(input, /*with_derivative=*/true, /*in_place=*/false);
    torch::autograd::set_history(results.value, node);
    torch::autograd::set_history(results.derivative, node);
    node->derivative_ =
        Kept::watched(results.derivative, /*is_output=*/true, is_ordinary(results.derivative));
    node->input_ = kept_input(input);
    node->output_ = Kept(results.value, /*is_output=*/true);
    return {results.value, results.derivative};
  }

  // grad * the factor with a node that leads straight to the input that the value is of; undefined
  // where nothing is recorded, or the value does not come from a node like this one.
  static at::Tensor recorded_product(const at::Tensor& grad, const at::Tensor& value,
                                     const Choice& choice) {
    if (!is_recorded_here(grad, value) || has_tangent(grad) || has_tangent(value)) return {};
    const auto node = value.grad_fn();
    const auto* of_value = dynamic_cast<const FunctionNode*>(node.get());
    if (!of_value || !of_value->next_edge(0).is_valid()) return {};
    return ProductNode<F>::apply_to(grad, value, choice, of_value->next_edge(0));
  }

  std::string name() const override { return name_of_node<F>("Backward"); }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    release();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!task_should_compute_output(0)) return {at::Tensor()};
    const Choice choice = grads[0].defined() ? choose_factor(grads[0]) : Choice();
    const bool needs_first = grads[0].defined() && choice.factor == Factor::derivative;
    Source source = unpack(choose(needs_first, needs_second(grads)));
    if (takes_derivative(grads[0], source)) {
      // Whoever runs this node again is told so, even if an error ends this backward pass here.
      release();
      if (grads[0].is_cpu()) {
        call_into<F>(Work::backward_from_derivative, {&source.derivative},
                     {&grads[0], &source.derivative});
      } else {
        const at::AutoDispatchBelowADInplaceOrView guard;
        source.derivative.mul_(grads[0]);
      }
      return {source.derivative};
    }
    if (choice.factor != Factor::derivative) {
      source.value = unpack_value();
      if (choice.factor == Factor::at_exit && input_) source.input = unpack_input();
    }
    if (takes_gradient(grads[0], source.value, choice)) {
      call_operator({number_of_function<F>, Work::backward_before_bce}, {&grads[0]},
                    {&grads[0], &source.value}, choice.loss_dtype);
      return {std::move(grads[0])};
    }
    return {gradient(grads, source, choice)};
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    const Choice choice = choose_factor({});
    for (const int64_t number : numbers_of(choice)) args.collect(number);
    for (const auto& [kept, is_chosen, is_output] : parts(*this, choose_for_compiler(choice))) {
      args.collect(is_chosen);
      if (is_chosen) args.collect(kept->variable, is_output);
    }
  }

  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    const Choice choice = choose_factor({});
    const Keeps chosen = choose_for_compiler(choice);
    for (const auto& [kept, is_chosen, is_output] : parts(*this, chosen)) {
      if (is_chosen) swap.before(kept->variable);
    }
    const Source source = unpack(chosen);
    auto result = call_traced(*this, traced, grads,
                              std::array{source.derivative, source.input, source.output},
                              numbers_of(choice), swap);
    for (const auto& [kept, is_chosen, is_output] : parts(*this, chosen)) {
      if (is_chosen) swap.after(kept->variable);
    }
    return result;
  }

 private:
  static auto make_behind(const at::Tensor& input) {
    auto node = make_node<FunctionNode>();
    node->set_next_edges(torch::autograd::collect_next_edges(input));
    // A checkpoint, say, computes again what the outputs of a node that is being run came from:
    // what becomes of that node's outputs, becomes of this one's.
    if (consumers::is_in_pass()) node->enclosing_ = consumers::uses_of_running_node();
    return node;
  }

  // What is kept, whether it was chosen, and whether it is an output of this node.
  template <class Self>
  static auto parts(Self& self, const Keeps& chosen) {
    return std::array{std::tuple{&self.derivative_, chosen.derivative, self.is_pair_},
                      std::tuple{&self.input_, chosen.input, false},
                      std::tuple{&self.output_, chosen.output, true}};
  }

  void release() {
    for (Kept* kept : {&derivative_, &input_, &output_}) kept->variable.reset_data();
  }

  Choice choose_factor(const at::Tensor& grad) const {
    if constexpr (!F::is_probability) return {};
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

  // Whether there is a gradient of the pair's derivative.
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
      TORCH_WARN_ONCE("fused_sigmoid: the input of a ", F::name,
                      " was changed in place before the backward pass, so that its gradient is "
                      "torch's own, from "
                      "the rounded output. For the exact one write x = x * x.",
                      F::name, "() in place of x.mul_(x.", F::name,
                      "()), or pass saved=\"derivative\". This is said once.");
    }
    return {derivative, false, true};
  }

  // Chooses for a compiler, and adds whichever of output and input the value is had from. A graph
  // that was compiled serves with and without a gradient of the pair's derivative.
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

  // The value as it was rounded, with its history.
  at::Tensor unpack_value() {
    if (has_value()) return output_.variable.unpack(getptr());
    check_input_unchanged();
    const at::Tensor input = input_.variable.unpack(getptr());
    if (is_above_transforms(input)) return call_above<F>(Work::value, {&input}, Saved::automatic);
    // Computed again, it has a node of its own, or this one if the input was detached since.
    if (is_recorded(input) && input_.has_history()) return apply_to(input, Saved::automatic);
    at::Tensor value;
    {
      const at::NoGradGuard no_grad;
      value = compute<F>(input, /*with_derivative=*/false, /*in_place=*/false).value;
    }
    if (at::GradMode::is_enabled()) {
      torch::autograd::impl::set_gradient_edge(value, {getptr(), /*input_nr=*/0});
    }
    return value;
  }

  void check_input_unchanged() const {
    TORCH_CHECK(input_.is_unchanged(),
                "one of the variables needed for gradient computation has been modified by an "
                "inplace operation: the input of a ",
                F::name,
                ", which fused_sigmoid keeps under saved=\"input\". With saved=\"auto\" it may "
                "change, as with torch's own ",
                F::name);
  }

  // Whether the result may take the memory of the gradient, which nothing else holds.
  bool takes_gradient(const at::Tensor& grad, const at::Tensor& value, const Choice& choice) const {
    return choice.factor == Factor::before_bce && !is_pair_ && !at::GradMode::is_enabled() &&
           grad.is_cpu() && is_for_kernels(grad) && is_for_kernels(value) &&
           grad.use_count() == 1 && grad.storage().use_count() == 1 && !grad.requires_grad() &&
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
    if (is_pair_ || !derivative.defined() || !grad.defined() ||
        !is_last_use(*this, derivative_.variable, derivative)) {
      return false;
    }
    const bool is_expanded_number = std::all_of(grad.strides().begin(), grad.strides().end(),
                                                [](int64_t stride) { return stride == 0; });
    // The result has then the strides that torch gives it.
    return is_for_kernels(grad) && is_for_kernels(derivative) &&
           grad.scalar_type() == derivative.scalar_type() && grad.sizes() == derivative.sizes() &&
           grad.device() == derivative.device() && derivative.is_non_overlapping_and_dense() &&
           (is_laid_out_alike(grad, derivative) || is_expanded_number);
  }

  static at::Tensor gradient(const variable_list& grads, const Source& source,
                             const Choice& choice) {
    at::Tensor sum;
    if (grads[0].defined()) sum = first_term(grads[0], source, choice);
    if (grads.size() > 1 && grads[1].defined()) {
      const at::Tensor term = second_product<F>(grads[1], source);
      sum = sum.defined() ? sum + term : term;
    }
    return sum;
  }

  static at::Tensor first_term(const at::Tensor& grad, const Source& source, const Choice& choice) {
    if (choice.factor == Factor::derivative) return first_product<F>(grad, source);
    if (choice.factor == Factor::at_exit) {
      const auto input = source.input.defined() ? OptionalTensor(source.input) : std::nullopt;
      return call_backward_at_exit(number_of_function<F>, grad, input, source.value,
                                   static_cast<int64_t>(choice.exit));
    }
    at::Tensor product;
    if (choice.factor == Factor::before_bce || choice.factor == Factor::upper_before_bce) {
      product = recorded_product(grad, source.value, choice);
    }
    return product.defined() ? product : product_from_value<F>(grad, source.value, choice);
  }

  static variable_list traced(const variable_list& grads, const std::vector<c10::IValue>& packed) {
    const TracedArguments of(packed);
    Source source = {of.tensors[0], of.tensors[1], of.tensors[2], {}};
    if (of.choice.factor != Factor::derivative) {
      source.value = source.output.defined() ? source.output : F::torch_value(source.input);
    }
    return {gradient(grads, source, of.choice)};
  }

  Kept derivative_, input_, output_;
  std::optional<consumers::Uses> enclosing_;
  bool is_pair_ = false;
};

// Sets the tangent of grad * f'(input), where either has one.
template <class F>
void set_tangent(const at::Tensor& product, const at::Tensor& grad, const at::Tensor& input) {
  constexpr uint64_t level = 0;
  const at::Tensor primal = input._fw_primal(level);
  at::Tensor tangent;
  if (const at::Tensor& along = grad._fw_grad(level); along.defined()) {
    tangent = Autograd<F>::backward(along, primal);
  }
  if (const at::Tensor& along = input._fw_grad(level); along.defined()) {
    const at::Tensor wide = widened(primal);
    const at::Tensor scaled = widened(grad._fw_primal(level)) * widened(along);
    const at::Tensor term =
        narrowed(Autograd<F>::backward(scaled, wide) * F::curvature(wide), input);
    tangent = tangent.defined() ? tangent + term : term;
  }
  product._set_fw_grad(tangent, level, /*is_inplace_op=*/false);
}

// grad * a factor by the kernel or, where more than the kernel has to follow, in ATen operations.
template <class F, class Composed>
at::Tensor product_or_composed(Work work, const at::Tensor& grad, const at::Tensor& kept,
                               const Composed& composed) {
  if (is_above_transforms(grad, kept)) return call_above<F>(work, {&grad, &kept});
  const bool is_plain = !is_recorded(grad, kept) && is_for_kernels(grad) && is_for_kernels(kept);
  return is_plain ? call<F>(work, {&grad, &kept}) : composed();
}

}  // namespace

bool is_followed(const at::Tensor& input) { return is_recorded(input) || has_tangent(input); }

template <class F>
at::Tensor Autograd<F>::value(const at::Tensor& input, Saved saved) {
  if (is_recorded(input)) return FunctionNode<F>::apply_to(input, saved);
  if (!has_tangent(input) && !is_traced(input)) {
    return call_value<F>(input, is_transformed() ? saved : Saved::automatic);
  }
  return compute<F>(input, /*with_derivative=*/false, /*in_place=*/false, saved).value;
}

template <class F>
void Autograd<F>::in_place(at::Tensor input) {
  check_writable(input);
  if (is_recorded(input)) {
    // Before the kernel runs: an error leaves the input as it was.
    torch::autograd::check_inplace(input, /*requires_grad=*/true);
    FunctionNode<F>::apply_in_place(input);
  } else {
    compute<F>(input, /*with_derivative=*/false, /*in_place=*/true);
    count_write(input);
  }
}

template <class F>
void Autograd<F>::value_out(const at::Tensor& input, at::Tensor out) {
  check_out(input, out, F::name);
  call_into<F>(Work::value, {&out}, {&input});
  count_write(out);
}

template <class F>
Pair Autograd<F>::value_and_derivative(const at::Tensor& input) {
  if (is_recorded(input)) return FunctionNode<F>::apply_to_pair(input);
  Results results;
  if (has_tangent(input)) {
    results = compute<F>(input, /*with_derivative=*/true, /*in_place=*/false);
  } else {
    // A dispatch mode sees the one operator.
    call_into<F>(Work::value_and_derivative, {&results.value, &results.derivative}, {&input});
  }
  return {std::move(results.value), std::move(results.derivative)};
}

template <class F>
void Autograd<F>::value_and_derivative_out(const at::Tensor& input, at::Tensor value,
                                           at::Tensor derivative) {
  const std::string name = std::string(F::name) + "_with_derivative";
  check_out(input, value, name);
  check_out(input, derivative, name);
  call_into<F>(Work::value_and_derivative, {&value, &derivative}, {&input});
  count_write(value);
  count_write(derivative);
}

template <class F>
at::Tensor Autograd<F>::backward(const at::Tensor& grad, const at::Tensor& input) {
  if (is_above_transforms(grad, input)) return call_above<F>(Work::backward, {&grad, &input});
  if (!is_transformed() && (!is_for_kernels(grad) || !is_for_kernels(input))) {
    return composed_backward<F>(grad, input);
  }
  // The node has a copy, which nobody changes before the second backward pass.
  const at::Tensor result = is_recorded(grad, input) ? ProductNode<F>::apply_to(grad, input.clone())
                                                     : call<F>(Work::backward, {&grad, &input});
  if (is_transformed() && (has_tangent(grad) || has_tangent(input))) {
    set_tangent<F>(result, grad, input);
  }
  return result;
}

template <class F>
at::Tensor Autograd<F>::backward_from_output(const at::Tensor& grad, const at::Tensor& output) {
  return product_or_composed<F>(Work::backward_from_output, grad, output,
                                [&] { return F::torch_gradient(grad, output); });
}

template <class F>
at::Tensor Autograd<F>::backward_from_derivative(const at::Tensor& grad,
                                                 const at::Tensor& derivative) {
  return product_or_composed<F>(Work::backward_from_derivative, grad, derivative,
                                [&] { return grad * derivative; });
}

template <class F>
at::Tensor Autograd<F>::backward_before_bce(const at::Tensor& grad, const at::Tensor& output,
                                            at::ScalarType loss_dtype) {
  if (is_above_transforms(grad, output)) {
    return call_above<F>(Work::backward_before_bce, {&grad, &output}, loss_dtype);
  }
  // Under transforms, where another level asked for this, the output is a sigmoid's.
  const at::Tensor recorded =
      FunctionNode<F>::recorded_product(grad, output, {Factor::before_bce, loss_dtype, loss_dtype});
  if (recorded.defined()) return recorded;
  const bool is_differentiated =
      is_recorded(grad, output) || has_tangent(grad) || has_tangent(output);
  if (!is_differentiated &&
      (is_transformed() || (is_for_kernels(grad) && is_for_kernels(output)))) {
    return call<F>(Work::backward_before_bce, {&grad, &output}, loss_dtype);
  }
  const at::Tensor y = converted(output, loss_dtype);
  const at::Tensor product = (1 - y) * y;
  // What is multiplied by is what the loss divided by, a constant; the derivative is the sigmoid's,
  // also where the floor was the larger. Adding the product less itself gives it that and adds
  // exactly 0.
  const at::Tensor divisor = at::clamp_min(product.detach(), floor_of_bce);
  const at::Tensor result = converted(grad, loss_dtype) * (divisor + (product - product.detach()));
  return converted(result, at::result_type(grad, output));
}

template <class F>
at::Tensor Autograd<F>::backward_at_exit(const at::Tensor& grad, const OptionalTensor& input,
                                         const at::Tensor& output, int64_t exit) {
  const consumers::Uses uses =
      consumers::beyond(consumers::uses_of_running_node(), static_cast<consumers::Exit>(exit));
  const Choice choice = choice_for(uses);
  if (choice.factor != Factor::derivative) return product_from_value<F>(grad, output, choice);
  return input.has_value() ? call<F>(Work::backward, {&grad, &*input})
                           : call<F>(Work::backward_from_output, {&grad, &output});
}

#define FUSED_SIGMOID_INSTANTIATE(F) template struct Autograd<F>;
FUSED_SIGMOID_FUNCTIONS(FUSED_SIGMOID_INSTANTIATE)
#undef FUSED_SIGMOID_INSTANTIATE

}  // namespace fused_sigmoid
