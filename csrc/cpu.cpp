// The operations on CPU tensors. The kernels of cpu/ know neither shapes nor threads: tensors
// without gaps are walked through here as they lie in memory, small ones of any strides by their
// dimensions; TensorIterator brings the rest.
#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/TensorIterator.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/result_type.h>

#include <algorithm>
#include <array>
#include <optional>

#include "cpu/fresh_memory.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "ops.h"
#include "parallel.h"

namespace fused_sigmoid::cpu {
namespace {

Dtype kernel_dtype(at::ScalarType dtype, const char* op) {
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
          false, op, "(): argument 'input' has dtype ", dtype,
          "; accepted are float64, float32, float16, bfloat16, bool and integers");
  }
}

int outputs_of(Work work) { return work == Work::value_and_derivative ? 2 : 1; }

void run(at::TensorIteratorBase& iter, Work work, const char* op) {
  const Kernel kernel = selected_kernels().get(work, kernel_dtype(iter.common_dtype(), op));
  const int outputs = outputs_of(work), operands = iter.ntensors();
  const int64_t item = static_cast<int64_t>(c10::elementSize(iter.common_dtype()));
  iter.for_each([&](char** data, const int64_t* strides, int64_t length, int64_t count) {
    run_rows(kernel, outputs, operands, item, data, strides, length, count);
  });
  iter.cast_outputs();
}

// Named tensors are gone from newer releases of torch, and their functions with them.
template <class Tensor>
auto has_names(const Tensor& tensor, int) -> decltype(tensor.has_names()) {
  return tensor.has_names();
}
template <class Tensor>
bool has_names(const Tensor&, long) {
  return false;
}

// Whether a tensor needs none of what TensorIterator does, which costs 0.7 us a call, half of
// what torch.sigmoid takes for one element.
bool is_simple(const at::Tensor& tensor) {
  return tensor.is_non_overlapping_and_dense() && has_kernel_dtype(tensor) && !has_names(tensor, 0);
}

// Whether simple tensors may be walked through as they lie in memory.
bool are_alike(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         (a.strides() == b.strides() || (a.is_contiguous() && b.is_contiguous()));
}

// A fresh output, before it is written.
void prepare(const at::TensorBase& output) {
  prepare_fresh_memory(output.mutable_data_ptr(), output.nbytes());
}

// With the strides that TensorIterator would give it.
at::Tensor empty_like_simple(const at::Tensor& tensor) {
  const at::IntArrayRef sizes = tensor.sizes();
  const at::ScalarType dtype = tensor.scalar_type();
  at::Tensor output;
  if (tensor.is_contiguous()) {
    output = at::detail::empty_cpu(sizes, dtype);
  } else if (tensor.is_contiguous(at::MemoryFormat::ChannelsLast)) {
    output =
        at::detail::empty_cpu(sizes, dtype, /*pin_memory=*/false, at::MemoryFormat::ChannelsLast);
  } else {
    output = at::detail::empty_strided_cpu(sizes, tensor.strides(), dtype);
  }
  prepare(output);
  return output;
}

// Whether `out` may be written while `input` is walked through: it is the input, or elsewhere.
bool is_apart(const at::Tensor& input, const at::Tensor& out) {
  return out.is_same(input) || !out.storage().is_alias_of(input.storage());
}

// The memory of the operands, outputs first. What is written gets a copy of its own if it shares
// its memory until then (copy on write).
template <size_t operands>
std::array<char*, operands> data_of(const std::array<const at::Tensor*, operands>& tensors,
                                    Work work) {
  std::array<char*, operands> data;
  for (size_t i = 0; i < operands; ++i) {
    const bool is_output = static_cast<int>(i) < outputs_of(work);
    data[i] = static_cast<char*>(is_output ? tensors[i]->data_ptr()
                                           : const_cast<void*>(tensors[i]->const_data_ptr()));
  }
  return data;
}

