// Works of functions over tensors on a CPU, without autograd.
#pragma once

#include <string>

#include "functions/functions.h"
#include "layout.h"

namespace fused_sigmoid {

// Runs a kernel over tensors of any strides and real dtype, of shapes that broadcast. Undefined
// outputs are allocated; others are resized if need be, and may be inputs. `name` is the
// operator's, for errors.
void run_on_cpu(KernelNumber kernel, const std::string& name, at::ArrayRef<at::Tensor*> outputs,
                Tensors inputs);

}  // namespace fused_sigmoid
