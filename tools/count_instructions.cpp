// Counts the instructions that each CPU kernel executes, by stepping through them one at a time:
// exact, whatever the machine is busy with, and for every instruction set that the CPU runs. Prints
// a line for each kernel: instruction set, work, dtype, memory, elements, instructions. Depends on
// the kernels alone; Linux only. Built and read by tools/instructions.py.
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/kernels.h"

namespace {

using namespace fused_sigmoid;

constexpr const char* dtype_names[dtype_count] = {"float64", "float32", "float16", "bfloat16"};
constexpr int bytes[dtype_count] = {8, 4, 2, 2};

// Whole rounds of every unrolled loop and whole blocks of strided memory: the difference of two
// counts leaves out what a call costs once. A step takes over 10 us, so no more than is needed.
struct Lengths {
  int64_t few, many;
};
constexpr Lengths vectors{256, 512}, single_elements{16, 32}, strided{512, 1024};

// Zeros: ordinary inputs in each dtype, on which the portable conversions always branch alike.
alignas(64) char memory[3][2 * strided.many * sizeof(double)];
char* const data[] = {memory[0], memory[1], memory[2]};

// A traced child stops before and after the kernel; between the two the parent steps and counts.
long steps(Kernel kernel, Work work, int64_t item, int64_t step, int64_t count) {
  std::vector<int64_t> strides(2 * operands_of(work), step * item);
  const auto run = [&] {
    if (step == 1) return kernel(data, count);
    run_strided(kernel, work, item, data, strides.data(), count, 1);
  };
  const pid_t child = fork();
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(2);
    // Resolves lazily bound functions of the C library and touches the pages.
    run();
    raise(SIGUSR1);
    run();
    raise(SIGUSR2);
    _exit(0);
  }
  int status = 0;
  long counted = 0;
  waitpid(child, &status, 0);
  if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGUSR1) return -1;
  for (;; ++counted) {
    if (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) != 0) return -1;
    if (waitpid(child, &status, 0) < 0 || !WIFSTOPPED(status)) return -1;
    if (WSTOPSIG(status) == SIGUSR2) break;
    if (WSTOPSIG(status) != SIGTRAP) return -1;
  }
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  return counted;
}

}  // namespace

int main() {
  for (const std::string& set : instruction_sets()) {
    select_instruction_set(set);
    const bool portable = set == "default";
    for (size_t number = 0; number < number_of(Work::value_of_kept); ++number) {
      const Work work = static_cast<Work>(number);
      for (size_t dtype = 0; dtype < dtype_count; ++dtype) {
        for (const int64_t step : {1, 2}) {
          // One kernel tells what all take to gather and scatter.
          if (step == 2 && (portable || work != Work::value)) continue;
          const Lengths& lengths = step == 2 ? strided : portable ? single_elements : vectors;
          const Kernel kernel = selected_kernels().get({Sigmoid_, work}, static_cast<Dtype>(dtype));
          const long first = steps(kernel, work, bytes[dtype], step, lengths.few);
          const long second = steps(kernel, work, bytes[dtype], step, lengths.many);
          if (first < 0 || second < 0) {
            std::fprintf(stderr, "a traced process cannot be stepped through here\n");
            return 3;
          }
          std::printf("%s %s %s %s %ld %ld\n", set.c_str(), work_names[number], dtype_names[dtype],
                      step == 1 ? "contiguous" : "strided",
                      static_cast<long>(lengths.many - lengths.few), second - first);
        }
      }
    }
  }
}
