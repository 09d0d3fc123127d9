// Kernels in several threads at once, for ThreadSanitizer: the first choice of an instruction set,
// slices of one buffer that meet inside a vector and a cache line, a change of the instruction set
// while others compute, and the shares of one loop. Every result is compared with that of one
// thread.
#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "../../csrc/cpu/shares.h"
#include "trial.h"

namespace fused_sigmoid::trial {
namespace {

constexpr int threads = 8;
constexpr int64_t count = 3001;  // longer than the strided loop's block, for most slices
constexpr int rounds = 6;

// Calls work(i) in every thread, all at the same time.
template <class Function>
void together(Function work) {
  std::atomic<int> waiting{threads};
  std::vector<std::thread> running;
  for (int i = 0; i < threads; ++i) {
    running.emplace_back([&, i] {
      --waiting;
      while (waiting.load() > 0) std::this_thread::yield();
      work(i);
    });
  }
  for (std::thread& thread : running) thread.join();
}

struct Buffers {
  std::vector<char> operands[most_operands];
  int64_t strides[most_operands] = {};

  Buffers(Dtype dtype, int64_t multiple) {
    std::mt19937_64 random(7);
    for (int i = 0; i < most_operands; ++i) {
      strides[i] = multiple * format_of(dtype).bytes;
      operands[i].resize(static_cast<size_t>(count * strides[i]));
      for (char& byte : operands[i]) byte = static_cast<char>(random());
    }
  }

  void run(Kernel kernel, int64_t begin, int64_t end) {
    char* data[most_operands];
    for (int i = 0; i < most_operands; ++i) data[i] = operands[i].data() + begin * strides[i];
    kernel(data, strides, end - begin);
  }
};

void compare(const Buffers& got, const Buffers& expected, Dtype dtype) {
  const Format& format = format_of(dtype);
  for (int i = 0; i < most_operands; ++i) {
    for (size_t at = 0; at < got.operands[i].size(); at += static_cast<size_t>(format.bytes)) {
      const uint64_t a = element_bits(&got.operands[i][at], format.bytes);
      const uint64_t b = element_bits(&expected.operands[i][at], format.bytes);
      if (a != b && !(is_nan(format, a) && is_nan(format, b))) {
        fail("several threads computed something else than one");
      }
    }
  }
}

int64_t slices(const KernelTable* table, Dtype dtype, Work work, int64_t multiple) {
  const Kernel kernel = table->get(work, dtype);
  current() = {table, dtype, work, count, {}, {}, {}};
  Buffers alone(dtype, multiple);
  alone.run(kernel, 0, count);
  std::mt19937 random(3);
  for (int round = 0; round < rounds; ++round) {
    int64_t cuts[threads + 1] = {0};
    for (int i = 1; i < threads; ++i) cuts[i] = static_cast<int64_t>(random() % (count + 1));
    cuts[threads] = count;
    std::sort(cuts, cuts + threads + 1);
    Buffers shared(dtype, multiple);
    together([&](int i) { shared.run(kernel, cuts[i], cuts[i + 1]); });
    compare(shared, alone, dtype);
  }
  return int64_t{threads} * rounds;
}

// All instruction sets give the same bits, so that it does not matter which one a thread meets.
int64_t changing_sets(Dtype dtype) {
  const std::vector<std::string> names = instruction_sets();
  Buffers alone(dtype, 1), shared(dtype, 1);
  current() = {&selected_kernels(), dtype, Work::value, count, {}, {}, {}};
  alone.run(selected_kernels().get(Work::value, dtype), 0, count);
  together([&](int i) {
    for (int round = 0; round < 64; ++round) {
      if (i == 0) {
        select_instruction_set(names[static_cast<size_t>(round) % names.size()]);
        continue;
      }
      const int64_t share = count / (threads - 1);
      const int64_t end = i == threads - 1 ? count : i * share;
      shared.run(selected_kernels().get(Work::value, dtype), (i - 1) * share, end);
    }
  });
  compare(shared, alone, dtype);
  return int64_t{threads - 1} * 64;
}

// Notes what each part of a loop was given out as; without atomics, so that two threads at one part
// are a race. Every third thread is late, and others take over its share.
int64_t shares_of(int64_t length, int64_t sharers) {
  std::vector<int64_t> elements(static_cast<size_t>((length + chunk_size - 1) / chunk_size));
  Shares shares(length, sharers);
  together([&](int i) {
    if (i >= sharers) return;
    if (i % 3 == 2) std::this_thread::sleep_for(std::chrono::microseconds(100));
    shares.work(i, [&](int64_t begin, int64_t end) {
      if (begin % chunk_size != 0 || begin < 0 || end > length) fail("a part is not of the loop");
      elements[static_cast<size_t>(begin / chunk_size)] += end - begin;
    });
  });
  for (size_t part = 0; part < elements.size(); ++part) {
    const int64_t rest = length - static_cast<int64_t>(part) * chunk_size;
    if (elements[part] != std::min(rest, chunk_size)) fail("a part was not given out once");
  }
  return static_cast<int64_t>(elements.size());
}

}  // namespace
}  // namespace fused_sigmoid::trial

int main() {
  using namespace fused_sigmoid;
  using namespace fused_sigmoid::trial;
  print_current_on_death();
  const KernelTable* first[threads];
  together([&](int i) { first[i] = &selected_kernels(); });
  for (const KernelTable* table : first) {
    if (table != first[0]) fail("threads were given different kernels");
  }
  int64_t executions = 0;
  for (const KernelTable* table : runnable_tables()) {
    for (int dtype = 0; dtype < dtype_count; ++dtype) {
      for (int work = 0; work < work_count; ++work) {
        for (const int64_t multiple : {1, 2}) {
          executions += slices(table, static_cast<Dtype>(dtype), static_cast<Work>(work), multiple);
        }
      }
    }
  }
  for (int dtype = 0; dtype < dtype_count; ++dtype) {
    executions += changing_sets(static_cast<Dtype>(dtype));
  }
  int64_t parts = 0;
  for (const int64_t length : {int64_t{0}, int64_t{1}, chunk_size - 1, chunk_size, chunk_size + 1,
                               17 * chunk_size + 5, 3000 * chunk_size}) {
    for (int64_t sharers = 1; sharers <= threads; ++sharers) {
      for (int round = 0; round < rounds; ++round) parts += shares_of(length, sharers);
    }
  }
  std::printf("{\"threads\": %d, \"kernel_executions\": %lld, \"parts\": %lld}\n", threads,
              static_cast<long long>(executions), static_cast<long long>(parts));
}
