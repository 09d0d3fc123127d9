#include "layout.h"

#include <ATen/TensorIterator.h>
#include <ATen/ops/empty.h>

#include <algorithm>

namespace fused_sigmoid {

bool has_kernel_dtype(const at::Tensor& tensor) {
  const at::ScalarType dtype = tensor.scalar_type();
  return dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf ||
         dtype == at::kDouble;
}

at::Tensor converted(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
}

bool is_laid_out_alike(const at::Tensor& a, const at::Tensor& b) {
  return a.strides() == b.strides() || (a.is_contiguous() && b.is_contiguous());
}

bool may_write(at::ArrayRef<at::Tensor*> outputs, Tensors inputs) {
  const auto share_memory = [](const at::Tensor& a, const at::Tensor& b) {
    return a.storage().data() == b.storage().data();
  };
  for (const at::Tensor* output : outputs) {
    for (const at::Tensor* input : inputs) {
      const bool is_input = input->storage_offset() == output->storage_offset() &&
                            input->strides() == output->strides();
      if (share_memory(*output, *input) && !is_input) return false;
    }
  }
  return outputs.size() == 1 || !share_memory(*outputs[0], *outputs[1]);
}

at::Tensor empty_output(Tensors inputs) {
  const at::Tensor& last = *inputs.back();
  const bool is_usual = std::all_of(inputs.begin(), inputs.end(), [&](const at::Tensor* each) {
    return each->is_contiguous() && each->sizes() == last.sizes() &&
           each->scalar_type() == last.scalar_type();
  });
  if (is_usual) return at::empty(last.sizes(), last.options());
  at::TensorIteratorConfig config;
  config.add_owned_output(at::Tensor()).promote_inputs_to_common_dtype(true);
  for (const at::Tensor* input : inputs) config.add_const_input(*input);
  return config.build().output();
}

Dimensions dimensions_of(Tensors tensors) {
  Dimensions dims;
  const at::IntArrayRef sizes = tensors.back()->sizes();
  dims.resize(sizes.size());
  for (size_t dim = 0; dim < sizes.size(); ++dim) dims[dim].size = sizes[dim];
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i]->defined()) continue;
    for (size_t dim = 0; dim < dims.size(); ++dim) {
      dims[dim].strides[i] = tensors[i]->stride(static_cast<int64_t>(dim));
    }
  }
  return dims;
}

void remove_ones(Dimensions& dims) {
  const auto is_one = [](const Dimension& dim) { return dim.size == 1; };
  dims.erase(std::remove_if(dims.begin(), dims.end(), is_one), dims.end());
}

void sort_by_memory(Dimensions& dims, size_t i) {
  const auto lies_outside = [i](const Dimension& a, const Dimension& b) {
    return a.strides[i] > b.strides[i];
  };
  if (std::is_sorted(dims.begin(), dims.end(), lies_outside)) return;
  std::stable_sort(dims.begin(), dims.end(), lies_outside);
}

bool is_nested(const Dimensions& dims, size_t i) {
  int64_t extent = 1, last_stride = 0;  // elements from the first to the last
  for (auto dim = dims.rbegin(); dim != dims.rend(); ++dim) {
    const int64_t stride = dim->strides[i];
    if (stride < extent || stride <= last_stride) return false;
    extent += (dim->size - 1) * stride;
    last_stride = stride;
  }
  return true;
}

void join(Dimensions& dims, size_t tensors) {
  size_t last = 0;
  for (size_t dim = 1; dim < dims.size(); ++dim) {
    bool is_one = true;
    for (size_t i = 0; i < tensors; ++i) {
      is_one = is_one && dims[last].strides[i] == dims[dim].strides[i] * dims[dim].size;
    }
    const int64_t joined_size = dims[last].size * dims[dim].size;
    if (!is_one) ++last;
    dims[last] = dims[dim];
    if (is_one) dims[last].size = joined_size;
  }
  if (!dims.empty()) dims.resize(last + 1);
}

}  // namespace fused_sigmoid
