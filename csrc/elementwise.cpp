// The kernels of cpu/ know neither shapes nor threads. Tensors without gaps go to them as they lie
// in memory, small ones of any strides dimension by dimension; TensorIterator brings the rest.
#include "elementwise.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>

#include <algorithm>
#include <array>

#include "cpu/fresh_memory.h"
#include "cpu/kernels.h"
#include "cpu/streaming.h"
#include "floating_point_mode.h"

namespace fused_sigmoid {

Dtype kernel_dtype(at::ScalarType dtype, const std::string& name) {
  switch (dtype) {
    case at::kDouble:
      return Dtype::float64;
    case at::kFloat:
      return Dtype::float32;
    case at::kHalf:
      return Dtype::float16;
    case at::kBFloat16:
      return Dtype::bfloat16;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(
          false, name, "(): argument 'input' has dtype ", dtype,
          "; accepted are float64, float32, float16, bfloat16, bool and integers");
  }
}

namespace {

// Named tensors are gone from newer releases of torch, and their functions with them.
template <class Tensor>
auto has_names(const Tensor& tensor, int) -> decltype(tensor.has_names()) {
  return tensor.has_names();
}
template <class Tensor>
bool has_names(const Tensor&, long) {
  return false;
}

// A call whose tensors have one shape and dtype. Its operands stand in the kernel's order, outputs
// first.
struct Call {
  Kernel kernel;
  Work work;
  int64_t item;
  std::array<const at::Tensor*, most_operands> operands;

  Tensors tensors() const { return {operands.data(), operands_of(work)}; }

  // What is written gets a copy of its own if it shares its memory until then (copy on write).
  std::array<char*, most_operands> data() const {
    std::array<char*, most_operands> found{};
    for (size_t i = 0; i < operands_of(work); ++i) {
      found[i] = static_cast<char*>(i < outputs_of(work)
                                        ? operands[i]->data_ptr()
                                        : const_cast<void*>(operands[i]->const_data_ptr()));
    }
    return found;
  }
};

// A fresh output for a call over one tensor's shape and dtype, without gaps; dimensions of one
// element get the strides that torch gives them.
at::Tensor fresh_output(const at::Tensor& like, bool is_contiguous) {
  const at::IntArrayRef sizes = like.sizes();
  const at::ScalarType dtype = like.scalar_type();
  at::Tensor output;
  if (is_contiguous) {
    output = at::detail::empty_cpu(sizes, dtype);
  } else if (like.is_contiguous(at::MemoryFormat::ChannelsLast)) {
    output = at::detail::empty_strided_cpu(sizes, c10::get_channels_last_strides_2d(sizes), dtype);
  } else {
    const bool is_dense = like.is_non_overlapping_and_dense();
    output = is_dense ? at::detail::empty_strided_cpu(sizes, like.strides(), dtype)
                      : at::detail::empty_strided_cpu(
                            sizes, at::infer_dense_strides(sizes, like.strides()), dtype);
  }
  prepare_fresh_memory(output.mutable_data_ptr(), output.nbytes());
  return output;
}

// Large outputs are streamed, but not fresh ones, whose pages the system has just zeroed in a
// cache, nor those written over an input, which was just read into one: either took longer. One of
// another dtype or size is computed in fresh memory first.
bool is_streamed(at::ArrayRef<at::Tensor*> outputs, Tensors inputs) {
  return std::all_of(outputs.begin(), outputs.end(), [&](const at::Tensor* output) {
    return output->defined() && static_cast<int64_t>(output->nbytes()) >= streamed_from() &&
           output->scalar_type() == inputs.back()->scalar_type() &&
           output->sizes() == inputs.back()->sizes() &&
           std::none_of(inputs.begin(), inputs.end(), [&](const at::Tensor* input) {
             return input->const_data_ptr() == output->const_data_ptr();
           });
  });
}

void walk(const Call& call, at::ArrayRef<Dimension> dims, std::array<char*, most_operands> data) {
  const size_t operands = operands_of(call.work);
  if (dims.size() <= 2) {
    std::array<int64_t, 2 * most_operands> strides{};
    for (size_t i = 0; i < operands && !dims.empty(); ++i) {
      strides[i] = dims.back().strides[i] * call.item;
      strides[operands + i] = dims.front().strides[i] * call.item;
    }
    return run_strided(call.kernel, call.work, call.item, data.data(), strides.data(),
                       dims.empty() ? 1 : dims.back().size, dims.size() < 2 ? 1 : dims[0].size);
  }
  for (int64_t index = 0; index < dims[0].size; ++index) {
    walk(call, dims.slice(1), data);
    for (size_t i = 0; i < operands; ++i) data[i] += dims[0].strides[i] * call.item;
  }
}

// Up to so many elements one thread computes a call, as torch's operations have it: to wake another
// takes as long as it saves. A Zen 5 computes so fast that this is so for longer
// (docs/performance.md); where more are computed, each thread gets as many as torch's.
int64_t most_of_one_thread(Work work) {
  static const bool on_zen5 = is_zen5();
  if (!on_zen5) return at::internal::GRAIN_SIZE;
  return inputs_of(work) == 1 ? int64_t{96} << 10 : int64_t{256} << 10;
}

// Runs a call over tensors of one shape and dtype without TensorIterator, which costs 0.7 us: half
// of what torch.sigmoid takes for one element. Returns false where that pays, or where torch is to
// say what is wrong.
bool run_directly(const Call& call, at::ArrayRef<at::Tensor*> outputs, Tensors inputs,
                  bool streams) {
  const at::Tensor& like = *inputs.back();
  const int64_t count = like.numel();
  const bool is_fresh = !outputs[0]->defined();
  const bool is_one_part = count <= most_of_one_thread(call.work) || at::get_num_threads() == 1 ||
                           at::in_parallel_region();
  if (!is_one_part || count == 0) return false;

  bool is_dense = like.is_non_overlapping_and_dense(), has_one_stride = true;
  if (has_names(like, 0)) return false;
  for (size_t i = is_fresh ? outputs.size() : 0; i + 1 < call.tensors().size(); ++i) {
    const at::Tensor& each = *call.operands[i];
    if (each.scalar_type() != like.scalar_type() || each.sizes() != like.sizes() ||
        has_names(each, 0)) {
      return false;
    }
    is_dense = is_dense && is_laid_out_alike(each, like);
    has_one_stride = has_one_stride && each.strides() == like.strides();
  }
  if (!is_fresh && !may_write(outputs, inputs)) return false;
  if (is_dense) {
    for (size_t i = 0; i < outputs.size() && is_fresh; ++i) {
      *outputs[i] = fresh_output(like, like.is_contiguous());
    }
    const auto data = call.data();
    if (streams) {
      run_streamed(call.kernel, call.work, call.item, data.data(), count);
    } else {
      call.kernel(data.data(), count);
    }
    return true;
  }

  if (count > at::internal::GRAIN_SIZE) return false;
  Dimensions dims = dimensions_of(call.tensors());
  // The outputs must not overlap themselves, and those of nested inputs are contiguous.
  bool are_nested = true;
  for (size_t i = 0; i < call.tensors().size(); ++i) {
    const bool is_output = i < outputs.size();
    if (is_output == is_fresh) continue;
    const bool is_free = is_output && call.operands[i]->is_non_overlapping_and_dense();
    are_nested = are_nested && (is_free || is_nested(dims, i));
  }
  if (!are_nested && !(is_fresh && has_one_stride)) return false;
  for (size_t i = 0; i < outputs.size() && is_fresh; ++i) {
    *outputs[i] = fresh_output(like, are_nested);
    for (size_t dim = 0; dim < dims.size(); ++dim) {
      dims[dim].strides[i] = outputs[i]->stride(static_cast<int64_t>(dim));
    }
  }
  remove_ones(dims);
  sort_by_memory(dims, 0);
  join(dims, call.tensors().size());
  walk(call, dims, call.data());
  return true;
}

// torch gives an output its new shape before it finds the memory for it. Where there is none, the
// output would go on to claim elements it does not have, and the next call write to them.
class Shape {
 public:
  explicit Shape(const at::Tensor& tensor)
      : tensor_(tensor), sizes_(tensor.sizes()), strides_(tensor.strides()) {}
  void restore() { tensor_.unsafeGetTensorImpl()->set_sizes_and_strides(sizes_, strides_); }

