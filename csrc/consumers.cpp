// See consumers.h. All that depends on how torch lays out a backward pass stands here.
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
#include <string>
#include <string_view>
#include <typeinfo>
#include <vector>

#include "operations.h"

namespace fused_sigmoid::consumers {
namespace {

using torch::autograd::GraphTask;
using torch::autograd::Node;

std::atomic<bool> is_reading{true}, has_failed{false};

// The Python object of an autograd.Function's node; its class is named after the Function. A member
// of older releases, which have a function that is not of it as well.
template <class Function>
auto object_of(const Function& node, int) -> decltype(node.obj) {
  return node.obj;
}
template <class Function>
PyObject* object_of(const Function& node, long) {
  return node.pyobj();
}

// The struct's name, from "N5torch8autograd9generated12LogBackward0E".
std::string_view generated_name(std::string_view mangled) {
  constexpr std::string_view scope = "N5torch8autograd9generated";
  if (mangled.substr(0, scope.size()) != scope) return {};
  mangled.remove_prefix(scope.size());
  while (!mangled.empty() && mangled.front() >= '0' && mangled.front() <= '9') {
    mangled.remove_prefix(1);
  }
  mangled.remove_suffix(1);
  return mangled;
}

Operation operation_of_type(const Node& node) {
  const std::type_info& type = typeid(node);
  if (dynamic_cast<const Asking*>(&node) != nullptr) return {Role::asking};
  const std::string_view mangled = type.name();
  const std::string_view name = generated_name(mangled);
  if (!name.empty()) return operation_named(name);
  // By name, since torch does not export this type.
  if (mangled == "N5torch8autograd6PyNodeE") {
    return {Role::unknown, none, false, all, Detail::function};
  }
  if (type == typeid(torch::autograd::CopyBackwards)) return {Role::structural};
  // What wraps an operation in place on a view, if that has run and is gone: mostly copy_.
  if (type == typeid(torch::autograd::CopySlices)) {
    return {Role::structural, none, false, all, Detail::wrapper};
  }
  // What torch and this package define besides is no loss.
  const auto is_in = [&](std::string_view scope) { return mangled.find(scope) == 0; };
  const bool is_function = is_in("N5torch8autograd7CppNode");
  const bool is_ours = mangled.find("13fused_sigmoid") != std::string_view::npos;
  return {is_ours || (is_in("N5torch8autograd") && !is_function) ? Role::layer : Role::unknown};
}

// The node as what it is, or null.
template <class T>
const T* cast(const Node& node) {
  return typeid(node) == typeid(T) ? static_cast<const T*>(&node) : nullptr;
}

// What of a node's own numbers decides.
Operation refined(Operation operation, const Node& node) {
  using namespace torch::autograd::generated;
  switch (operation.detail) {
    case Detail::none:
    case Detail::wrapper:
    case Detail::bce:
    case Detail::second_bce:
      break;
    case Detail::function: {
      const PyObject* object = object_of(static_cast<const torch::autograd::PyNode&>(node), 0);
      return function_named(object == nullptr ? "" : Py_TYPE(object)->tp_name);
    }
    case Detail::add:
      if (const auto* add = cast<AddBackward0>(node)) {
        if (!add->alpha.isComplex() && add->alpha.toDouble() < 0) operation.role = Role::turning;
      }
      break;
    case Detail::multiply:
      if (node.num_outputs() != 2) break;
      if (const auto* multiply = cast<MulBackward0>(node)) {
        const auto &first = node.next_edge(0), &second = node.next_edge(1);
        if (first.is_valid() && first == second) {
          operation.role = Role::power;
        } else if (first.is_valid() != second.is_valid()) {
          // A number of Python mostly has another dtype, and any sign. Its value may be gone by
          // now.
          if (multiply->other_scalar_type != multiply->self_scalar_type) {
            operation.role = Role::turning;
          }
        }
      }
      break;
    case Detail::accumulate:
      if (const auto* put = cast<IndexPutBackward0>(node)) {
        if (put->accumulate) operation.role = Role::linear;
      }
      break;
    case Detail::power: {
      const auto* power = cast<PowBackward0>(node);
      const bool is_bounded =
          power != nullptr && !power->exponent.isComplex() && power->exponent.toDouble() >= 1;
      if (is_bounded) operation.divisor = none;
      break;
    }
  }
  return operation;
}

// The operations by the types of their nodes, each of which is looked up by name once.
class Operations {
 public:
  Operation of(const Node& node) { return refined(of_type(node), node); }

  // Whatever the node's own numbers are.
  const Operation& of_type(const Node& node) {
    const std::type_info* const type = &typeid(node);
    auto found = known_.find(type);
    if (found == known_.end()) found = known_.emplace(type, operation_of_type(node)).first;
    return found->second;
  }

