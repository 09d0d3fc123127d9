// The kernels for avx2; setup.py compiles this file alone for that instruction set.
#include "loops.h"
#include "vector_avx2.h"

namespace fused_sigmoid {

extern const KernelTable avx2_kernels = kernel_table<avx2::Vectors>("avx2");

}  // namespace fused_sigmoid
