// Advice to the operating system about fresh outputs. Includes no torch header.
#pragma once

#include <cstddef>

namespace fused_sigmoid {

// Asks for transparent huge pages in memory that is about to be written for the first time: a page
// fault for every 4 KiB costs several times what the kernel takes to fill them. Does nothing for
// less than a few MiB, or with FUSED_SIGMOID_HUGEPAGES=0; a refusal is ignored.
void advise_huge_pages(void* begin, size_t bytes);

// Reads the environment variable; throws std::invalid_argument if it is neither 0 nor 1.
bool huge_pages_enabled();

}  // namespace fused_sigmoid
