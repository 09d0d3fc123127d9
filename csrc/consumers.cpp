#include "consumers.h"

#include <c10/util/flat_hash_map.h>
#include <c10/util/hash.h>
#include <torch/csrc/autograd/functions/tensor.h>
#include <torch/csrc/autograd/generated/Functions.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/python_function.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <limits>
#include <string_view>
#include <tuple>
#include <typeinfo>
#include <utility>
#include <vector>

#include "operations.h"

namespace fused_sigmoid::consumers {
namespace {

using torch::autograd::CopySlices;
using torch::autograd::Edge;
using torch::autograd::GraphTask;
using torch::autograd::Node;

std::atomic<bool> is_reading{true}, has_failed{false};

// ---- torch's internals: how a backward pass and its nodes are laid out ----

// The compilers warn of offsetof in such a class, and support it.
#pragma GCC diagnostic ignored "-Winvalid-offsetof"

// Finds the pass that runs in this thread. torch gives out the addresses of two of its members:
// where these do not lie as the header says, torch is not what this was built for.
const GraphTask* current_task() {
  if (!is_reading.load(std::memory_order_relaxed)) return nullptr;
  const auto* first = torch::autograd::get_current_graph_task_exec_info();
  const auto* second = torch::autograd::get_current_graph_task_nodes_in_graph();
  if (first == nullptr) return nullptr;
  const char* begin = reinterpret_cast<const char*>(first) - offsetof(GraphTask, exec_info_);
  const auto* task = reinterpret_cast<const GraphTask*>(begin);
  if (&task->nodes_in_graph_ != second) return nullptr;
  const auto id = static_cast<uint64_t>(torch::autograd::get_current_graph_task_id());
  return task->id_ == id ? task : nullptr;
}

template <class Function>
void for_each_node(const GraphTask& task, const Function& function) {
  for (const Node* node : task.nodes_in_graph_) function(*node);
  // A pass that begins with one node does not have it among the others.
  for (Node* node : task.graph_roots_) {
    if (task.nodes_in_graph_.count(node) == 0) function(*node);
  }
}

// The Python object of an autograd.Function's node is a member in older releases of torch, where
// pyobj() is another object.
template <class Function>
auto object_of(const Function& node, int) -> decltype(node.obj) {
  return node.obj;
}
template <class Function>
PyObject* object_of(const Function& node, long) {
  return node.pyobj();
}

Operation operation_of_type(const Node& node) {
  if (dynamic_cast<const Asking*>(&node) != nullptr) return {Role::asking};
  if (typeid(node) == typeid(torch::autograd::CopyBackwards)) return {Role::structural};
  // It hands numbers on once the operation in it, mostly copy_, has run and is gone.
  if (typeid(node) == typeid(CopySlices)) return {Role::structural, Detail::wrapper};
  // Of the other types torch does not export all: their mangled names tell them apart.
  const std::string_view name = typeid(node).name();
  const auto is_in = [&](std::string_view scope) { return name.substr(0, scope.size()) == scope; };
  if (is_in("N5torch8autograd9generated")) return operation_named(node.name());
  if (name == "N5torch8autograd6PyNodeE") return {Role::unknown, Detail::function};
  // What torch and this package define besides is no loss.
  const bool is_torchs = is_in("N5torch8autograd") && !is_in("N5torch8autograd7CppNode");
  const bool is_ours = name.find("13fused_sigmoid") != std::string_view::npos;
  return {is_torchs || is_ours ? Role::layer : Role::unknown};
}

// Returns null where the node is of another type.
template <class T>
const T* cast(const Node& node) {
  return typeid(node) == typeid(T) ? static_cast<const T*>(&node) : nullptr;
}

// Completes what the type says by what the node itself says.
Operation refined(Operation operation, const Node& node) {
  using namespace torch::autograd::generated;
  if (operation.detail == Detail::function) {
    const PyObject* object = object_of(static_cast<const torch::autograd::PyNode&>(node), 0);
    return function_named(object == nullptr ? "" : Py_TYPE(object)->tp_name);
  }
  if (operation.detail != Detail::numbers) return operation;
  if (const auto* product = cast<MulBackward0>(node)) {
    if (node.num_outputs() != 2) return operation;
    const Edge &first = node.next_edge(0), &second = node.next_edge(1);
    if (first.is_valid() && first == second) operation.role = Role::power;
    // A number of Python mostly has another dtype, and any sign. Its value may be gone by now.
    const bool is_by_number = product->other_scalar_type != product->self_scalar_type;
    if (first.is_valid() != second.is_valid() && is_by_number) operation.role = Role::turning;
  } else if (const auto* sum = cast<AddBackward0>(node)) {
    if (!sum->alpha.isComplex() && sum->alpha.toDouble() < 0) operation.role = Role::turning;
  } else if (const auto* power = cast<PowBackward0>(node)) {
    if (!power->exponent.isComplex() && power->exponent.toDouble() >= 1) operation.divisor = none;
  } else if (const auto* put = cast<IndexPutBackward0>(node)) {
    if (put->accumulate) operation.role = Role::linear;
  }
  return operation;
}

at::ScalarType dtype_of(const Node& node, uint32_t output) {
  return node.input_metadata(output).options().dtype().toScalarType();
}

// ---- The search for consumers ----

// A way leads from a division, or from where the pass begins, through the graph to the sigmoids.
struct Way {
  enum Start : uint8_t { exit, bce, second_bce, division, elsewhere };
  Start start;
  bool is_linear = false;   // The numbers at its end are not those of its start.
  bool is_turned = false;   // What is divided by is 0 where the output is 1.
  bool is_number = false;   // The pass began with one number.
  bool is_reduced = false;  // It leads through a sum, which one element alone does not make 0.
  at::ScalarType loss_dtype = at::kFloat, narrowest_dtype = at::kFloat;

