// The state of a processor's thread that floating-point arithmetic depends on.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace fused_sigmoid {

// How the calling thread rounds and whether it flushes subnormals (torch.set_flush_denormal), for
// torch's other threads to compute alike: which of them computes an element is chance.
class FloatingPointMode {
 public:
#if defined(__x86_64__) || defined(_M_X64)
  template <class Function>
  void run(const Function& function) const {
    const unsigned own = _mm_getcsr();
    if (own != control_) _mm_setcsr(control_);
    function();
    if (own != control_) _mm_setcsr(own);
  }

 private:
  unsigned control_ = _mm_getcsr();
#else
  template <class Function>
  void run(const Function& function) const {
    function();
  }
#endif
};

}  // namespace fused_sigmoid
