#include "streaming.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>

#ifdef FUSED_SIGMOID_X86
#include <immintrin.h>
#endif

namespace fused_sigmoid {
namespace {

// In bytes of an output: small enough for all buffers and inputs to stay in the first-level cache,
// and whole iterations of every kernel. With 4 KiB the pair took a tenth longer.
constexpr int64_t block_bytes = 2048;
constexpr int64_t line_bytes = 64;

// Zen 5 is where a gain was measured; Zen 3 and Zen 4 lose (docs/performance.md).
std::atomic<int64_t>& threshold() {
  static std::atomic<int64_t> bytes{is_zen5() ? int64_t{64} << 20
                                              : std::numeric_limits<int64_t>::max()};
  return bytes;
}

std::atomic<int64_t> runs{0};

#ifdef FUSED_SIGMOID_X86
// A store of a whole line was measured to be faster than the four that any x86-64 has, and is taken
// whichever instruction set computes.
[[gnu::target("avx512f")]] void stream_lines_avx512(char* to, const char* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += line_bytes) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + at), _mm512_loadu_si512(from + at));
  }
}

void stream_lines(char* to, const char* from, int64_t bytes) {
  static const bool has_avx512 = __builtin_cpu_supports("avx512f");
  if (has_avx512) return stream_lines_avx512(to, from, bytes);
  for (int64_t at = 0; at < bytes; at += static_cast<int64_t>(sizeof(__m128i))) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + at),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at)));
  }
}

// Non-temporal stores are in no order with others: without this, another thread could see that this
// one is done before it sees what was written.
void finish_streaming() { _mm_sfence(); }
#else
void stream_lines(char* to, const char* from, int64_t bytes) {
  std::memcpy(to, from, static_cast<size_t>(bytes));
}
void finish_streaming() {}
#endif

// Whole lines are streamed; of the first and the last a part belongs to the blocks beside this one,
// or to somebody else.
void stream(char* to, const char* from, int64_t bytes) {
  const int64_t misalignment = reinterpret_cast<intptr_t>(to) % line_bytes;
  const int64_t before = std::min(bytes, (line_bytes - misalignment) % line_bytes);
  const int64_t behind = (bytes - before) % line_bytes, lines = bytes - before - behind;
  std::memcpy(to, from, static_cast<size_t>(before));
  stream_lines(to + before, from + before, lines);
  std::memcpy(to + before + lines, from + before + lines, static_cast<size_t>(behind));
}

}  // namespace

int64_t streamed_from() { return threshold().load(std::memory_order_relaxed); }

void set_streamed_from(int64_t bytes) { threshold().store(bytes, std::memory_order_relaxed); }

void run_streamed(Kernel kernel, Work work, int64_t item, char* const* data, int64_t count) {
  const size_t outputs = outputs_of(work), operands = operands_of(work);
  alignas(line_bytes) char buffers[2][block_bytes];
  char* pointers[most_operands];
  const int64_t most = block_bytes / item;
  for (int64_t begin = 0; begin < count; begin += most) {
    const int64_t block = std::min(most, count - begin);
    for (size_t i = 0; i < operands; ++i) {
      pointers[i] = i < outputs ? buffers[i] : data[i] + begin * item;
    }
    kernel(pointers, block);
    for (size_t i = 0; i < outputs; ++i) stream(data[i] + begin * item, buffers[i], block * item);
  }
  finish_streaming();
  runs.fetch_add(1, std::memory_order_relaxed);
}

int64_t streamed_runs() { return runs.load(std::memory_order_relaxed); }

void copy_streamed(char* to, const char* from, int64_t bytes) {
  stream(to, from, bytes);
  finish_streaming();
}

}  // namespace fused_sigmoid
