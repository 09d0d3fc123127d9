// Loops over memory for the kernels of one instruction set, given its vector types. Includes no
// torch header. Included by kernels_*.cpp alone, each compiled for its own instruction set:
// everything is a template over a vector type of that set, so that no function of one set can be
// linked in place of another's.
#pragma once

#include <cstdint>
#include <cstring>

#include "../numerics/sigmoid.h"
#include "half.h"
#include "kernels.h"

namespace fused_sigmoid {

// The constants of an element: overloads that are never called.
Float64Constants constants_of(double);
Float32Constants constants_of(float);
Float16Constants constants_of(Float16);
Bfloat16Constants constants_of(BFloat16);
template <class Element>
using ConstantsOf = decltype(constants_of(Element()));

// So many vectors one after the other, whose latencies the processor overlaps.
template <class Work, class V, class T, int vectors>
inline void compute(const T* const* in, T* const* out, int64_t offset) {
  V inputs[vectors][Work::inputs];
  V outputs[vectors][Work::outputs];
  for (int v = 0; v < vectors; ++v) {
    for (int i = 0; i < Work::inputs; ++i) inputs[v][i] = V::load(in[i] + offset + v * V::size);
  }
  for (int v = 0; v < vectors; ++v) {
    Work::template apply<ConstantsOf<T>>(inputs[v], outputs[v]);
  }
  for (int v = 0; v < vectors; ++v) {
    for (int i = 0; i < Work::outputs; ++i) outputs[v][i].store(out[i] + offset + v * V::size);
  }
}

template <class Work, class V, class T>
inline void contiguous(const T* const* in, T* const* out, int64_t count) {
  using Group = typename V::Group;
  constexpr int64_t iteration = V::groups * Group::size;
  int64_t offset = 0;
  for (; offset + iteration <= count; offset += iteration) {
    compute<Work, Group, T, V::groups>(in, out, offset);
  }
  for (; offset + V::size <= count; offset += V::size) compute<Work, V, T, 1>(in, out, offset);
  if (offset == count) return;

  // The rest goes through a buffer of one vector, so that it is the same computation.
  const size_t bytes = static_cast<size_t>(count - offset) * sizeof(T);
  T buffer[Work::inputs + Work::outputs][V::size] = {};
  const T* buffer_in[Work::inputs];
  T* buffer_out[Work::outputs];
  for (int i = 0; i < Work::inputs; ++i) {
    std::memcpy(buffer[i], in[i] + offset, bytes);
    buffer_in[i] = buffer[i];
  }
  for (int i = 0; i < Work::outputs; ++i) buffer_out[i] = buffer[Work::inputs + i];
  compute<Work, V, T, 1>(buffer_in, buffer_out, 0);
  for (int i = 0; i < Work::outputs; ++i) std::memcpy(out[i] + offset, buffer_out[i], bytes);
}

// Elements gathered at a time from strided memory: a few buffers of this size stay in the
// first-level cache.
constexpr int64_t block = 512;

template <class Work, class V, class T>
void loop(char** data, const int64_t* strides, int64_t count) {
  constexpr int operands = Work::outputs + Work::inputs;
  constexpr int64_t item = sizeof(T);
  const T* in[Work::inputs];
  T* out[Work::outputs];

  bool dense = true;
  for (int i = 0; i < operands; ++i) dense = dense && strides[i] == item;
  if (dense || count == 1) {
    for (int i = 0; i < Work::outputs; ++i) out[i] = reinterpret_cast<T*>(data[i]);
    for (int i = 0; i < Work::inputs; ++i) {
      in[i] = reinterpret_cast<const T*>(data[Work::outputs + i]);
    }
    contiguous<Work, V, T>(in, out, count);
    return;
  }

  T buffers[operands][block];
  for (int64_t begin = 0; begin < count; begin += block) {
    const int64_t length = count - begin < block ? count - begin : block;
    for (int i = 0; i < Work::inputs; ++i) {
      const int64_t stride = strides[Work::outputs + i];
      const char* source = data[Work::outputs + i] + begin * stride;
      T* buffer = buffers[Work::outputs + i];
      in[i] = stride == item ? reinterpret_cast<const T*>(source) : buffer;
      if (stride == item) continue;
      if (stride == 0) {
        // An expanded operand fills its buffer once; the first block is the longest.
        T value;
        std::memcpy(&value, source, item);
        for (int64_t j = 0; begin == 0 && j < length; ++j) buffer[j] = value;
        continue;
      }
      for (int64_t j = 0; j < length; ++j) std::memcpy(buffer + j, source + j * stride, item);
    }
    for (int i = 0; i < Work::outputs; ++i) {
      char* target = data[i] + begin * strides[i];
      out[i] = strides[i] == item ? reinterpret_cast<T*>(target) : buffers[i];
    }
    contiguous<Work, V, T>(in, out, length);
    for (int i = 0; i < Work::outputs; ++i) {
      if (strides[i] == item) continue;
      char* target = data[i] + begin * strides[i];
      for (int64_t j = 0; j < length; ++j) {
        std::memcpy(target + j * strides[i], buffers[i] + j, item);
      }
    }
  }
}

// `Vectors` names the types of one instruction set: Double; Float, which loads and stores float32
// and float16; Bfloat16, vectors of float32 that load and store bfloat16. An iteration of a loop
// computes `groups` of a type's Group, which is that type or Two of it; what was measured best.
template <class Vectors>
constexpr KernelTable kernel_table(const char* instruction_set) {
  using D = typename Vectors::Double;
  using F = typename Vectors::Float;
  using B = typename Vectors::Bfloat16;
#define FUSED_SIGMOID_ROW(WORK)                                                                  \
  {                                                                                              \
    loop<WORK, D, double>, loop<WORK, F, float>, loop<WORK, F, Float16>, loop<WORK, B, BFloat16> \
  }
  return {
      instruction_set,
      {FUSED_SIGMOID_ROW(Value),
       FUSED_SIGMOID_ROW(ValueAndDerivative),
       FUSED_SIGMOID_ROW(BackwardFromInput),
       FUSED_SIGMOID_ROW(BackwardFromOutput),
       FUSED_SIGMOID_ROW(BackwardFromDerivative),
       FUSED_SIGMOID_ROW(BackwardBeforeBce),
       // In float32 and float64 it is the row above: two loops more, and the compiler inlines
       // less into all of them.
       {loop<BackwardBeforeBce, D, double>, loop<BackwardBeforeBce, F, float>,
        loop<BackwardBeforeFloat32Bce, F, Float16>, loop<BackwardBeforeFloat32Bce, B, BFloat16>}}};
#undef FUSED_SIGMOID_ROW
}

}  // namespace fused_sigmoid
