// Advice to the operating system about fresh outputs. Includes no torch header.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fused_sigmoid {

// The page size of x86-64 and, with 4 KiB base pages, of arm64.
constexpr uintptr_t huge_page_bytes = uintptr_t{2} << 20;

// Whether fresh memory of this size gets huge pages: it has at least a few MiB, and
// FUSED_SIGMOID_HUGEPAGES is not 0.
bool gets_huge_pages(size_t bytes);

// Asks for transparent huge pages in memory that is about to be written for the first time: a page
// fault for every 4 KiB costs several times what the kernel takes to fill them. Does nothing
// for memory that gets none; a refusal is ignored.
void advise_huge_pages(void* begin, size_t bytes);

// Whether the page at an address of the caller's has memory already, so that a write to it is no
// page fault. False where the system does not say.
bool is_resident(void* address);

// Reads the environment variable; throws std::invalid_argument if it is neither 0 nor 1.
bool huge_pages_enabled();

}  // namespace fused_sigmoid
