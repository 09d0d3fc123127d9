// Who got a sigmoid's output, as far as its gradient depends on it: read in the graph of the
// backward pass that is running. docs/company.md has the rule and its reasons.
#pragma once

#include <c10/core/ScalarType.h>
#include <torch/csrc/autograd/function.h>

#include <cstdint>

namespace fused_sigmoid::consumers {

// How many bits a number of a floating-point dtype has for its digits.
constexpr int digits_of(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? 8 : dtype == at::kHalf ? 11 : dtype == at::kFloat ? 24 : 53;
}

// What an output went to.
struct Uses {
  // nn.BCELoss, which got the numbers themselves: it divides by max(y (1 - y), 1e-12).
  bool is_bce = false;
  // The node of nn.BCELoss's gradient, in a backward pass through a backward pass.
  bool is_second_bce = false;
  // Another division by something that goes to 0 as the output goes to 1, behind operations that
  // are linear, or something unknown that may be a loss.
  bool is_complement_divided = false;
  // A division by something that goes to 0 as the output does, which sigma'(x) survives; one by the
  // complement where a change of sign follows the sigmoid before the output leaves the known graph.
  bool is_divided = false;
  // Whatever it is, beside nn.BCELoss.
  bool is_elsewhere = false;
  // The dtype of BCELoss's input, and the one with the fewest digits on the way to it.
  at::ScalarType loss_dtype = at::kFloat, narrowest_dtype = at::kFloat;

  void add(const Uses& other);
};

// How an output gets to where the backward pass began: there the known graph ends.
enum class Exit : uint8_t { none, unchanged, linear, turned };

struct Consumer {
  Uses uses;
  Exit exit = Exit::none;
  // The same without sums that are one number: in a compiled region that is taken for the loss.
  Exit exit_of_many = Exit::none;
  // Whether the pass runs within a node of another, as that of a checkpoint: where it began, no
  // loss has to be.
  bool is_nested = false;
};

// Of a node that this thread runs in a backward pass.
Consumer consumer_of(const torch::autograd::Node& node);

// What the outputs of the node that this thread runs went to: a compiled region, or a checkpoint,
// within which sigmoids are.
Uses uses_of_running_node();

// What a sigmoid's output went to if it left a region, in this way, whose outputs went there.
Uses beyond(const Uses& uses, Exit exit);

// The same where a pass is the region, and nothing is known of where its outputs went.
Uses beyond_pass(const Consumer& consumer);

// Whether this thread is in a backward pass.
bool is_in_pass();

// Whether passes can be read with this release of torch, as far as has been seen. Where they
// cannot, every consumer is taken for a division by the complement.
bool can_read();

// For tests: no pass is read from now on, or each again.
void set_reading(bool is_on);

// Base of the nodes that ask.
struct Asking : torch::autograd::Node {
  using Node::Node;
};

}  // namespace fused_sigmoid::consumers
