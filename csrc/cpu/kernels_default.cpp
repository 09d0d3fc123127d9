// The kernels for any CPU that a C++ compiler knows.
#include "loops.h"
#include "vector_portable.h"

namespace fused_sigmoid {

extern const KernelTable default_kernels = kernel_table<portable::Vectors>("default");

}  // namespace fused_sigmoid
