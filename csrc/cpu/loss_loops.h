// Loops over memory for the kernels of the binary cross entropy. Includes no torch header. Included
// by kernels_*.cpp alone, as loops.h.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "../losses/binary_cross_entropy.h"
#include "half.h"
#include "kernels.h"
#include "vector.h"

namespace fused_sigmoid {

// A logit of -inf with a target of 0 costs exactly nothing: it fills up what is shorter than a
// vector.
template <class T>
constexpr T minus_infinity() {
  if constexpr (std::is_same_v<T, Float16>)
    return {0xfc00};
  else if constexpr (std::is_same_v<T, BFloat16>)
    return {0xff80};
  else
    return -std::numeric_limits<T>::infinity();
}

// The memory of a block by its types.
template <class T, class Weight>
struct LossPointers {
  const T *logits, *targets;
  const Weight *weights, *pos_weights;
  T *losses, *gradients;
};

// Computes a vector's elements.
template <size_t number, class V, class T, class Weight>
[[gnu::always_inline]] inline void compute_losses(const LossPointers<T, Weight>& at, V scale,
                                                  typename V::Total& total) {
  using C = BinaryCrossEntropy::Constants<T>;
  constexpr LossWork work = loss_work(number);
  const V x = V::load(at.logits), t = V::load(at.targets);
  BinaryCrossEntropy::Result<V> result;
  if constexpr (work.is_weighted) {
    result = BinaryCrossEntropy::of<C>(x, t, V::template load_beside<T>(at.weights),
                                       V::template load_beside<T>(at.pos_weights));
  } else {
    result = BinaryCrossEntropy::of<C>(x, t);
  }
  if constexpr (work.writes_losses) result.loss.store(at.losses);
  if constexpr (!work.writes_losses) total.add(result.loss);
  if constexpr (work.writes_gradients) (result.gradient * scale).store(at.gradients);
}

template <size_t number, class V, class T>
double loss_loop(const LossBlock& block, int64_t count) {
  constexpr LossWork work = loss_work(number);
  using Scalar = typename V::Scalar;
  using Four = typename V::Four;
  LossPointers<T, Scalar> at{reinterpret_cast<const T*>(block.logits),
                             reinterpret_cast<const T*>(block.targets),
                             reinterpret_cast<const Scalar*>(block.weights),
                             reinterpret_cast<const Scalar*>(block.pos_weights),
                             reinterpret_cast<T*>(block.losses),
                             reinterpret_cast<T*>(block.gradients)};
  const Four scale(static_cast<Scalar>(block.scale));
  typename Four::Total total;

  for (; count >= Four::size; count -= Four::size) {
    compute_losses<number, Four>(at, scale, total);
    at.logits += Four::size, at.targets += Four::size;
    if constexpr (work.is_weighted) at.weights += Four::size, at.pos_weights += Four::size;
    if constexpr (work.writes_losses) at.losses += Four::size;
    if constexpr (work.writes_gradients) at.gradients += Four::size;
  }
  if (count == 0) return total.sum();

  // The rest goes through buffers, so that it is the same computation.
  const size_t bytes = static_cast<size_t>(count) * sizeof(T);
  T elements[4][Four::size];
  Scalar weights[2][Four::size];
  std::fill_n(elements[0], Four::size, minus_infinity<T>());
  std::memcpy(elements[0], at.logits, bytes);
  std::memset(elements[1], 0, sizeof(elements[1]));
  std::memcpy(elements[1], at.targets, bytes);
  if constexpr (work.is_weighted) {
    std::memset(weights, 0, sizeof(weights));
    std::memcpy(weights[0], at.weights, static_cast<size_t>(count) * sizeof(Scalar));
    std::memcpy(weights[1], at.pos_weights, static_cast<size_t>(count) * sizeof(Scalar));
  }
  const LossPointers<T, Scalar> buffers{elements[0], elements[1], weights[0],
                                        weights[1],  elements[2], elements[3]};
  compute_losses<number, Four>(buffers, scale, total);
  if constexpr (work.writes_losses) std::memcpy(at.losses, elements[2], bytes);
  if constexpr (work.writes_gradients) std::memcpy(at.gradients, elements[3], bytes);
  return total.sum();
}

template <class Vectors, size_t... numbers>
constexpr LossKernels loss_kernels(std::index_sequence<numbers...>) {
  using D = typename Vectors::Double;
  using V = typename Vectors::Float;
  using B = typename Vectors::Bfloat16;
  return {{{loss_loop<numbers, D, double>, loss_loop<numbers, V, float>,
            loss_loop<numbers, V, Float16>, loss_loop<numbers, B, BFloat16>}...}};
}

}  // namespace fused_sigmoid
