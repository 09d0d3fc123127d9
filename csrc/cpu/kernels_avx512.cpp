// The kernels for avx512; setup.py compiles this file alone for that instruction set.
#include "loops.h"
#include "vector_avx512.h"

namespace fused_sigmoid {

extern const KernelTable avx512_kernels = kernel_table<avx512::Vectors>("avx512");

}  // namespace fused_sigmoid
