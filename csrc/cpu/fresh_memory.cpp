#include "fresh_memory.h"

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#ifdef __linux__
#include <sys/mman.h>
#endif

// Of jemalloc, where that is the process's malloc.
extern "C" [[gnu::weak]] int mallctl(const char* name, void* value, size_t* bytes, void* new_value,
                                     size_t new_bytes);

namespace fused_sigmoid {
namespace {

constexpr size_t KiB = size_t{1} << 10, MiB = size_t{1} << 20;

// Below, what torch's import has freed keeps glibc's threshold above two outputs.
constexpr size_t kept_from = 1 * MiB;
constexpr size_t kept_up_to = 64 * MiB;
// Below, malloc mostly reuses memory that is mapped already, and a call to the system gains
// nothing.
constexpr size_t huge_pages_from = 4 * MiB;
// The page size of x86-64 and, with 4 KiB base pages, of arm64.
constexpr uintptr_t huge_page_bytes = uintptr_t{2 * MiB};

bool read_switch(const char* name) {
  const char* set = std::getenv(name);
  const std::string value = set == nullptr || *set == '\0' ? "1" : set;
  if (value != "0" && value != "1") {
    throw std::invalid_argument(std::string(name) + " is '" + value +
                                "'; accepted are '0' and '1'");
  }
  return value == "1";
}

bool keeps_freed() {
  static const bool enabled = read_switch("FUSED_SIGMOID_KEEPFREED");
  return enabled;
}

bool uses_huge_pages() {
  static const bool enabled = read_switch("FUSED_SIGMOID_HUGEPAGES");
  return enabled;
}

// glibc raises both of its thresholds when a mapped chunk is freed, for chunks of up to 32 MiB, and
// not if either was set. Nothing is written to the chunk, so that it costs no memory; without
// volatile the compiler leaves both calls out.
bool raise_trim_threshold() {
  void* volatile chunk = std::malloc(kept_up_to / 2 - 64 * KiB);
  std::free(chunk);
  return true;
}

// jemalloc gives adjacent free memory back at once from this size on. It is a setting of the arena,
// which threads may share. The first arena has jemalloc's own 8 MiB whatever the user has set, so
// that the option is asked for too.
bool raise_oversize_threshold() {
  const auto is_by_default = [](const std::string& name) {
    size_t set, bytes = sizeof(set);
    return mallctl(name.c_str(), &set, &bytes, nullptr, 0) == 0 && set == 8 * MiB;
  };
  unsigned arena;
  size_t bytes = sizeof(arena), raised = kept_up_to;
  if (mallctl == nullptr || mallctl("thread.arena", &arena, &bytes, nullptr, 0)) return false;
  const std::string name = "arena." + std::to_string(arena) + ".oversize_threshold";
  return is_by_default("opt.oversize_threshold") && is_by_default(name) &&
         mallctl(name.c_str(), nullptr, nullptr, &raised, sizeof(raised)) == 0;
}

void advise_huge_pages(void* begin, size_t bytes) {
#ifdef MADV_HUGEPAGE
  // Whole huge pages only: what lies beside the output is somebody else's memory.
  const uintptr_t first =
      (reinterpret_cast<uintptr_t>(begin) + huge_page_bytes - 1) & ~(huge_page_bytes - 1);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + bytes) & ~(huge_page_bytes - 1);
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)begin;
  (void)bytes;
#endif
}

}  // namespace

void prepare_fresh_memory(void* begin, size_t bytes) {
  if (bytes < kept_from) return;
  static const bool raised = keeps_freed() && raise_trim_threshold();
  static thread_local const bool raised_here = keeps_freed() && raise_oversize_threshold();
  (void)raised, (void)raised_here;
  if (bytes >= huge_pages_from && uses_huge_pages()) advise_huge_pages(begin, bytes);
}

void check_fresh_memory_settings() {
  keeps_freed();
  uses_huge_pages();
}

}  // namespace fused_sigmoid