 private:
  ska::flat_hash_map<const std::type_info*, Operation> known_;
};

// A way through the graph of a backward pass, from a division or from the pass's beginning towards
// the sigmoids: what it has met so far.
struct Way {
  enum Start : uint8_t { exit, bce, second_bce, division, elsewhere };
  Start start;
  bool is_linear = false;   // or not at all the numbers themselves
  bool is_turned = false;   // what is divided by is 0 where the output is 1
  bool is_number = false;   // the pass began with one number
  bool is_reduced = false;  // a sum of many elements, which one of them does not make 0
  at::ScalarType loss_dtype = at::kFloat, narrowest_dtype = at::kFloat;

  uint64_t bits() const {
    return start | is_linear << 3 | is_turned << 4 | is_reduced << 5 | is_number << 6 |
           static_cast<uint64_t>(loss_dtype) << 8 | static_cast<uint64_t>(narrowest_dtype) << 16;
  }
};

struct Place {
  const Node* node;
  uint32_t output;  // of the forward operation: an input of the node
  Way way;

  bool operator==(const Place& other) const {
    return node == other.node && output == other.output && way.bits() == other.way.bits();
  }
};

struct PlaceHash {
  size_t operator()(const Place& place) const {
    return c10::hash_combine(std::hash<const void*>()(place.node),
                             place.way.bits() ^ (uint64_t{place.output} << 32));
  }
};

constexpr uint32_t any_output = std::numeric_limits<uint32_t>::max();

// Emptied, without the memory that one large pass made it take.
template <class Container>
void empty(Container& container) {
  constexpr size_t few = 64;
  if (container.bucket_count() > few) {
    container = {};
  } else {
    container.clear();
  }
}

// What was found out about one backward pass.
class Pass {
 public:
  int id = -1;
  bool is_nested = false;

  void read(const GraphTask& task, Operations& operations) {
    operations_ = &operations;
    has_bce_ = false;
    id = static_cast<int>(task.id_);
    is_nested = task.reentrant_depth_ > 0;
    empty(consumers_);
    for_each_node(task, [&](const Node& node) { start_at(node); });
    for (const Node* node : task.graph_roots_) {
      Way way{Way::exit};
      way.is_number =
          node->num_inputs() > 0 && node->input_metadata(0).shape_as_dim_vector().empty();
      open_.push_back({node, any_output, way});
      walk();
    }
    if (has_bce_) find_elsewhere(task);
    empty(seen_);
    empty(followed_);
    empty(before_bce_);
  }

  const Consumer* find(const Node& node) const {
    const auto found = consumers_.find(&node);
    return found == consumers_.end() ? nullptr : &found->second;
  }

 private:
  template <class Function>
  static void for_each_node(const GraphTask& task, const Function& function) {
    for (const Node* node : task.nodes_in_graph_) function(*node);
    // A pass that begins with one node does not have it among the others.
    for (Node* node : task.graph_roots_) {
      if (task.nodes_in_graph_.count(node) == 0) function(*node);
    }
  }

  // Follows what a node divides by.
  void start_at(const Node& node) {
    const Operation& of_type = operations_->of_type(node);
    if (of_type.divisor == none && of_type.detail != Detail::wrapper) return;
    const Operation operation = operations_->of(inner(node));
    if (operation.divisor == none) return;
    for (uint32_t input = 0; input < node.num_outputs(); ++input) {
      if (operation.divisor != every && static_cast<uint32_t>(operation.divisor) != input) continue;
      const auto& edge = node.next_edge(input);
      if (!edge.is_valid()) continue;
      Way way{Way::division};
      way.is_turned = operation.divides_at_one;
      if (operation.detail == Detail::bce || operation.detail == Detail::second_bce) {
        has_bce_ = has_bce_ || operation.detail == Detail::bce;
        way.start = operation.detail == Detail::bce ? Way::bce : Way::second_bce;
        way.loss_dtype = way.narrowest_dtype = dtype_of(*edge.function, edge.input_nr);
      }
      push(edge, way);
    }
    walk();
  }

  static at::ScalarType dtype_of(const Node& node, uint32_t output) {
    return node.input_metadata(output).options().dtype().toScalarType();
  }

  // What an operation in place on a view does is wrapped into a node that hands the rest on.
  const Node& inner(const Node& node) {
    if (operations_->of_type(node).detail != Detail::wrapper) return node;
    const auto& fn = static_cast<const torch::autograd::CopySlices&>(node).fn;
    return fn ? *fn : node;
  }

  void walk() {
    while (!open_.empty()) {
      const Place place = open_.back();
      open_.pop_back();
      if (place.node != nullptr && seen_.insert(place).second) step(place);
    }
  }

