// The kernels for neon, which need no flags: setup.py compiles this file on 64-bit ARM alone.
#include "loops.h"
#include "vector_neon.h"

namespace fused_sigmoid {

extern const KernelTable neon_kernels = kernel_table<neon::Vectors>("neon");

}  // namespace fused_sigmoid