 private:
  const at::Tensor& tensor_;
  at::DimVector sizes_, strides_;
};

at::TensorIterator iterator_over(at::ArrayRef<at::Tensor*> outputs, Tensors inputs) {
  at::TensorIteratorConfig config;
  c10::SmallVector<Shape, 2> shapes;
  for (const at::Tensor* output : outputs) {
    config.add_output(*output);
    if (output->defined()) shapes.emplace_back(*output);
  }
  for (const at::Tensor* input : inputs) config.add_const_input(*input);
  config.promote_inputs_to_common_dtype(true)
      .promote_integer_inputs_to_float(inputs.size() == 1)
      .cast_common_dtype_to_outputs(true)
      .enforce_safe_casting_to_output(true);
  try {
    return config.build();
  } catch (...) {
    for (Shape& shape : shapes) shape.restore();
    throw;
  }
}

}  // namespace

void run_on_cpu(KernelNumber number, const std::string& name, at::ArrayRef<at::Tensor*> outputs,
                Tensors inputs) {
  const auto kernel_for = [&](at::ScalarType dtype) {
    return selected_kernels().get(number, kernel_dtype(dtype, name));
  };
  const bool streams = is_streamed(outputs, inputs);
  if (has_kernel_dtype(*inputs.back())) {
    Call call{kernel_for(inputs.back()->scalar_type()),
              number.work,
              static_cast<int64_t>(inputs.back()->element_size()),
              {}};
    std::copy(inputs.begin(), inputs.end(),
              std::copy(outputs.begin(), outputs.end(), call.operands.begin()));
    if (run_directly(call, outputs, inputs, streams)) return;
  }
  auto iter = iterator_over(outputs, inputs);
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i]->defined()) continue;
    const at::TensorBase& fresh = iter.output(static_cast<int64_t>(i));
    prepare_fresh_memory(fresh.mutable_data_ptr(), fresh.nbytes());
  }
  const Kernel kernel = kernel_for(iter.common_dtype());
  const int64_t item = static_cast<int64_t>(c10::elementSize(iter.common_dtype()));
  const FloatingPointMode mode;
  const size_t operands = operands_of(number.work);
  iter.for_each([&](char** data, const int64_t* strides, int64_t length, int64_t count) {
    const bool is_dense = count == 1 && std::all_of(strides, strides + operands,
                                                    [&](int64_t bytes) { return bytes == item; });
    mode.run([&] {
      if (streams && is_dense) return run_streamed(kernel, number.work, item, data, length);
      run_strided(kernel, number.work, item, data, strides, length, count);
    });
  });
  iter.cast_outputs();
  for (size_t i = 0; i < outputs.size(); ++i) {
    *outputs[i] = iter.output(static_cast<int64_t>(i));
  }
}

}  // namespace fused_sigmoid