// Runs a kernel over simple tensors that are alike, outputs first.
template <class... Tensors>
void run_simple(Work work, const char* op, const at::Tensor& first, const Tensors&... rest) {
  constexpr size_t operands = 1 + sizeof...(rest);
  const auto data = data_of<operands>({&first, &rest...}, work);
  const int64_t item = static_cast<int64_t>(first.element_size());
  std::array<int64_t, operands> strides;
  strides.fill(item);
  const Kernel kernel = selected_kernels().get(work, kernel_dtype(first.scalar_type(), op));
  parallel_for(first.numel(), [&](int64_t begin, int64_t end) {
    std::array<char*, operands> part = data;
    for (char*& operand : part) operand += begin * item;
    kernel(part.data(), strides.data(), end - begin);
  });
}

// Whether TensorIterator takes longer to prepare a kernel over the tensor than the kernel takes, as
// it does below some 256 elements.
bool is_small(const at::Tensor& tensor) {
  const int64_t count = tensor.numel();
  return count > 0 && count < at::internal::GRAIN_SIZE && has_kernel_dtype(tensor) &&
         !has_names(tensor, 0);
}

bool are_small(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && is_small(a) && is_small(b);
}

// Whether the dimensions lie within one another in the order of the shape, as those of slices and
// of the halves of a gate do.
bool is_nested(const at::Tensor& tensor) {
  int64_t inner_stride = 0, extent = 1;  // elements from the first to the last
  for (int64_t dim = tensor.dim() - 1; dim >= 0; --dim) {
    const int64_t stride = tensor.stride(dim);
    if (stride < extent || stride <= inner_stride) return false;
    extent += (tensor.size(dim) - 1) * stride;
    inner_stride = stride;
  }
  return true;
}

// Without gaps and with the order of dimensions that TensorIterator would choose.
at::Tensor empty_like_small(const at::Tensor& tensor) {
  const at::IntArrayRef sizes = tensor.sizes();
  const at::ScalarType dtype = tensor.scalar_type();
  if (is_nested(tensor)) return at::detail::empty_cpu(sizes, dtype);
  return at::detail::empty_strided_cpu(sizes, at::infer_dense_strides(sizes, tensor.strides()),
                                       dtype);
}

template <size_t operands>
struct Dimension {
  int64_t size;
  std::array<int64_t, operands> strides;  // in bytes
};

template <size_t operands>
void walk(Kernel kernel, int outputs, int64_t item, at::ArrayRef<Dimension<operands>> dims,
          std::array<char*, operands> data) {
  const Dimension<operands>& outer = dims.front();
  if (dims.size() == 1) return kernel(data.data(), outer.strides.data(), outer.size);
  if (dims.size() == 2) {
    const Dimension<operands>& inner = dims.back();
    std::array<int64_t, 2 * operands> strides;
    std::copy(inner.strides.begin(), inner.strides.end(), strides.begin());
    std::copy(outer.strides.begin(), outer.strides.end(), strides.begin() + operands);
    return run_rows(kernel, outputs, operands, item, data.data(), strides.data(), inner.size,
                    outer.size);
  }
  for (int64_t i = 0; i < outer.size; ++i) {
    walk(kernel, outputs, item, dims.slice(1), data);
    for (size_t operand = 0; operand < operands; ++operand) data[operand] += outer.strides[operand];
  }
}