  void step(const Place& place) {
    const Node& node = inner(*place.node);
    const bool is_wrapped = &node != place.node;
    const Operation operation = operations_->of(node);
    Way way = place.way;
    if (way.start == Way::elsewhere && operation.role != Role::structural) {
      if (operation.role == Role::asking || operation.role == Role::unknown) {
        note(node, way, place.output);
      }
      return;
    }
    if (way.start != Way::exit && place.output < place.node->num_inputs()) {
      const at::ScalarType dtype = dtype_of(*place.node, place.output);
      if (digits_of(dtype) < digits_of(way.narrowest_dtype)) way.narrowest_dtype = dtype;
    }
    // An operation in place on a view leaves the rest of the tensor as it was.
    if (is_wrapped) push(place.node->next_edge(0), way);
    switch (operation.role) {
      case Role::layer:
        return;
      case Role::asking:
        note(node, way, place.output);
        return;
      case Role::unknown:
        note(node, way, any_output);
        way = Way{Way::division};
        way.is_linear = way.is_turned = true;
        break;
      case Role::structural:
        break;
      case Role::mixing:
        if (way.start == Way::exit) return;
        way.is_linear = true;
        break;
      case Role::curve:
        // Neither is exp(z) 0 anywhere, nor log(z) where z is.
        if (!way.is_turned && way.start != Way::exit) return;
        way.is_linear = true;
        break;
      case Role::power:
        // The squares that a norm sums up.
        if (way.is_reduced && !way.is_turned && way.start != Way::exit) return;
        way.is_linear = true;
        break;
      case Role::turning: {
        // The deviations that a norm sums up, h - mean(h), are no 1 - y.
        const bool is_of_two =
            node.num_outputs() == 2 && node.next_edge(0).is_valid() && node.next_edge(1).is_valid();
        if (way.is_reduced && !way.is_turned && is_of_two) return;
        way.is_turned = way.is_linear = true;
        break;
      }
      case Role::reducing:
        way.is_reduced = way.is_linear = true;
        break;
      case Role::linear:
        way.is_linear = true;
        break;
    }
    follow(*place.node, operation, place.output, way);
  }

  void follow(const Node& node, const Operation& operation, uint32_t output, const Way& way) {
    const auto& edges = node.next_edges();
    // A Function that hands on several tensors hands each on by itself.
    const bool is_one_to_one = operation.detail == Detail::function &&
                               operation.role == Role::structural &&
                               node.num_inputs() == edges.size() && output < edges.size();
    // From every output of another operation the same edges are followed, and thousands of each may
    // there be.
    if (!is_one_to_one && node.num_inputs() > 1 &&
        !followed_.insert({&node, any_output, way}).second) {
      return;
    }
    for (size_t i = 0; i < edges.size(); ++i) {
      if (is_one_to_one && i != output) continue;
      if (operation.inputs != all && i >= static_cast<size_t>(operation.inputs)) break;
      push(edges[i], way);
    }
  }

  void push(const torch::autograd::Edge& edge, const Way& way) {
    if (edge.is_valid()) open_.push_back({edge.function.get(), edge.input_nr, way});
  }

  // Which of the outputs that nn.BCELoss got, unchanged, went to something else as well: where an
  // edge leads to one of the nodes on the way to the loss from a node that is not.
  void find_elsewhere(const GraphTask& task) {
    for (const Place& place : seen_) {
      if (place.way.start != Way::bce || place.way.is_linear) continue;
      before_bce_.insert({place.node, any_output, Way{Way::bce}});
      before_bce_.insert({place.node, place.output, Way{Way::bce}});
    }
    for_each_node(task, [&](const Node& node) {
      if (is_on_way(node, any_output)) return;
      const bool is_bce = operations_->of_type(inner(node)).detail == Detail::bce;
      for (uint32_t input = 0; input < node.num_outputs(); ++input) {
        const auto& edge = node.next_edge(input);
        if (!edge.is_valid() || (is_bce && input == 0)) continue;
        if (is_on_way(*edge.function, edge.input_nr)) push(edge, Way{Way::elsewhere});
      }
    });
    for (const Node* node : task.graph_roots_) {
      if (is_on_way(*node, any_output)) {
        open_.push_back({node, any_output, Way{Way::elsewhere}});
      }
    }
    walk();
  }

  // Of a node with several outputs any counts, unless they are different functions.
  bool is_on_way(const Node& node, uint32_t output) const {
    const Role role = operations_->of_type(node).role;
    const bool is_apart = role == Role::asking || role == Role::unknown;
    return before_bce_.count({&node, is_apart ? output : any_output, Way{Way::bce}}) > 0;
  }

