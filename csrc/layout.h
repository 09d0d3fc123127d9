// How tensors of one shape lie in memory beside one another, for CPU and GPU kernels alike.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <array>
#include <cstdint>

#include "functions/works.h"

namespace fused_sigmoid {

// The tensors of one call: three at the most.
using Tensors = at::ArrayRef<const at::Tensor*>;

// Whether the kernels have an instance for the dtype: float64, float32, float16, bfloat16.
bool has_kernel_dtype(const at::Tensor& tensor);

// The tensor in a dtype. A conversion that changes nothing would be an operation that returns its
// input, which nobody below autograd may see, and which takes time.
at::Tensor converted(const at::Tensor& tensor, at::ScalarType dtype);

// Whether tensors of one shape without gaps have their elements in one order.
bool is_laid_out_alike(const at::Tensor& a, const at::Tensor& b);

// Whether a kernel may write to the outputs while it reads the inputs, element by element: an
// output is an input's memory, element by element, or other memory, and never another output's. Two
// storages may have one memory, as DLPack's have.
bool may_write(at::ArrayRef<at::Tensor*> outputs, Tensors inputs);

// An empty tensor with the shape, strides and dtype that torch gives the result of an operation on
// the inputs.
at::Tensor empty_output(Tensors inputs);

// A dimension of several tensors, with the stride of each in elements.
struct Dimension {
  int64_t size;
  std::array<int64_t, most_operands> strides;
};
using Dimensions = c10::SmallVector<Dimension, 4>;

// The dimensions of the tensors, in the order of the shape of the last; undefined tensors have
// strides of 0.
Dimensions dimensions_of(Tensors tensors);

// Removes dimensions of one element, whose strides say nothing about memory.
void remove_ones(Dimensions& dims);

// Sorts the dimensions as they lie in the memory of the i-th tensor, the outermost first.
void sort_by_memory(Dimensions& dims, size_t i);

// Whether in the i-th tensor each dimension steps past all of those behind it, and further than the
// next. No two elements are then the same memory.
bool is_nested(const Dimensions& dims, size_t i);

// Joins neighbouring dimensions that are one in every tensor.
void join(Dimensions& dims, size_t tensors);

}  // namespace fused_sigmoid
