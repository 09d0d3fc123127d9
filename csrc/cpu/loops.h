// Loops over memory for the kernels of one instruction set, given its vector types. Includes no
// torch header. Included by kernels_*.cpp alone, each compiled for its own instruction set:
// everything is a template over a vector type of that set, so that no function of one set can be
// linked in place of another's.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "half.h"
#include "kernels.h"
#include "loss_loops.h"

namespace fused_sigmoid {

// The constants of an element: overloads that are never called.
Float64Constants constants_of(double);
Float32Constants constants_of(float);
Float16Constants constants_of(Float16);
Bfloat16Constants constants_of(BFloat16);
template <class Element>
using ConstantsOf = decltype(constants_of(Element()));

// Gradients are products with any number, and round to even.
template <class F, class T>
constexpr bool rounds_half_up(Work work) {
  return std::is_same_v<T, BFloat16> && F::bfloat16_rounds_half_up &&
         (work == Work::value || work == Work::value_and_derivative);
}

// Computes some vectors one after the other, whose latencies the processor overlaps. In a loop each
// is a `Group`, two registers computed operation by operation: vector.h has the reason.
// GCC counts what is inlined here against the loops, and would inline less as functions are added.
template <class F, Work work, class V, class T, int vectors>
[[gnu::always_inline]] inline void compute_vectors(const T* const* in, T* const* out,
                                                   int64_t offset) {
  constexpr int inputs = inputs_of(work), outputs = outputs_of(work);
  V from[vectors][inputs];
  V to[vectors][outputs];
  for (int v = 0; v < vectors; ++v) {
    for (int i = 0; i < inputs; ++i) from[v][i] = V::load(in[i] + offset + v * V::size);
  }
  for (int v = 0; v < vectors; ++v) compute<F, work, ConstantsOf<T>>(from[v], to[v]);
  for (int v = 0; v < vectors; ++v) {
    for (int i = 0; i < outputs; ++i) {
      T* const to_memory = out[i] + offset + v * V::size;
      if constexpr (rounds_half_up<F, T>(work)) {
        to[v][i].store_half_up(to_memory);
      } else {
        to[v][i].store(to_memory);
      }
    }
  }
}

template <class F, Work work, class V, class T>
void loop(char* const* data, int64_t count) {
  constexpr int inputs = inputs_of(work), outputs = outputs_of(work);
  using Group = typename V::Group;
  constexpr int64_t iteration = V::groups * Group::size;
  const T* in[inputs];
  T* out[outputs];
  for (int i = 0; i < outputs; ++i) out[i] = reinterpret_cast<T*>(data[i]);
  for (int i = 0; i < inputs; ++i) in[i] = reinterpret_cast<const T*>(data[outputs + i]);

  int64_t offset = 0;
  for (; offset + iteration <= count; offset += iteration) {
    compute_vectors<F, work, Group, T, V::groups>(in, out, offset);
  }
  for (; offset + V::size <= count; offset += V::size) {
    compute_vectors<F, work, V, T, 1>(in, out, offset);
  }
  if (offset == count) return;

  // The rest goes through a buffer of one vector, so that it is the same computation.
  const size_t bytes = static_cast<size_t>(count - offset) * sizeof(T);
  T buffer[inputs + outputs][V::size] = {};
  const T* buffer_in[inputs];
  T* buffer_out[outputs];
  for (int i = 0; i < inputs; ++i) {
    std::memcpy(buffer[i], in[i] + offset, bytes);
    buffer_in[i] = buffer[i];
  }
  for (int i = 0; i < outputs; ++i) buffer_out[i] = buffer[inputs + i];
  compute_vectors<F, work, V, T, 1>(buffer_in, buffer_out, 0);
  for (int i = 0; i < outputs; ++i) std::memcpy(out[i] + offset, buffer_out[i], bytes);
}

// The work whose kernel serves this one too: of fewer instances the compiler inlines more.
template <class T>
constexpr Work computed_as(Work work) {
  if (work == Work::value_of_kept) return Work::value;
  const bool is_float32_or_64 = sizeof(T) > 2;
  return is_float32_or_64 && work == Work::backward_before_float32_bce ? Work::backward_before_bce
                                                                       : work;
}

template <class F, Work work, class V, class T>
constexpr Kernel kernel_of() {
  if constexpr (has_kernel<F>(work)) return loop<F, computed_as<T>(work), V, T>;
  return nullptr;
}

// `Vectors` names the types of one instruction set: Double; Float, which loads and stores float32
// and float16; Bfloat16, vectors of float32 that load and store bfloat16. An iteration of a loop
// computes `groups` of a type's Group.
template <class Vectors, class F, size_t... works>
constexpr void fill_in(KernelTable& table, std::index_sequence<works...>) {
  using D = typename Vectors::Double;
  using V = typename Vectors::Float;
  using B = typename Vectors::Bfloat16;
  ((table.kernels[KernelNumber{number_of_function<F>, Work(works)}.index()] =
        {kernel_of<F, Work(works), D, double>(), kernel_of<F, Work(works), V, float>(),
         kernel_of<F, Work(works), V, Float16>(), kernel_of<F, Work(works), B, BFloat16>()}),
   ...);
}

template <class Vectors>
constexpr KernelTable kernel_table(const char* instruction_set) {
  KernelTable table{
      instruction_set, {}, loss_kernels<Vectors>(std::make_index_sequence<loss_work_count>())};
  for_each_function([&](auto function) {
    fill_in<Vectors, decltype(function)>(table, std::make_index_sequence<work_count>());
  });
  return table;
}

}  // namespace fused_sigmoid
