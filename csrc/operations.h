// What the nodes of an autograd graph do to the numbers that pass through them, by the names that
// torch gives them: as far as it matters to whether a division behind them is one by 1 - y.
#pragma once

#include <cstdint>
#include <string_view>

namespace fused_sigmoid::consumers {

enum class Role : uint8_t {
  // Nothing is concluded about what lies behind it: layers, activations, losses.
  layer,
  // Hands each number on as it is, to wherever: views, selections, copies, casts, hooks.
  structural,
  // Sums its inputs with weights that are independent of them and mostly positive.
  linear,
  // Linear, with a weight that is, or may be, negative.
  turning,
  // Linear, the sum or mean of many elements.
  reducing,
  // Linear, a product of matrices.
  mixing,
  // A smooth function that is 0 where its input is: a power.
  power,
  // A smooth function that is not: exponential, logarithm.
  curve,
  // A Function of Python or of another extension, which may be anything.
  unknown,
  // One of this package that asks for its consumers.
  asking,
};

// What else there is to know of a node: its own numbers, its class in Python, that it is
// nn.BCELoss, or wraps an operation in place on a view.
enum class Detail : uint8_t {
  none,
  add,
  multiply,
  power,
  accumulate,
  bce,
  second_bce,
  function,
  wrapper
};

constexpr int8_t none = -1, all = -1, every = -2;

struct Operation {
  Role role = Role::layer;
  // The input whose gradient has an infinite factor where that input, or something that follows
  // from it, is 0; or every.
  int8_t divisor = none;
  // Whether it has so where the input is 1, as well or instead.
  bool divides_at_one = false;
  // The inputs that the role is meant of: all, or those before this one.
  int8_t inputs = all;
  Detail detail = Detail::none;
};

// Of a node in torch::autograd::generated, like "LogBackward0".
Operation operation_named(std::string_view name);

// Of an autograd.Function, by the name of its node's class, like "_DDPSinkBackward".
Operation function_named(std::string_view name);

}  // namespace fused_sigmoid::consumers
