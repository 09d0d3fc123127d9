// The 16-bit floating-point elements as stored in memory. Includes no torch header.
#pragma once

#include <cstdint>

namespace fused_sigmoid {

struct Float16 {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

}  // namespace fused_sigmoid
