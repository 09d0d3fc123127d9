// Large outputs, written past the caches by non-temporal stores. Includes no torch header.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace fused_sigmoid {

// An ordinary store to a line that is in no cache reads that line first; a non-temporal store does
// not, which saves a third of the traffic of a value. From so many bytes of an output on each is
// written so: 64 MiB on processors that gain by it, and on all others never.
int64_t streamed_from();

// Sets that size, for tests and comparisons. Not meant to be called while kernels run.
void set_streamed_from(int64_t bytes);

// Does what kernel(data, count) does, with the same bits.
void run_streamed(Kernel kernel, Work work, int64_t item, char* const* data, int64_t count);

// How often that was called, for tests: nothing else shows which way an output was written.
int64_t streamed_runs();

// Copies by non-temporal stores; where the processor has none, as memcpy does.
void copy_streamed(char* to, const char* from, int64_t bytes);

}  // namespace fused_sigmoid
