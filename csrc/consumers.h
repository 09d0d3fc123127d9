// This finds out who got a sigmoid's output, as far as the sigmoid's gradient depends on it, in the
// graph of the backward pass that is running. docs/company.md has the rule and its reasons.
#pragma once

#include <c10/core/ScalarType.h>
#include <torch/csrc/autograd/function.h>

#include <cstdint>

namespace fused_sigmoid::consumers {

// A floating-point dtype has this many bits for the digits of a number.
constexpr int digits_of(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? 8 : dtype == at::kHalf ? 11 : dtype == at::kFloat ? 24 : 53;
}

// This says what an output went to.
struct Uses {
  // nn.BCELoss got the numbers themselves: it divides by max(y (1 - y), 1e-12).
  bool is_bce = false;
  // The node of nn.BCELoss's gradient got them, in a backward pass through a backward pass.
  bool is_second_bce = false;
  // Something else divides by what goes to 0 as the output goes to 1, behind operations that are
  // linear, or something unknown may be a loss.
  bool is_complement_divided = false;
  // Something divides by what goes to 0 as the output does, which sigma'(x) survives. The division
  // is one by the complement if the sign changes before the output leaves the known graph.
  bool is_divided = false;
  // Something beside nn.BCELoss got them, whatever it is.
  bool is_elsewhere = false;
  // BCELoss's input has the one dtype; the other has the fewest digits on the way to it.
  at::ScalarType loss_dtype = at::kFloat, narrowest_dtype = at::kFloat;

  void add(const Uses& other);
};

// This says how an output gets to where the backward pass began: there the known graph ends.
enum class Exit : uint8_t { none, unchanged, linear, turned };

struct Consumer {
  Uses uses;
  Exit exit = Exit::none;
  // Sums that are one number are left out here: a compiled region takes one for its loss.
  Exit exit_of_many = Exit::none;
  // The pass runs within a node of another, as a checkpoint's: no loss has to be where it began.
  bool is_nested = false;
};

// Takes a node that this thread runs in a backward pass.
Consumer consumer_of(const torch::autograd::Node& node);

// Says what the outputs of the node that this thread runs went to: the node is a compiled region or
// a checkpoint, with sigmoids within.
Uses uses_of_running_node();

// Says what an output went to that left a region in this way, if the region's went to these uses.
Uses beyond(const Uses& uses, Exit exit);

// Says the same of a region that is a whole pass, of whose outputs nothing more is known.
Uses beyond_pass(const Consumer& consumer);

bool is_in_pass();

// Says whether passes can be read with this release of torch, as far as has been seen. Where they
// cannot, every consumer is taken for a division by the complement.
bool can_read();

// Tests let no pass be read from now on, or each again.
void set_reading(bool is_on);

// A node that asks for its consumers derives from this.
struct Asking : torch::autograd::Node {
  using Node::Node;
};

}  // namespace fused_sigmoid::consumers
