#include "huge_pages.h"

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace fused_sigmoid {
namespace {

bool read_environment() {
  const char* set = std::getenv("FUSED_SIGMOID_HUGEPAGES");
  const std::string value = set == nullptr || *set == '\0' ? "1" : set;
  if (value != "0" && value != "1") {
    throw std::invalid_argument("FUSED_SIGMOID_HUGEPAGES is '" + value +
                                "'; accepted are '0' and '1'");
  }
  return value == "1";
}

// Below, malloc mostly reuses memory that is mapped already, and a call to the system gains
// nothing.
constexpr size_t least_bytes = size_t{4} << 20;

}  // namespace

bool huge_pages_enabled() {
  static const bool enabled = read_environment();
  return enabled;
}

bool gets_huge_pages(size_t bytes) {
#ifdef MADV_HUGEPAGE
  return bytes >= least_bytes && huge_pages_enabled();
#else
  (void)bytes;
  return false;
#endif
}

void advise_huge_pages(void* begin, size_t bytes) {
#ifdef MADV_HUGEPAGE
  if (!gets_huge_pages(bytes)) return;
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

bool is_resident(void* address) {
#ifdef __linux__
  static const uintptr_t page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t page = reinterpret_cast<uintptr_t>(address) & ~(page_bytes - 1);
  unsigned char resident = 0;
  return mincore(reinterpret_cast<void*>(page), page_bytes, &resident) == 0 && (resident & 1) != 0;
#else
  (void)address;
  return false;
#endif
}

}  // namespace fused_sigmoid
