// The choice of an instruction set at run time. Includes no torch header.
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "kernels.h"

#ifdef FUSED_SIGMOID_X86
#include <cpuid.h>
#endif

namespace fused_sigmoid {

extern const KernelTable default_kernels;
#ifdef FUSED_SIGMOID_X86
extern const KernelTable avx2_kernels;
extern const KernelTable avx512_kernels;
#endif
#ifdef FUSED_SIGMOID_ARM64
extern const KernelTable neon_kernels;
#endif

namespace {

constexpr const char* environment_variable = "FUSED_SIGMOID_CPU";

#ifdef FUSED_SIGMOID_X86
// clang 14 rejects the name in __builtin_cpu_supports. What the registers need of the system,
// "avx2" covers.
bool supports_f16c() {
  unsigned int a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

// Best first.
std::vector<const KernelTable*> runnable_kernels() {
  std::vector<const KernelTable*> runnable;
#ifdef FUSED_SIGMOID_X86
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && supports_f16c();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) runnable.push_back(&avx512_kernels);
  if (avx2) runnable.push_back(&avx2_kernels);
#endif
#ifdef FUSED_SIGMOID_ARM64
  runnable.push_back(&neon_kernels);
#endif
  runnable.push_back(&default_kernels);
  return runnable;
}

const KernelTable* find_kernels(const std::string& name, const char* where) {
  std::string accepted;
  for (const KernelTable* table : runnable_kernels()) {
    if (name == table->instruction_set) return table;
    accepted += accepted.empty() ? "'" : ", '";
    accepted += table->instruction_set;
    accepted += "'";
  }
  throw std::invalid_argument(std::string(where) + " is '" + name +
                              "'; accepted on this machine: " + accepted);
}

const KernelTable* chosen_at_start() {
  const char* name = std::getenv(environment_variable);
  if (name != nullptr && *name != '\0') return find_kernels(name, environment_variable);
  return runnable_kernels().front();
}

std::atomic<const KernelTable*>& selected() {
  static std::atomic<const KernelTable*> table{chosen_at_start()};
  return table;
}

}  // namespace

const KernelTable& selected_kernels() { return *selected().load(std::memory_order_relaxed); }

bool is_zen5() {
#ifdef FUSED_SIGMOID_X86
  unsigned int a = 0, vendor = 0, c = 0, d = 0, version = 0, unused = 0;
  if (__get_cpuid(0, &a, &vendor, &c, &d) == 0 || __get_cpuid(1, &version, &unused, &c, &d) == 0) {
    return false;
  }
  const unsigned int family = ((version >> 8) & 0xf) + ((version >> 20) & 0xff);
  const unsigned int model = ((version >> 4) & 0xf) | ((version >> 12) & 0xf0);
  // The others of the family are of the generation after it.
  const bool is_model = model < 0x30 || model >> 4 == 4 || model >> 4 == 6 || model >> 4 == 7;
  return vendor == signature_AMD_ebx && family == 0x1a && is_model;
#else
  return false;
#endif
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const KernelTable* table : runnable_kernels()) names.emplace_back(table->instruction_set);
  return names;
}

void select_instruction_set(const std::string& name) {
  selected().store(find_kernels(name, "the instruction set"), std::memory_order_relaxed);
}

}  // namespace fused_sigmoid
