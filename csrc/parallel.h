// A loop over elements by the threads of torch.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/FunctionRef.h>

#include <algorithm>
#include <cstdint>
#include <unordered_map>

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

#include "cpu/shares.h"

namespace fused_sigmoid {

// How the calling thread rounds and whether it flushes subnormals (torch.set_flush_denormal), for
// another thread to compute alike: which of them computes an element is chance.
class FloatingPointMode {
 public:
#if defined(__x86_64__) || defined(_M_X64)
  FloatingPointMode() : control_(_mm_getcsr() & ~flags) {}

  template <class Function>
  void run(const Function& function) const {
    const unsigned own = _mm_getcsr();
    if ((own & ~flags) == control_) return function();
    _mm_setcsr(control_);
    function();
    _mm_setcsr(own);
  }

 private:
  static constexpr unsigned flags = 0x3f;  // exceptions that were met
  unsigned control_;
#else
  template <class Function>
  void run(const Function& function) const {
    function();
  }
#endif
};

// Calls body(index) for each index below `count`, by as many threads if torch has them.
//
// at::parallel_for is compiled here, not in torch: without the compiler's flag for OpenMP it runs
// serially, and with it the extension is bound to the compiler's OpenMP, which may be another one
// than torch's, with threads of its own. The loop of a TensorIterator is part of torch. Those over
// `count` bytes, which nobody reads, are kept, since one takes longer to make than to run.
inline void run_threads(int64_t count, c10::function_ref<void(int64_t)> body) {
  static char base;
  thread_local std::unordered_map<int64_t, at::TensorIterator> iterators;
  auto found = iterators.find(count);
  if (found == iterators.end()) {
    auto iterator = at::TensorIteratorConfig()
                        .add_owned_output(at::from_blob(&base, count, at::kByte))
                        .check_all_same_dtype(false)
                        .resize_outputs(false)
                        .set_check_mem_overlap(false)
                        .build();
    found = iterators.emplace(count, std::move(iterator)).first;
  }
  const auto begin = reinterpret_cast<uintptr_t>(&base);
  const auto loop = [&](char** data, const int64_t*, int64_t length, int64_t) {
    const auto first = static_cast<int64_t>(reinterpret_cast<uintptr_t>(data[0]) - begin);
    for (int64_t i = 0; i < length; ++i) body(first + i);
  };
  found->second.for_each(loop, /*grain_size=*/1);
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
  const FloatingPointMode mode;
  run_threads(threads, [&](int64_t own) { mode.run([&] { shares.work(own, body); }); });
}

}  // namespace fused_sigmoid
