// What makes the memory of fresh outputs cheap: no page is faulted in twice, large pages where that
// has to happen. Includes no torch header.
#pragma once

#include <cstddef>

namespace fused_sigmoid {

// To be called for each output that was just allocated, before it is written.
//
// From 1 MiB on, once in a process and once in a thread: lets malloc keep memory that is freed.
// glibc gives what is free at the end of its heap back to the system once it exceeds the trim
// threshold, twice the largest mapped chunk that was freed; the two outputs of a call exceed that,
// and each call would fault them in again: 2.5 times the time of a training step of 256 Ki
// elements. Afterwards glibc keeps up to 64 MiB there, as after the freeing of any tensor of just
// below 32 MiB. jemalloc gives adjacent free memory back from 8 MiB on, as two outputs of 1 Mi
// float32 are: 4 times the time of a step. That limit of the thread's arena is raised to as much.
// Thresholds that the user set stay, and other allocators are not concerned.
//
// From 4 MiB on: asks for transparent huge pages, since a page fault for every 4 KiB costs several
// times what the kernel takes to fill them. A refusal is ignored.
void prepare_fresh_memory(void* begin, size_t bytes);

// Reads FUSED_SIGMOID_HUGEPAGES and FUSED_SIGMOID_KEEPFREED, which switch either off; throws
// std::invalid_argument if one is neither 0 nor 1.
void check_fresh_memory_settings();

}  // namespace fused_sigmoid
