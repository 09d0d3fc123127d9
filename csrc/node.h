// What the nodes of the autograd graph have in common.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace fused_sigmoid {

// In inference mode, and below autograd, nothing is recorded even where gradients were enabled.
inline bool records() {
  return at::GradMode::is_enabled() &&
         !c10::impl::tls_is_dispatch_key_excluded(c10::DispatchKey::AutogradFunctionality);
}

// What holds a node: std::shared_ptr or, in newer releases of torch, c10::intrusive_ptr.
using NodePointer = decltype(std::declval<torch::autograd::Node&>().getptr());

template <class T>
auto make_node() {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<torch::autograd::Node>>) {
    // The name is unqualified, so that releases without this function compile.
    return std::shared_ptr<T>(new T, [](T* made) { deleteNode(made); });
  } else {
    return c10::make_intrusive<T>();
  }
}

// Whether a result may take the memory of a tensor that the node kept and has unpacked: nothing
// else holds it, and the node runs no more.
inline bool is_last_use(torch::autograd::Node& node, const torch::autograd::SavedVariable& saved,
                        const at::Tensor& unpacked) {
  if (saved.has_hooks() || at::GradMode::is_enabled() ||
      torch::autograd::get_current_graph_task_keep_graph()) {
    return false;
  }
  // A hook may run the node as well, and in place on a view another node does.
  if (torch::autograd::get_current_node().get() != &node || !node.pre_hooks().empty() ||
      !node.tensor_pre_hooks().empty() || !node.post_hooks().empty()) {
    return false;
  }
  constexpr size_t references = 2;  // the saved one and the caller's
  return unpacked.use_count() == references && unpacked.storage().use_count() == 1;
}

// What compiled autograd calls in place of a node: a function of gradients, tensors and numbers.
using Traced = torch::autograd::variable_list(const torch::autograd::variable_list& grads,
                                              const std::vector<c10::IValue>& packed);

// Calls it with proxies for the tensors.
template <class Tensors, class Numbers>
torch::autograd::variable_list call_traced(const torch::autograd::Node& node, Traced* function,
                                           const torch::autograd::variable_list& grads,
                                           const Tensors& tensors, const Numbers& numbers,
                                           torch::dynamo::autograd::SwapSavedVariables& swap) {
  namespace dynamo = torch::dynamo::autograd;
  dynamo::PackedArgs arguments;
  std::vector<at::TypePtr> types;
  for (const at::Tensor& tensor : tensors) {
    arguments.pack(tensor);
    types.push_back(at::TensorType::get());
  }
  for (const auto number : numbers) {
    arguments.pack(number);
    types.push_back(at::getTypePtr<std::decay_t<decltype(number)>>());
  }
  const auto& compiler = dynamo::getPyCompilerInterface();
  const std::string name =
      compiler->bind_function(swap.get_py_compiler(), node.name(), function, types,
                              /*is_custom_function=*/true, /*is_traceable=*/true);
  return compiler->call_function(
      swap.get_py_compiler(), "apply_functional", name, grads, std::move(arguments).vec(),
      dynamo::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
          dynamo::get_input_metadata(node.next_edges())));
}

}  // namespace fused_sigmoid
