// Short rows, as of a slice of the last dimension, are gathered to longer ones.
#include "rows.h"

#include <cstring>

namespace fused_sigmoid {
namespace {

// Rows shorter than this are gathered before the kernel sees them: it computes whole vectors, the
// last of them through a buffer, at every call.
constexpr int64_t short_row = 64;
// In elements. A buffer for each operand stays in the first-level cache.
constexpr int64_t gathered = 512;

// Strides in bytes.
struct Rows {
  char* begin;
  int64_t inner;
  int64_t outer;
};

template <int64_t item>
void copy_row(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t length) {
  constexpr int64_t worth_a_call = 16;
  if (to_stride == item && from_stride == item && length >= worth_a_call) {
    std::memcpy(to, from, static_cast<size_t>(item * length));
    return;
  }
  for (int64_t i = 0; i < length; ++i) {
    std::memcpy(to + i * to_stride, from + i * from_stride, item);
  }
}

template <int64_t item>
void copy_rows(Rows to, Rows from, int64_t length, int64_t count) {
  for (int64_t row = 0; row < count; ++row) {
    copy_row<item>(to.begin + row * to.outer, to.inner, from.begin + row * from.outer, from.inner,
                   length);
  }
}

void copy_rows(int64_t item, Rows to, Rows from, int64_t length, int64_t count) {
  if (item == 8) return copy_rows<8>(to, from, length, count);
  if (item == 4) return copy_rows<4>(to, from, length, count);
  copy_rows<2>(to, from, length, count);
}

}  // namespace

void run_rows(Kernel kernel, int outputs, int operands, int64_t item, char** data,
              const int64_t* strides, int64_t length, int64_t count) {
  const auto rows = [&](int operand, int64_t first) {
    const int64_t outer = strides[operands + operand];
    return Rows{data[operand] + first * outer, strides[operand], outer};
  };
  // Where an output's own rows overlap, in place, each sees what those before it wrote, as in
  // torch.
  bool disjoint = true;
  for (int i = 0; i < outputs; ++i) {
    disjoint = disjoint && strides[operands + i] >= (length - 1) * strides[i] + item;
  }
  char* pointers[most_operands];
  if (length >= short_row || count == 1 || !disjoint) {
    for (int64_t row = 0; row < count; ++row) {
      for (int i = 0; i < operands; ++i) pointers[i] = rows(i, row).begin;
      kernel(pointers, strides, length);
    }
    return;
  }

  alignas(64) char buffers[most_operands][gathered * sizeof(double)];
  const int64_t dense[most_operands] = {item, item, item};
  for (int64_t first = 0; first < count; first += gathered / length) {
    const int64_t some = count - first < gathered / length ? count - first : gathered / length;
    const auto buffer = [&](int operand) { return Rows{buffers[operand], item, length * item}; };
    const auto is_dense = [&](int operand) {
      return strides[operand] == item && strides[operands + operand] == length * item;
    };
    for (int i = 0; i < operands; ++i) {
      pointers[i] = is_dense(i) ? rows(i, first).begin : buffers[i];
      if (i >= outputs && !is_dense(i)) copy_rows(item, buffer(i), rows(i, first), length, some);
    }
    kernel(pointers, dense, some * length);
    for (int i = 0; i < outputs; ++i) {
      if (!is_dense(i)) copy_rows(item, rows(i, first), buffer(i), length, some);
    }
  }
}

}  // namespace fused_sigmoid
