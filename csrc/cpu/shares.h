// Elements shared out among threads, for work that costs the same for every element. Includes no
// torch header.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace fused_sigmoid {

// The elements that a thread takes at a time: about a microsecond of work.
constexpr int64_t chunk_size = 4096;

// Each thread has a share of [0, count) of its own, the same one of the same count and number of
// threads each time, so that it stays in that thread's cache. A thread that is done goes on in the
// shares of the next: of one that was woken late, or whose core does something else as well, less
// is left.
class Shares {
 public:
  Shares(int64_t count, int64_t threads) : count_(count), shares_(static_cast<size_t>(threads)) {
    const int64_t chunks = (count + chunk_size - 1) / chunk_size;
    for (int64_t i = 0; i < threads; ++i) {
      at(i).next = i * chunks / threads;
      at(i).end = (i + 1) * chunks / threads;
    }
  }

  // Calls body(begin, end) for what thread `own` computes. Once this has returned in all threads,
  // body was called for each element once.
  template <class Body>
  void work(int64_t own, const Body& body) {
    const int64_t threads = static_cast<int64_t>(shares_.size());
    for (int64_t i = 0; i < std::min(threads, visited); ++i) {
      Share& share = at((own + i) % threads);
      // A share that is used up is only read, which leaves its cache line with all threads.
      while (share.next.load(std::memory_order_relaxed) < share.end) {
        const int64_t chunk = share.next.fetch_add(1, std::memory_order_relaxed);
        if (chunk >= share.end) break;
        body(chunk * chunk_size, std::min(count_, (chunk + 1) * chunk_size));
      }
    }
  }

 private:
  // Its own and three more: to look at those of all others would take longer than it saves where
  // there are tens of them.
  static constexpr int64_t visited = 4;

  // In chunks, on a cache line of its own.
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  Share& at(int64_t thread) { return shares_[static_cast<size_t>(thread)]; }

  int64_t count_;
  std::vector<Share> shares_;
};

}  // namespace fused_sigmoid