// Runs a kernel over small tensors of one shape and dtype, outputs first, in the order of the first
// one's memory.
template <class... Tensors>
void run_small(Work work, const char* op, const at::Tensor& first, const Tensors&... rest) {
  constexpr size_t operands = 1 + sizeof...(rest);
  const std::array<const at::Tensor*, operands> tensors = {&first, &rest...};
  const int64_t item = static_cast<int64_t>(first.element_size());
  c10::SmallVector<Dimension<operands>, 4> dims;
  for (int64_t dim = 0; dim < first.dim(); ++dim) {
    if (first.size(dim) == 1) continue;
    Dimension<operands> next = {first.size(dim), {}};
    for (size_t i = 0; i < operands; ++i) next.strides[i] = tensors[i]->stride(dim) * item;
    dims.push_back(next);
  }
  if (dims.empty()) dims.push_back({1, {}});
  const auto lies_outside = [](const auto& a, const auto& b) {
    return a.strides[0] > b.strides[0];
  };
  if (!std::is_sorted(dims.begin(), dims.end(), lies_outside)) {
    std::sort(dims.begin(), dims.end(), lies_outside);
  }
  size_t last = 0;
  for (size_t dim = 1; dim < dims.size(); ++dim) {
    bool continues = true;
    for (size_t i = 0; i < operands; ++i) {
      continues = continues && dims[last].strides[i] == dims[dim].strides[i] * dims[dim].size;
    }
    const int64_t outer = dims[last].size;
    if (!continues) ++last;
    dims[last] = dims[dim];
    if (continues) dims[last].size *= outer;
  }
  dims.resize(last + 1);
  const auto data = data_of<operands>(tensors, work);
  const Kernel kernel = selected_kernels().get(work, kernel_dtype(first.scalar_type(), op));
  walk<operands>(kernel, outputs_of(work), item, dims, data);
}

at::Tensor run_binary(const at::Tensor& grad, const at::Tensor& other, Work work, const char* op) {
  if (is_simple(other) && is_simple(grad) && are_alike(grad, other)) {
    const at::Tensor result = empty_like_simple(other);
    run_simple(work, op, result, grad, other);
    return result;
  }
  if (are_small(grad, other) &&
      (grad.strides() == other.strides() || (is_nested(grad) && is_nested(other)))) {
    const at::Tensor result = empty_like_small(other);
    run_small(work, op, result, grad, other);
    return result;
  }
  const at::Tensor result;
  auto iter = at::TensorIterator::borrowing_binary_op(result, grad, other);
  prepare(iter.output());
  run(iter, work, op);
  return iter.output();
}

// Undefined outputs are allocated.
std::tuple<at::Tensor, at::Tensor> run_pair(const at::Tensor& input, const at::Tensor& value,
                                            const at::Tensor& derivative) {
  auto iter = at::TensorIteratorConfig()
                  .add_output(value)
                  .add_output(derivative)
                  .add_const_input(input)
                  .promote_inputs_to_common_dtype(true)
                  .promote_integer_inputs_to_float(true)
                  .cast_common_dtype_to_outputs(true)
                  .enforce_safe_casting_to_output(true)
                  .build();
  if (!value.defined()) prepare(iter.output(0));
  if (!derivative.defined()) prepare(iter.output(1));
  run(iter, Work::value_and_derivative, "sigmoid_with_derivative");
  return {iter.output(0), iter.output(1)};
}

constexpr const char* before_bce = "sigmoid_backward_before_bce";

std::optional<Work> work_before_bce(at::ScalarType dtype, at::ScalarType loss_dtype) {
  return kernel_before_bce(dtype, loss_dtype, Work::backward_before_bce,
                           Work::backward_before_float32_bce);
}

// torch gives an output its new shape before it finds the memory for it. Where there is none, the
// output would go on to claim elements it does not have, and the next call write to them.
at::TensorIterator with_resized(at::Tensor& out, const at::Tensor& input) {
  const at::DimVector sizes(out.sizes()), strides(out.strides());
  try {
    return at::TensorIterator::unary_float_op(out, input);
  } catch (...) {
    out.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
    throw;
  }
}

}  // namespace

at::Tensor sigmoid(const at::Tensor& input) {
  if (is_simple(input)) {
    const at::Tensor result = empty_like_simple(input);
    run_simple(Work::value, "sigmoid", result, input);
    return result;
  }
  if (is_small(input)) {
    const at::Tensor result = empty_like_small(input);
    run_small(Work::value, "sigmoid", result, input);
    return result;
  }
  at::Tensor result;
  auto iter = at::TensorIterator::unary_float_op(result, input);
  prepare(iter.output());
  run(iter, Work::value, "sigmoid");
  return iter.output();
}

