// Work on torch's threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/ScalarType.h>

#include <cstdint>

namespace fused_sigmoid {

// Calls run(first, last) for all numbers from 0 to `count`, each thread having `fewest` or more.
// The threads are reached by torch's own loop over memory of as many elements, which it does not
// touch: at::parallel_for is compiled here, and where that is without OpenMP it knows one thread
// alone.
template <class T, class Run>
void run_in_threads(T* memory, int64_t count, int64_t fewest, const Run& run) {
  if (count <= fewest || at::get_num_threads() == 1) return run(0, count);
  const at::Tensor places = at::from_blob(memory, {count}, c10::CppTypeToScalarType<T>::value);
  at::TensorIterator::borrowing_nullary_op(places).for_each(
      [&](char** data, const int64_t*, int64_t length) {
        const int64_t first = reinterpret_cast<T*>(data[0]) - memory;
        run(first, first + length);
      },
      fewest);
}

}  // namespace fused_sigmoid