  // Of a node that asks, or that stands at the end of a region that asks beyond it.
  void note(const Node& node, const Way& way, uint32_t output) {
    // The second output of the pair is the derivative.
    if (output != any_output && output != 0) return;
    Consumer found;
    Uses& uses = found.uses;
    switch (way.start) {
      case Way::exit:
        found.exit = !way.is_linear ? Exit::unchanged : way.is_turned ? Exit::turned : Exit::linear;
        break;
      case Way::bce:
      case Way::second_bce:
        (way.is_linear           ? uses.is_complement_divided
         : way.start == Way::bce ? uses.is_bce
                                 : uses.is_second_bce) = true;
        uses.loss_dtype = way.loss_dtype;
        uses.narrowest_dtype = way.narrowest_dtype;
        break;
      case Way::elsewhere:
        uses.is_elsewhere = true;
        break;
      case Way::division:
        (way.is_turned ? uses.is_complement_divided : uses.is_divided) = true;
        break;
    }
    Consumer& consumer = consumers_[&node];
    consumer.exit = std::max(consumer.exit, found.exit);
    if (!way.is_number || !way.is_linear) {
      consumer.exit_of_many = std::max(consumer.exit_of_many, found.exit);
    }
    consumer.uses.add(uses);
  }

  Operations* operations_ = nullptr;
  ska::flat_hash_map<const Node*, Consumer> consumers_;
  bool has_bce_ = false;
  ska::flat_hash_set<Place, PlaceHash> seen_, followed_, before_bce_;
  std::vector<Place> open_;
};

// The pass that runs in this thread. torch gives out the addresses of two of its members; where
// these do not lie as the header says, torch is not what this was built for.
const GraphTask* current_task() {
  if (!is_reading.load(std::memory_order_relaxed)) return nullptr;
  const auto* first = torch::autograd::get_current_graph_task_exec_info();
  const auto* second = torch::autograd::get_current_graph_task_nodes_in_graph();
  if (first == nullptr || second == nullptr) return nullptr;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Winvalid-offsetof"
  constexpr size_t first_offset = offsetof(GraphTask, exec_info_);
  constexpr size_t second_offset = offsetof(GraphTask, nodes_in_graph_);
#pragma GCC diagnostic pop
  const char* const begin = reinterpret_cast<const char*>(first) - first_offset;
  if (begin + second_offset != reinterpret_cast<const char*>(second)) return nullptr;
  const auto* task = reinterpret_cast<const GraphTask*>(begin);
  const auto id = static_cast<uint64_t>(torch::autograd::get_current_graph_task_id());
  return static_cast<uint64_t>(task->id_) == id ? task : nullptr;
}

// Null where the pass cannot be read.
const Pass* current_pass() {
  // A pass within a pass, as of a checkpoint, comes and goes while the outer one waits, and a
  // thread that serves a device runs the nodes of several in turns.
  constexpr size_t most = 8;
  struct Reader {
    std::array<Pass, most> passes;
    size_t next = 0;
    Operations operations;
  };
  thread_local Reader reader;
  const int id = torch::autograd::get_current_graph_task_id();
  for (const Pass& pass : reader.passes) {
    if (pass.id == id) return &pass;
  }
  const GraphTask* task = current_task();
  has_failed.store(task == nullptr, std::memory_order_relaxed);
  if (task == nullptr) return nullptr;
  Pass& pass = reader.passes[reader.next];
  reader.next = (reader.next + 1) % most;
  pass.read(*task, reader.operations);
  return &pass;
}

constexpr Uses unknown_uses = {false, false, true};

}  // namespace

void Uses::add(const Uses& other) {
  const bool has_dtypes = is_bce || is_second_bce,
             gets_dtypes = other.is_bce || other.is_second_bce;
  // Two losses that divide differently: torch's own product serves both.
  if (has_dtypes && gets_dtypes &&
      (loss_dtype != other.loss_dtype || narrowest_dtype != other.narrowest_dtype)) {
    is_complement_divided = true;
  }
  if (gets_dtypes) {
    loss_dtype = other.loss_dtype;
    narrowest_dtype = other.narrowest_dtype;
  }
  is_bce = is_bce || other.is_bce;
  is_second_bce = is_second_bce || other.is_second_bce;
  is_complement_divided = is_complement_divided || other.is_complement_divided;
  is_divided = is_divided || other.is_divided;
  is_elsewhere = is_elsewhere || other.is_elsewhere;
}

bool is_in_pass() { return torch::autograd::get_current_graph_task_id() >= 0; }

Consumer consumer_of(const Node& node) {
  if (!is_in_pass()) return {};
  const Pass* pass = current_pass();
  if (pass == nullptr) return {unknown_uses};
  const Consumer* found = pass->find(node);
  Consumer consumer = found == nullptr ? Consumer() : *found;
  consumer.is_nested = pass->is_nested;
  return consumer;
}

Uses uses_of_running_node() {
  // A compiled backward pass that is run by itself, as by compiled autograd.
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
