// The operations on CPU tensors: TensorIterator brings shapes, strides, dtypes, memory checks and
// threads (at::parallel_for) to the kernels of cpu/, which know none of these.
#include <ATen/TensorIterator.h>

#include "cpu/kernels.h"
#include "ops.h"

namespace fused_sigmoid::cpu {
namespace {

Dtype kernel_dtype(const at::TensorIteratorBase& iter, const char* op) {
  switch (iter.common_dtype()) {
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
          false, op, "(): argument 'input' has dtype ", iter.common_dtype(),
          "; accepted are float64, float32, float16, bfloat16, complex128, complex64, bool and "
          "integers");
  }
}

void run(at::TensorIteratorBase& iter, Work work, const char* op) {
  const Kernel kernel = selected_kernels().get(work, kernel_dtype(iter, op));
  iter.for_each(kernel);
  iter.cast_outputs();
}

at::Tensor run_binary(const at::Tensor& grad, const at::Tensor& other, Work work, const char* op) {
  at::Tensor result;
  auto iter = at::TensorIterator::borrowing_binary_op(result, grad, other);
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
  run(iter, Work::value_and_derivative, "sigmoid_with_derivative");
  return {iter.output(0), iter.output(1)};
}

}  // namespace

at::Tensor sigmoid(const at::Tensor& input) {
  at::Tensor result;
  auto iter = at::TensorIterator::unary_float_op(result, input);
  run(iter, Work::value, "sigmoid");
  return iter.output();
}

void sigmoid_out(const at::Tensor& input, at::Tensor out) {
  auto iter = at::TensorIterator::unary_float_op(out, input);
  run(iter, Work::value, "sigmoid");
}

std::tuple<at::Tensor, at::Tensor> sigmoid_with_derivative(const at::Tensor& input) {
  return run_pair(input, at::Tensor(), at::Tensor());
}

void sigmoid_with_derivative_out(const at::Tensor& input, at::Tensor value, at::Tensor derivative) {
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

}  // namespace fused_sigmoid::cpu