void sigmoid_out(const at::Tensor& input, at::Tensor out) {
  if (is_apart(input, out)) {
    if (is_simple(input) && is_simple(out) && are_alike(input, out)) {
      return run_simple(Work::value, "sigmoid", out, input);
    }
    const bool overlaps_nowhere = out.is_non_overlapping_and_dense() || is_nested(out);
    if (overlaps_nowhere && are_small(input, out)) {
      return run_small(Work::value, "sigmoid", out, input);
    }
  }
  auto iter = with_resized(out, input);
  run(iter, Work::value, "sigmoid");
}

std::tuple<at::Tensor, at::Tensor> sigmoid_with_derivative(const at::Tensor& input) {
  if (is_simple(input)) {
    const at::Tensor value = empty_like_simple(input), derivative = empty_like_simple(input);
    run_simple(Work::value_and_derivative, "sigmoid_with_derivative", value, derivative, input);
    return {value, derivative};
  }
  if (is_small(input)) {
    const at::Tensor value = empty_like_small(input), derivative = empty_like_small(input);
    run_small(Work::value_and_derivative, "sigmoid_with_derivative", value, derivative, input);
    return {value, derivative};
  }
  return run_pair(input, at::Tensor(), at::Tensor());
}

void sigmoid_with_derivative_out(const at::Tensor& input, at::Tensor value, at::Tensor derivative) {
  const auto fits = [&](const at::Tensor& out) {
    return is_apart(input, out) && is_simple(out) && are_alike(input, out);
  };
  if (is_simple(input) && fits(value) && fits(derivative) &&
      !value.storage().is_alias_of(derivative.storage())) {
    return run_simple(Work::value_and_derivative, "sigmoid_with_derivative", value, derivative,
                      input);
  }
  run_pair(input, value, derivative);
}

at::Tensor sigmoid_backward(const at::Tensor& grad, const at::Tensor& input) {
  return run_binary(grad, input, Work::backward_from_input, "sigmoid_backward");
}

at::Tensor sigmoid_backward_from_output(const at::Tensor& grad, const at::Tensor& output) {
  return run_binary(grad, output, Work::backward_from_output, "sigmoid_backward_from_output");
}

at::Tensor sigmoid_backward_from_derivative(const at::Tensor& grad, const at::Tensor& derivative) {
  return run_binary(grad, derivative, Work::backward_from_derivative,
                    "sigmoid_backward_from_derivative");
}

void sigmoid_backward_from_derivative_(const at::Tensor& grad, const at::Tensor& derivative) {
  constexpr const char* op = "sigmoid_backward_from_derivative";
  if (is_simple(derivative) && is_simple(grad) && are_alike(derivative, grad)) {
    return run_simple(Work::backward_from_derivative, op, derivative, grad, derivative);
  }
  auto iter = at::TensorIterator::borrowing_binary_op(derivative, grad, derivative);
  run(iter, Work::backward_from_derivative, op);
}

at::Tensor sigmoid_backward_before_bce(const at::Tensor& grad, const at::Tensor& output,
                                       at::ScalarType loss_dtype) {
  if (const auto work = work_before_bce(at::result_type(grad, output), loss_dtype)) {
    return run_binary(grad, output, *work, before_bce);
  }
  const at::Tensor none;
  const at::Tensor result = at::TensorIterator::borrowing_binary_op(none, grad, output).output();
  const at::AutoDispatchBelowADInplaceOrView guard;
  return result.copy_(
      sigmoid_backward_before_bce(grad.to(loss_dtype), output.to(loss_dtype), loss_dtype));
}

void sigmoid_backward_before_bce_(const at::Tensor& grad, const at::Tensor& output,
                                  at::ScalarType loss_dtype) {
  const auto work = work_before_bce(grad.scalar_type(), loss_dtype);
  if (work.has_value() && is_simple(grad) && is_simple(output) && are_alike(grad, output)) {
    return run_simple(*work, before_bce, grad, grad, output);
  }
  grad.copy_(sigmoid_backward_before_bce(grad, output, loss_dtype));
}

}  // namespace fused_sigmoid::cpu
