// One trial of a kernel: operands between guard pages, in a place of the caller's choice; the call;
// whether anything but the outputs' elements was touched. Includes no torch header. Built with
// AddressSanitizer, every byte around an operand is forbidden to the kernel, not only those of the
// guard pages.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../csrc/cpu/kernels.h"
#include "../../csrc/cpu/streaming.h"
#include "reference.h"

#ifdef FUSED_SIGMOID_TRIAL_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace fused_sigmoid::trial {

enum class Place {
  front,       // the first byte directly behind a guard page
  back,        // the last byte directly before one
  misaligned,  // `misalignment` bytes past a multiple of 64, pages away from both
};

struct Case {
  const KernelTable* table;
  Dtype dtype;
  Work work;
  int64_t count;
  int64_t strides[most_operands];  // in bytes, outputs first
  Place places[most_operands];
  int misalignments[most_operands];
  // Into rows of this length, each operand's a stride of its own in bytes apart; 0: one row of all.
  int64_t row_length = 0;
  int64_t row_strides[most_operands] = {};
  // The output that is an input's memory, or -1: place and stride are then the input's.
  int aliased_output = -1, aliased_input = -1;
  // Written past the caches; the operands are then dense.
  bool is_streamed = false;
};

inline void print(const Case& tried, FILE* to) {
  const Shape shape = shape_of(tried.work);
  std::fprintf(to, "%s, %s, %s, %lld elements", tried.table->instruction_set,
               format_of(tried.dtype).name, shape.name, static_cast<long long>(tried.count));
  for (int i = 0; i < shape.outputs + shape.inputs; ++i) {
    constexpr const char* names[] = {"front", "back", "misaligned"};
    std::fprintf(to, "; operand %d: stride %lld bytes, %s", i,
                 static_cast<long long>(tried.strides[i]),
                 names[static_cast<int>(tried.places[i])]);
    if (tried.row_length > 0) {
      std::fprintf(to, ", rows of %lld elements every %lld bytes",
                   static_cast<long long>(tried.row_length),
                   static_cast<long long>(tried.row_strides[i]));
    }
    if (tried.places[i] == Place::misaligned) std::fprintf(to, " by %d", tried.misalignments[i]);
  }
  if (tried.aliased_output >= 0) {
    std::fprintf(to, "; output %d is input %d", tried.aliased_output, tried.aliased_input);
  }
  if (tried.is_streamed) std::fprintf(to, "; streamed");
  std::fprintf(to, "\n");
}

// What the kernel was called with, for a process that a sanitizer or a guard page ends.
inline Case& current() {
  static Case tried{};
  return tried;
}
inline void print_current() {
  if (current().table == nullptr) return;
  std::fprintf(stderr, "in this call: ");
  print(current(), stderr);
}
// Kernels that are called otherwise have a printer of their own.
inline void (*print_call)() = print_current;

inline void on_death(int) {
  print_call();
  std::_Exit(1);
}

// The sanitizers end a process by SIGABRT when their options say so, a guard page by SIGSEGV.
inline void print_current_on_death() {
  std::signal(SIGABRT, on_death);
#ifndef FUSED_SIGMOID_TRIAL_ASAN
  std::signal(SIGSEGV, on_death);
  std::signal(SIGBUS, on_death);
#endif
}

[[noreturn]] inline void fail(const char* reason) {
  std::fprintf(stderr, "FAILED: %s\n", reason);
  std::abort();
}

// Memory with an inaccessible page on either side.
class GuardedMemory {
 public:
  explicit GuardedMemory(size_t bytes) : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
    bytes_ = (bytes + page_ - 1) / page_ * page_;
    void* all = mmap(nullptr, bytes_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) std::abort();
    begin_ = static_cast<char*>(all) + page_;
    if (mprotect(begin_, bytes_, PROT_READ | PROT_WRITE) != 0) std::abort();
  }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;
  ~GuardedMemory() { munmap(begin_ - page_, bytes_ + 2 * page_); }

  char* begin() const { return begin_; }
  char* end() const { return begin_ + bytes_; }
  char* middle() const { return begin_ + page_; }  // of a page, so a multiple of 64

 private:
  size_t page_, bytes_ = 0;
  char* begin_ = nullptr;
};

