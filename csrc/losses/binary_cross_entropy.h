// The binary cross entropy of a logit x with a target t, and its derivative by x:
//
//   loss     = w ((1 - t) log(1 + exp(x)) + p t log(1 + exp(-x)))
//   gradient = w ((1 - t) sigmoid(x) - p t sigmoid(-x))
//
// with a weight w of the element and one, p, of its positive part. Includes no torch header.
#pragma once

#include "../numerics/logistic_loss.h"

namespace fused_sigmoid {

struct BinaryCrossEntropy {
  // The constants of an element, by the number of its bytes.
  template <class Element>
  using Constants = std::conditional_t<sizeof(Element) == sizeof(double), Float64LossConstants,
                                       std::conditional_t<sizeof(Element) == sizeof(float),
                                                          Float32LossConstants, HalfLossConstants>>;

  template <class V>
  struct Result {
    V loss, gradient;
  };

  // No term is the difference of two others, so that both tails of a hard target keep their
  // relative accuracy: log(1 + exp(x)) is max(x, 0) + log(1 + exp(-|x|)).
  // Without the attribute GCC leaves a call in the loops, which waits for each vector by itself.
  template <class C, class V>
  [[gnu::always_inline]] static Result<V> of(V x, V t) {
    const LogisticLoss<V> parts = logistic_loss<C>(abs(x));
    const V u = V(1) - t;
    return {linear(if_negative(x, t, u), abs(x), parts.log1p), gradient(x, u, t, parts.smaller)};
  }

  template <class C, class V>
  [[gnu::always_inline]] static Result<V> of(V x, V t, V weight, V pos_weight) {
    const LogisticLoss<V> parts = logistic_loss<C>(abs(x));
    const V u = V(1) - t, positive = pos_weight * t;
    const V loss = linear(if_negative(x, positive, u), abs(x), (u + positive) * parts.log1p);
    return {weight * loss, weight * gradient(x, u, positive, parts.smaller)};
  }

 private:
  // side |x| + rest. A target of 0 or 1 on the right side of an infinite logit costs nothing.
  template <class V>
  static V linear(V side, V magnitude, V rest) {
    return if_zero(side, rest, fma(side, magnitude, rest));
  }

  template <class V>
  static V gradient(V x, V negative, V positive, V smaller) {
    const V larger = V(1) - smaller;
    return fnma(positive, if_negative(x, larger, smaller),
                negative * if_negative(x, smaller, larger));
  }
};

}  // namespace fused_sigmoid
