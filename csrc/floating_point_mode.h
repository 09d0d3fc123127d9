// The state of a processor's thread that floating-point arithmetic depends on.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace fused_sigmoid {

// How the calling thread rounds and whether it flushes subnormals (torch.set_flush_denormal), for
// torch's other threads to compute alike: which of them computes an element is chance.
class FloatingPointMode {
 public:
  template <class Function>
  void run(const Function& function) const {
    const uint64_t own = control();
    if (own != control_) set_control(control_);
    function();
    if (own != control_) set_control(own);
  }

 private:
#if defined(__x86_64__) || defined(_M_X64)
  static uint64_t control() { return _mm_getcsr(); }
  static void set_control(uint64_t to) { _mm_setcsr(static_cast<unsigned>(to)); }
#elif defined(__aarch64__)
  static uint64_t control() {
    uint64_t control = 0;
    asm volatile("mrs %0, fpcr" : "=r"(control));
    return control;
  }
  static void set_control(uint64_t to) { asm volatile("msr fpcr, %0" : : "r"(to) : "memory"); }
#else
  static uint64_t control() { return 0; }
  static void set_control(uint64_t) {}
#endif
  uint64_t control_ = control();
};

}  // namespace fused_sigmoid