  uint64_t bits() const {
    return start | is_linear << 3 | is_turned << 4 | is_reduced << 5 | is_number << 6 |
           static_cast<uint64_t>(loss_dtype) << 8 | static_cast<uint64_t>(narrowest_dtype) << 16;
  }
};

using Key = std::tuple<const Node*, uint64_t>;

struct Place {
  const Node* node;
  uint32_t output;  // It counts the outputs of the forward operation, which the node has as inputs.
  Way way;

  Key key() const { return {node, uint64_t{output} << 32 | way.bits()}; }
};

constexpr uint32_t any_output = std::numeric_limits<uint32_t>::max();

// One large pass must not leave behind the memory that it took.
template <class Container>
void empty(Container& container) {
  constexpr size_t few = 64;
  if (container.bucket_count() > few) container = {};
  container.clear();
}

// This was found out about one backward pass.
struct Pass {
  int id = -1;
  bool is_nested = false;
  ska::flat_hash_map<const Node*, Consumer> consumers;
};

// Reads the passes of one thread.
class Reader {
 public:
  // Returns null where the pass cannot be read.
  const Pass* current_pass() {
    const int id = torch::autograd::get_current_graph_task_id();
    for (const Pass& pass : passes_) {
      if (pass.id == id) return &pass;
    }
    const GraphTask* task = current_task();
    has_failed.store(task == nullptr, std::memory_order_relaxed);
    if (task == nullptr) return nullptr;
    pass_ = &passes_[next_++ % passes_.size()];
    pass_->id = id;
    pass_->is_nested = task->reentrant_depth_ > 0;
    empty(pass_->consumers);
    search(*task);
    return pass_;
  }

 private:
  void search(const GraphTask& task) {
    // An error may have ended the search before.
    open_.clear();
    for_each_node(task, [&](const Node& node) { start_at(node); });
    for (const Node* root : task.graph_roots_) {
      Way way{Way::exit};
      // The shape of nested tensors is asked for otherwise, and is no number's.
      way.is_number = root->num_inputs() > 0 && !root->input_metadata(0).is_nested_tensor() &&
                      root->input_metadata(0).shape_as_dim_vector().empty();
      open_.push_back({root, any_output, way});
    }
    walk();
    if (!before_bce_.empty()) find_elsewhere(task);
    for (auto* keys : {&seen_, &followed_, &before_bce_}) empty(*keys);
  }

  // Each type is looked up by name once.
  const Operation& of_type(const Node& node) {
    const auto [found, is_new] = operations_.emplace(&typeid(node), Operation());
    if (is_new) found->second = operation_of_type(node);
    return found->second;
  }

  // Says what the node does. An operation in place on a view is wrapped into a node that hands on
  // the rest of the tensor: the node within counts.
  std::pair<const Node&, Operation> within(const Node& node) {
    const Operation& operation = of_type(node);
    if (operation.detail != Detail::wrapper) return {node, refined(operation, node)};
    const auto& inner = static_cast<const CopySlices&>(node).fn;
    if (!inner) return {node, operation};
    return {*inner, refined(of_type(*inner), *inner)};
  }

