// A kernel over rows of elements, the two inner loops of an iteration. Includes no torch header.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace fused_sigmoid {

constexpr int most_operands = 3;

// Runs a kernel over `count` rows of `length` elements of `item` bytes. `strides` holds the
// operands' strides within a row, outputs first, then those from row to row.
void run_rows(Kernel kernel, int outputs, int operands, int64_t item, char** data,
              const int64_t* strides, int64_t length, int64_t count);

}  // namespace fused_sigmoid