// `span` bytes in a place.
inline char* placed(const GuardedMemory& memory, Place place, int misalignment, int64_t span) {
  char* const begin = place == Place::front  ? memory.begin()
                      : place == Place::back ? memory.end() - span
                                             : memory.middle() + misalignment;
  if (begin < memory.begin() || begin + span > memory.end()) fail("no room for the trial");
  return begin;
}

// What is written and compared on either side of an operand as well; the widest vector has 64
// bytes.
struct Window {
  static constexpr int canary = 0xa5;
  static constexpr ptrdiff_t margin = 192;
  char *begin, *end;
  Window() = default;
  Window(const GuardedMemory& memory, char* first, char* last)
      : begin(first - std::min(margin, first - memory.begin())),
        end(last + std::min(margin, memory.end() - last)) {}
  size_t bytes() const { return static_cast<size_t>(end - begin); }
};

#ifdef FUSED_SIGMOID_TRIAL_ASAN
inline void forbid_all_but(const GuardedMemory& memory, const char* begin, const char* end) {
  __asan_poison_memory_region(memory.begin(), static_cast<size_t>(begin - memory.begin()));
  __asan_poison_memory_region(end, static_cast<size_t>(memory.end() - end));
}
inline void allow_all(const GuardedMemory& memory) {
  __asan_unpoison_memory_region(memory.begin(), static_cast<size_t>(memory.end() - memory.begin()));
}
#else
inline void forbid_all_but(const GuardedMemory&, const char*, const char*) {}
inline void allow_all(const GuardedMemory&) {}
#endif

class Trial {
 public:
  // For operands that span up to `bytes`.
  explicit Trial(size_t bytes)
      // A page before the misaligned operand and one behind it.
      : memory_{GuardedMemory(bytes + 4 * 4096), GuardedMemory(bytes + 4 * 4096),
                GuardedMemory(bytes + 4 * 4096)} {}

  // Runs the kernel once. `inputs` are the elements of each input one after the other; `results`
  // receive those of each output. Anything touched outside the outputs ends the process.
  void run(const Case& tried, const char* const* inputs, std::vector<char>* results) {
    current() = tried;
    print_call = print_current;
    const Shape shape = shape_of(tried.work);
    const int operands = shape.outputs + shape.inputs;
    const size_t item = static_cast<size_t>(format_of(tried.dtype).bytes);

    Operand operand[most_operands];
    char* data[most_operands] = {};
    for (int i = 0; i < operands; ++i) operand[i] = place(tried, i, item);
    if (tried.aliased_output >= 0) {
      operand[tried.aliased_output] = operand[shape.outputs + tried.aliased_input];
    }
    for (int i = 0; i < operands; ++i) {
      data[i] = operand[i].first;
      std::memset(operand[i].window.begin, Window::canary, operand[i].window.bytes());
    }
    for (int i = 0; i < shape.inputs; ++i) {
      scatter(operand[shape.outputs + i], inputs[i], tried.count, item);
    }
    for (int i = 0; i < operands; ++i) {
      before_[i].assign(operand[i].window.begin, operand[i].window.end);
    }

    for (int i = 0; i < operands; ++i) {
      forbid_all_but(memory_of(tried, i), operand[i].begin, operand[i].end);
    }
    call(tried, data);
    for (int i = 0; i < operands; ++i) allow_all(memory_of(tried, i));

    for (int i = 0; i < shape.outputs; ++i) {
      results[i].resize(static_cast<size_t>(tried.count) * item);
      gather(operand[i], results[i].data(), tried.count, item);
      restore(operand[i], before_[i].data(), tried.count, item);
    }
    for (int i = 0; i < operands; ++i) {
      const Window& window = operand[i].window;
      if (std::memcmp(window.begin, before_[i].data(), window.bytes()) != 0) {
        fail(i < shape.outputs ? "a kernel wrote outside its outputs' elements"
                               : "a kernel wrote to an input");
      }
    }
    ++runs_;
    elements_ += tried.count;
  }

  int64_t runs() const { return runs_; }
  int64_t elements() const { return elements_; }

