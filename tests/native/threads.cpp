// Kernels in several threads at once, for ThreadSanitizer: the first choice of an instruction set,
// slices of one buffer that meet inside a vector and a cache line, a change of the instruction set
// while others compute, and one thread's floating-point mode in another. Every result is compared
// with that of one thread.
#include <atomic>
#include <cfenv>
#include <random>
#include <thread>

#include "../../csrc/floating_point_mode.h"
#include "loss_trial.h"
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
    for (size_t i = 0; i < most_operands; ++i) {
      strides[i] = multiple * format_of(dtype).bytes;
      operands[i].resize(static_cast<size_t>(count * strides[i]));
      for (char& byte : operands[i]) byte = static_cast<char>(random());
    }
  }

  void run(const KernelTable& table, Dtype dtype, Work work, int64_t begin, int64_t end) {
    char* data[most_operands];
    int64_t both_strides[2 * most_operands] = {};
    for (size_t i = 0; i < most_operands; ++i) {
      data[i] = operands[i].data() + begin * strides[i];
      both_strides[i] = strides[i];
    }
    const int64_t item = format_of(dtype).bytes;
    const Kernel kernel = table.get({Sigmoid_, work}, dtype);
    if (strides[0] == item) return kernel(data, end - begin);
    run_strided(kernel, work, item, data, both_strides, end - begin, 1);
  }
};

void compare(const Buffers& got, const Buffers& expected, Dtype dtype) {
  const Format& format = format_of(dtype);
  for (size_t i = 0; i < most_operands; ++i) {
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
  current() = {table, dtype, work, count, {}, {}, {}};
  print_call = print_current;
  Buffers alone(dtype, multiple);
  alone.run(*table, dtype, work, 0, count);
  std::mt19937 random(3);
  for (int round = 0; round < rounds; ++round) {
    int64_t cuts[threads + 1] = {0};
    for (int i = 1; i < threads; ++i) cuts[i] = static_cast<int64_t>(random() % (count + 1));
    cuts[threads] = count;
    std::sort(cuts, cuts + threads + 1);
    Buffers shared(dtype, multiple);
    together([&](int i) { shared.run(*table, dtype, work, cuts[i], cuts[i + 1]); });
    compare(shared, alone, dtype);
  }
  return int64_t{threads} * rounds;
}

// The operands of the loss, and its sum in each slice.
struct LossBuffers {
  std::vector<char> operands[loss_operands];
  double sums[threads] = {};

  explicit LossBuffers(const LossCase& tried) {
    std::mt19937_64 random(7);
    for (int i = 0; i < loss_operands; ++i) {
      operands[i].resize(static_cast<size_t>(tried.bytes(i)));
      for (char& byte : operands[i]) byte = static_cast<char>(random());
    }
  }

  void run(const LossCase& tried, int slice, int64_t begin, int64_t end) {
    char* data[loss_operands];
    for (int i = 0; i < loss_operands; ++i) {
      data[i] = tried.has(i) ? operands[i].data() + begin * tried.format(i).bytes : nullptr;
    }
    const LossBlock block{data[logits],
                          data[targets],
                          data[weights],
                          data[pos_weights],
                          data[losses],
                          data[gradients],
                          1};
    sums[slice] = tried.table->get(tried.work, tried.dtype)(block, end - begin);
  }
};

void compare(const LossBuffers& got, const LossBuffers& expected) {
  for (int i = 0; i < loss_operands; ++i) {
    // Of one instruction set NaN have the same bits too.
    if (got.operands[i] != expected.operands[i]) fail("several threads computed other losses");
  }
  if (std::memcmp(got.sums, expected.sums, sizeof(got.sums)) != 0) {
    fail("several threads computed other sums of losses");
  }
}

int64_t loss_slices(const KernelTable* table, Dtype dtype, LossWork work) {
  const LossCase tried{table, dtype, work, count, 1, {}, {}};
  current_loss() = tried;
  print_call = print_current_loss;
  std::mt19937 random(3);
  for (int round = 0; round < rounds; ++round) {
    int64_t cuts[threads + 1] = {0};
    for (int i = 1; i < threads; ++i) cuts[i] = static_cast<int64_t>(random() % (count + 1));
    cuts[threads] = count;
    std::sort(cuts, cuts + threads + 1);
    LossBuffers alone(tried), shared(tried);
    for (int i = 0; i < threads; ++i) alone.run(tried, i, cuts[i], cuts[i + 1]);
    together([&](int i) { shared.run(tried, i, cuts[i], cuts[i + 1]); });
    compare(shared, alone);
  }
  return int64_t{threads} * rounds;
}

// All instruction sets give the same bits, so that it does not matter which one a thread meets.
int64_t changing_sets(Dtype dtype) {
  const std::vector<std::string> names = instruction_sets();
  Buffers alone(dtype, 1), shared(dtype, 1);
  current() = {&selected_kernels(), dtype, Work::value, count, {}, {}, {}};
  print_call = print_current;
  alone.run(selected_kernels(), dtype, Work::value, 0, count);
  together([&](int i) {
    for (int round = 0; round < 64; ++round) {
      if (i == 0) {
        select_instruction_set(names[static_cast<size_t>(round) % names.size()]);
        continue;
      }
      const int64_t share = count / (threads - 1);
      const int64_t end = i == threads - 1 ? count : i * share;
      shared.run(selected_kernels(), dtype, Work::value, (i - 1) * share, end);
    }
  });
  compare(shared, alone, dtype);
  return int64_t{threads - 1} * 64;
}

// Not inlined: a sum might be moved out of the mode it is to be computed in.
[[gnu::noinline]] bool rounds_up() {
  volatile double one = 1, little = 0x1p-60;
  return one + little > 1;
}

// Another thread rounds as this one did when the mode was read, and afterwards as before.
void mode_of_another_thread() {
  print_call = [] {};
  std::fesetround(FE_UPWARD);
  const FloatingPointMode mode;
  std::fesetround(FE_TONEAREST);
  bool within = false, afterwards = true;
  std::thread([&] {
    mode.run([&] { within = rounds_up(); });
    afterwards = rounds_up();
  }).join();
  if (!within || afterwards) fail("a thread did not round as another one");
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
  mode_of_another_thread();
  int64_t executions = 0;
  for (const KernelTable* table : runnable_tables()) {
    for (size_t dtype = 0; dtype < dtype_count; ++dtype) {
      for (size_t work = 0; work < work_count; ++work) {
        for (const int64_t multiple : {1, 2}) {
          executions += slices(table, static_cast<Dtype>(dtype), static_cast<Work>(work), multiple);
        }
      }
      for (size_t work = 0; work < loss_work_count; ++work) {
        executions += loss_slices(table, static_cast<Dtype>(dtype), loss_work(work));
      }
    }
  }
  for (size_t dtype = 0; dtype < dtype_count; ++dtype) {
    executions += changing_sets(static_cast<Dtype>(dtype));
  }
  std::printf("{\"threads\": %d, \"kernel_executions\": %lld}\n", threads,
              static_cast<long long>(executions));
}
