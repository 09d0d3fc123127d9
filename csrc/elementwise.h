// Works of functions over tensors on a CPU, without autograd.
#pragma once

#include <string>

#include "cpu/kernels.h"
#include "functions/functions.h"
#include "layout.h"

namespace fused_sigmoid {

// The kernels' name for a dtype; throws where there is none. `name` is the operator's, for errors.
Dtype kernel_dtype(at::ScalarType dtype, const std::string& name);

// Runs a kernel over tensors of any strides and real dtype, of shapes that broadcast. Undefined
// outputs are allocated; others are resized if need be, and may be inputs.
void run_on_cpu(KernelNumber kernel, const std::string& name, at::ArrayRef<at::Tensor*> outputs,
                Tensors inputs);

}  // namespace fused_sigmoid