 private:
  struct Operand {
    char* first;  // element 0, which a negative stride has at the end
    int64_t stride, row_length, row_stride;
    char* element(int64_t i) const {
      return first + i / row_length * row_stride + i % row_length * stride;
    }
    char *begin, *end;  // of all elements
    Window window;
  };

  const GuardedMemory& memory_of(const Case& tried, int operand) const {
    const int input = shape_of(tried.work).outputs + tried.aliased_input;
    return memory_[tried.aliased_output >= 0 && operand == tried.aliased_output ? input : operand];
  }

  static void call(const Case& tried, char** data) {
    const Kernel kernel = tried.table->get({Sigmoid_, tried.work}, tried.dtype);
    const size_t operands = operands_of(tried.work);
    const int64_t item = format_of(tried.dtype).bytes;
    const bool is_dense = std::all_of(tried.strides, tried.strides + operands,
                                      [&](int64_t stride) { return stride == item; });
    if (tried.is_streamed) return run_streamed(kernel, tried.work, item, data, tried.count);
    if (tried.row_length == 0 && is_dense) return kernel(data, tried.count);
    int64_t strides[2 * most_operands];
    std::copy(tried.strides, tried.strides + operands, strides);
    std::copy(tried.row_strides, tried.row_strides + operands, strides + operands);
    const int64_t length = tried.row_length == 0 ? tried.count : tried.row_length;
    run_strided(kernel, tried.work, item, data, strides, length,
                tried.row_length == 0 ? 1 : tried.count / length);
  }

  Operand place(const Case& tried, int i, size_t item) const {
    const GuardedMemory& memory = memory_[i];
    const int64_t stride = tried.strides[i];
    const int64_t row_length =
        tried.row_length > 0 ? tried.row_length : std::max<int64_t>(tried.count, 1);
    const int64_t last = tried.count - 1, row_stride = tried.row_strides[i];
    const int64_t reach =
        tried.count > 0 ? last / row_length * row_stride + last % row_length * stride : 0;
    const int64_t span = tried.count > 0 ? std::abs(reach) + static_cast<int64_t>(item) : 0;
    Operand operand;
    operand.begin = placed(memory, tried.places[i], tried.misalignments[i], span);
    operand.stride = stride;
    operand.row_length = row_length;
    operand.row_stride = row_stride;
    operand.end = operand.begin + span;
    operand.first = reach < 0 ? operand.begin - reach : operand.begin;
    operand.window = Window(memory, operand.begin, operand.end);
    return operand;
  }

  static void scatter(const Operand& to, const char* from, int64_t count, size_t item) {
    if (to.stride == 0) count = std::min<int64_t>(count, 1);
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(to.element(i), from + static_cast<size_t>(i) * item, item);
    }
  }
  static void gather(const Operand& from, char* to, int64_t count, size_t item) {
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(to + static_cast<size_t>(i) * item, from.element(i), item);
    }
  }
  static void restore(const Operand& to, const char* window, int64_t count, size_t item) {
    for (int64_t i = 0; i < count; ++i) {
      char* element = to.element(i);
      std::memcpy(element, window + (element - to.window.begin), item);
    }
  }

  GuardedMemory memory_[most_operands];
  std::vector<char> before_[most_operands];
  int64_t runs_ = 0, elements_ = 0;
};

inline uint64_t element_bits(const char* from, int bytes) {
  uint64_t bits = 0;
  std::memcpy(&bits, from, static_cast<size_t>(bytes));  // little-endian, as every host of ours
  return bits;
}

inline bool is_nan(const Format& format, uint64_t bits) {
  const uint64_t magnitude = bits & ((uint64_t{1} << (8 * format.bytes - 1)) - 1);
  const uint64_t infinity = static_cast<uint64_t>(2 * format.largest_exponent + 1)
                            << (format.precision - 1);
  return magnitude > infinity;
}

// The tables that this CPU can run, best first.
inline std::vector<const KernelTable*> runnable_tables() {
  std::vector<const KernelTable*> tables;
  for (const std::string& name : instruction_sets()) {
    select_instruction_set(name);
    tables.push_back(&selected_kernels());
  }
  return tables;
}

}  // namespace fused_sigmoid::trial
