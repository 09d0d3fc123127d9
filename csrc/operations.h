// This says what the operations of an autograd graph do to the numbers that pass through them, by
// the names that torch gives to their nodes, as far as it decides who divides by 1 - y.
#pragma once

#include <cstdint>
#include <string_view>

namespace fused_sigmoid::consumers {

enum class Role : uint8_t {
  layer,       // Nothing is concluded about what lies behind a layer, an activation or a loss.
  structural,  // A view, a selection, a copy, a cast or a hook hands each number on as it is.
  linear,      // It sums its inputs with weights that are independent of them and mostly positive.
  turning,     // It is linear, with a weight that is, or may be, negative.
  reducing,    // It is linear, the sum or mean of many elements.
  mixing,      // It is linear, a product of matrices.
  power,       // It is a smooth function that is 0 where its input is, as a power.
  curve,       // It is a smooth function that is not, as the exponential and the logarithm.
  unknown,     // A Function of Python or of another extension may be anything.
  asking,      // A node of this package asks for its consumers.
};

// Beside the type one of these decides: the numbers that the node keeps, that it belongs to
// nn.BCELoss, the name of its class in Python, or what it wraps.
enum class Detail : uint8_t { none, numbers, bce, second_bce, function, wrapper };

constexpr int8_t none = -1, all = -1, every = -2;

struct Operation {
  Role role = Role::layer;
  Detail detail = Detail::none;
  // The gradient of this input, or of every one, has a factor that is infinite where the input, or
  // something that follows from it, is 0.
  int8_t divisor = none;
  // The factor is infinite where the input is 1, as well or instead.
  bool divides_at_one = false;
  // The role is meant of all inputs, or of those before this one.
  int8_t inputs = all;
};

// Takes the name of a node in torch::autograd::generated, such as "LogBackward0".
Operation operation_named(std::string_view name);

// Takes the name of the class of an autograd.Function's node, such as "_DDPSinkBackward".
Operation function_named(std::string_view name);

}  // namespace fused_sigmoid::consumers
