// A loop over elements by the threads of torch.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/FunctionRef.h>

#include <algorithm>
#include <cstdint>

#include "cpu/shares.h"

namespace fused_sigmoid {

// Calls body(index) for each index below `count`, by as many threads if torch has them.
//
// at::parallel_for is compiled here, not in torch: without the compiler's flag for OpenMP it runs
// serially, and with it the extension is bound to the compiler's OpenMP, which may be another one
// than torch's, with threads of its own. The loop of a TensorIterator is part of torch. One over
// `count` bytes, which nobody reads, is kept, since it takes longer to make than to run.
inline void run_threads(int64_t count, c10::function_ref<void(int64_t)> body) {
  static char base;
  thread_local int64_t count_of_iterator = 0;
  thread_local at::TensorIterator iterator;
  if (count_of_iterator != count) {
    iterator = at::TensorIteratorConfig()
                   .add_owned_output(at::from_blob(&base, count, at::kByte))
                   .check_all_same_dtype(false)
                   .resize_outputs(false)
                   .set_check_mem_overlap(false)
                   .build();
    count_of_iterator = count;
  }
  const auto loop = [&](char** data, const int64_t*, int64_t length, int64_t) {
    for (int64_t i = 0; i < length; ++i) body(data[0] - &base + i);
  };
  iterator.for_each(loop, /*grain_size=*/1);
}

// Calls body(begin, end) for parts of [0, count), each element once, like at::parallel_for with
// torch's grain.
template <class Body>
void parallel_for(int64_t count, const Body& body) {
  constexpr int64_t grain = at::internal::GRAIN_SIZE;
  if (count <= grain || at::in_parallel_region()) return body(0, count);
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), at::divup(count, grain));
  if (threads == 1) return body(0, count);
  Shares shares(count, threads);
  run_threads(threads, [&](int64_t own) { shares.work(own, body); });
}

}  // namespace fused_sigmoid