  // Follows what a node divides by.
  void start_at(const Node& node) {
    const auto [divider, operation] = within(node);
    if (operation.divisor == none) return;
    for (uint32_t input = 0; input < node.num_outputs(); ++input) {
      if (operation.divisor != every && static_cast<uint32_t>(operation.divisor) != input) continue;
      const Edge& edge = node.next_edge(input);
      if (!edge.is_valid()) continue;
      Way way{Way::division};
      way.is_turned = operation.divides_at_one;
      if (operation.detail == Detail::bce || operation.detail == Detail::second_bce) {
        way.start = operation.detail == Detail::bce ? Way::bce : Way::second_bce;
        way.loss_dtype = way.narrowest_dtype = dtype_of(*edge.function, edge.input_nr);
      }
      push(edge, way);
    }
  }

  void push(const Edge& edge, const Way& way) {
    if (edge.is_valid()) open_.push_back({edge.function.get(), edge.input_nr, way});
  }

  void walk() {
    while (!open_.empty()) {
      const Place place = open_.back();
      open_.pop_back();
      if (!seen_.insert(place.key()).second) continue;
      if (place.way.start == Way::bce && !place.way.is_linear) {
        before_bce_.insert({place.node, any_output});
        before_bce_.insert({place.node, place.output});
      }
      step(place);
    }
  }

  void step(const Place& place) {
    const auto [node, operation] = within(*place.node);
    const Role role = operation.role;
    const bool asks = role == Role::asking || role == Role::unknown;
    Way way = place.way;
    // Any output of a compiled region may be the sigmoid's.
    const uint32_t asking_output = role == Role::asking ? place.output : any_output;
    if (way.start == Way::elsewhere && role != Role::structural) {
      if (asks) note(node, way, asking_output);
      return;
    }
    if (way.start != Way::exit && place.output < place.node->num_inputs()) {
      const at::ScalarType dtype = dtype_of(*place.node, place.output);
      if (digits_of(dtype) < digits_of(way.narrowest_dtype)) way.narrowest_dtype = dtype;
    }
    // An operation in place on a view leaves the rest of the tensor as it was.
    if (&node != place.node) push(place.node->next_edge(0), way);
    if (asks) note(node, way, asking_output);
    // What is unknown may be a loss itself.
    if (role == Role::unknown) way = Way{Way::division};
    if (ends(way, role, node)) return;
    way.is_linear |= role != Role::structural;
    way.is_turned |= role == Role::turning || role == Role::unknown;
    way.is_reduced |= role == Role::reducing;
    follow(*place.node, operation, place.output, way);
  }

  // Says whether nothing behind the node can matter to what the way began with.
  static bool ends(const Way& way, Role role, const Node& node) {
    if (way.start == Way::exit && role == Role::mixing) return true;
    const bool is_divided = way.start != Way::exit && !way.is_turned;
    // Neither is exp(z) 0 anywhere, nor log(z) where z is.
    if (role == Role::curve) return is_divided;
    // A norm sums up squares, and deviations h - mean(h), which are no 1 - y.
    if (role == Role::power) return is_divided && way.is_reduced;
    if (role != Role::turning) return role == Role::layer || role == Role::asking;
    const bool has_two_inputs =
        node.num_outputs() == 2 && node.next_edge(0).is_valid() && node.next_edge(1).is_valid();
    return has_two_inputs && way.is_reduced && !way.is_turned;
  }

  void follow(const Node& node, const Operation& operation, uint32_t output, const Way& way) {
    const auto& edges = node.next_edges();
    // A Function that hands on several tensors hands each on by itself.
    if (operation.detail == Detail::function && operation.role == Role::structural &&
        node.num_inputs() == edges.size() && output < edges.size()) {
      push(edges[output], way);
      return;
    }
    // All outputs of another operation have the same edges, of which there may be thousands.
    const Key key = Place{&node, any_output, way}.key();
    if (node.num_inputs() > 1 && !followed_.insert(key).second) return;
    for (size_t i = 0; i < edges.size(); ++i) {
      if (operation.inputs != all && i >= static_cast<size_t>(operation.inputs)) break;
      push(edges[i], way);
    }
  }

  // Takes a node that asks, or that ends a region which asks beyond it.
  void note(const Node& node, const Way& way, uint32_t output) {
    // The second output of the pair is the derivative.
    if (output != any_output && output != 0) return;
    Consumer& consumer = pass_->consumers[&node];
    consumer.is_nested = pass_->is_nested;
    if (way.start == Way::exit) {
      const Exit changed = way.is_turned ? Exit::turned : Exit::linear;
      const Exit exit = way.is_linear ? changed : Exit::unchanged;
      consumer.exit = std::max(consumer.exit, exit);
      if (way.is_number && way.is_linear) return;
      consumer.exit_of_many = std::max(consumer.exit_of_many, exit);
      return;
    }
    const bool is_bce = way.start == Way::bce && !way.is_linear;
    const bool is_second_bce = way.start == Way::second_bce && !way.is_linear;
    const bool is_elsewhere = way.start == Way::elsewhere;
    const bool is_division = !is_bce && !is_second_bce && !is_elsewhere;
    consumer.uses.add({is_bce, is_second_bce, is_division && way.is_turned,
                       is_division && !way.is_turned, is_elsewhere, way.loss_dtype,
                       way.narrowest_dtype});
  }

  // Finds which outputs that nn.BCELoss got, unchanged, went to something else as well: an edge
  // leads there from a node that is not on the way to the loss.
  void find_elsewhere(const GraphTask& task) {
    for_each_node(task, [&](const Node& node) {
      if (is_on_way(node, any_output)) return;
      const bool is_bce = within(node).second.detail == Detail::bce;
      for (uint32_t input = is_bce ? 1 : 0; input < node.num_outputs(); ++input) {
        const Edge& edge = node.next_edge(input);
        if (edge.is_valid() && is_on_way(*edge.function, edge.input_nr)) {
          push(edge, Way{Way::elsewhere});
        }
      }
    });
    for (const Node* root : task.graph_roots_) {
      if (is_on_way(*root, any_output)) open_.push_back({root, any_output, Way{Way::elsewhere}});
    }
    walk();
  }

  // Any output of a node counts, unless its outputs are different functions.
  bool is_on_way(const Node& node, uint32_t output) {
    const Role role = of_type(node).role;
    const bool is_apart = role == Role::asking || role == Role::unknown;
    return before_bce_.count({&node, is_apart ? output : any_output}) > 0;
  }

  // The pass of a checkpoint comes and goes while the pass around it waits, and a thread that
  // serves a device runs the nodes of several passes in turns.
  std::array<Pass, 8> passes_;
  size_t next_ = 0;
  Pass* pass_ = nullptr;
  ska::flat_hash_map<const std::type_info*, Operation> operations_;
  ska::flat_hash_set<Key, c10::hash<Key>> seen_, followed_, before_bce_;
  std::vector<Place> open_;
};

constexpr Uses unknown_uses = {false, false, true};

}  // namespace

void Uses::add(const Uses& other) {
  if (other.is_bce || other.is_second_bce) {
    const bool is_same = loss_dtype == other.loss_dtype && narrowest_dtype == other.narrowest_dtype;
    // Two losses that divide differently are both served by torch's own product.
    if ((is_bce || is_second_bce) && !is_same) is_complement_divided = true;
    loss_dtype = other.loss_dtype;
    narrowest_dtype = other.narrowest_dtype;
  }
  is_bce |= other.is_bce;
  is_second_bce |= other.is_second_bce;
  is_complement_divided |= other.is_complement_divided;
  is_divided |= other.is_divided;
  is_elsewhere |= other.is_elsewhere;
}

bool is_in_pass() { return torch::autograd::get_current_graph_task_id() >= 0; }

Consumer consumer_of(const Node& node) {
  if (!is_in_pass()) return {};
  thread_local Reader reader;
  const Pass* pass = reader.current_pass();
  if (pass == nullptr) return {unknown_uses};
  const auto found = pass->consumers.find(&node);
  return found == pass->consumers.end() ? Consumer() : found->second;
}

Uses uses_of_running_node() {
  // A compiled backward pass that is run by itself, as by compiled autograd, has no node.
  const auto node = torch::autograd::get_current_node();
  if (!is_in_pass() || !node) return unknown_uses;
  const Consumer consumer = consumer_of(*node);
  Uses uses = consumer.uses;
  uses.add(beyond_pass(consumer));
  return uses;
}

Uses beyond_pass(const Consumer& consumer) {
  return consumer.is_nested && consumer.exit != Exit::none ? unknown_uses : Uses();
}

Uses beyond(const Uses& uses, Exit exit) {
  if (exit == Exit::unchanged) return uses;
  // Another number than the output went to the loss.
  const bool is_divided = uses.is_bce || uses.is_second_bce || uses.is_complement_divided ||
                          (exit == Exit::turned && uses.is_divided);
  return {false, false, is_divided};
}

bool can_read() { return !has_failed.load(); }

void set_reading(bool is_on) { is_reading.store(is_on); }

}  // namespace fused_sigmoid::consumers
