// Kernels see memory without gaps: everything else is gathered here, and scattered again.
#include <cstring>

#include "kernels.h"

namespace fused_sigmoid {
namespace {

// Shorter rows are gathered together even if they have no gaps: a kernel computes whole vectors,
// the last of them through a buffer, at every call.
constexpr int64_t short_row = 64;
// In elements; a buffer for each operand stays in the first-level cache.
constexpr int64_t most_gathered = 512;

// An operand's part, of `rows` rows and `columns` columns, with strides in bytes.
struct Part {
  char* begin;
  int64_t column_stride, row_stride;
};

enum class Direction { to_buffer, from_buffer };

// Between a part and a buffer without gaps.
template <int64_t item, Direction direction>
void copy(char* buffer, Part part, int64_t columns, int64_t rows) {
  constexpr int64_t worth_a_call = 16;
  constexpr bool to_buffer = direction == Direction::to_buffer;
  for (int64_t row = 0; row < rows; ++row, buffer += columns * item) {
    char* element = part.begin + row * part.row_stride;
    if (part.column_stride == item && columns >= worth_a_call) {
      std::memcpy(to_buffer ? buffer : element, to_buffer ? element : buffer,
                  static_cast<size_t>(item * columns));
      continue;
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < columns; ++i, element += part.column_stride) {
      char* const gathered = buffer + i * item;
      std::memcpy(to_buffer ? gathered : element, to_buffer ? element : gathered, item);
    }
  }
}

template <Direction direction>
void copy(int64_t item, char* buffer, Part part, int64_t columns, int64_t rows) {
  if (item == 8) return copy<8, direction>(buffer, part, columns, rows);
  if (item == 4) return copy<4, direction>(buffer, part, columns, rows);
  copy<2, direction>(buffer, part, columns, rows);
}

}  // namespace

void run_strided(Kernel kernel, Work work, int64_t item, char* const* data, const int64_t* strides,
                 int64_t length, int64_t count) {
  const size_t outputs = outputs_of(work), operands = operands_of(work);
  // Where an output's own rows overlap, in place, each row sees what those before it wrote, as in
  // torch.
  bool is_apart = true, is_dense = true;
  for (size_t i = 0; i < operands; ++i) {
    const int64_t column_stride = strides[i], row_stride = strides[operands + i];
    is_dense = is_dense && column_stride == item;
    is_apart = is_apart && (i >= outputs || row_stride >= (length - 1) * column_stride + item);
  }
  char* pointers[most_operands];
  if (is_dense && (length >= short_row || count == 1)) {
    for (int64_t row = 0; row < count; ++row) {
      for (size_t i = 0; i < operands; ++i) pointers[i] = data[i] + row * strides[operands + i];
      kernel(pointers, length);
    }
    return;
  }

  // A call of the kernel has some rows, or some columns of one.
  constexpr int64_t most_columns = most_gathered;
  const bool is_short = length > 0 && length < short_row;
  const int64_t most_rows = is_short && is_apart ? most_columns / length : 1;
  alignas(64) char buffers[most_operands][most_gathered * sizeof(double)];
  bool is_filled[most_operands] = {};
  for (int64_t row = 0; row < count; row += most_rows) {
    const int64_t rows = count - row < most_rows ? count - row : most_rows;
    for (int64_t column = 0; column < length; column += most_columns) {
      const int64_t columns = length - column < most_columns ? length - column : most_columns;
      const auto part = [&](size_t i) {
        const int64_t column_stride = strides[i], row_stride = strides[operands + i];
        return Part{data[i] + row * row_stride + column * column_stride, column_stride, row_stride};
      };
      const auto needs_buffer = [&](size_t i) {
        return (strides[i] != item && columns > 1) ||
               (strides[operands + i] != columns * item && rows > 1);
      };
      for (size_t i = 0; i < operands; ++i) {
        pointers[i] = needs_buffer(i) ? buffers[i] : part(i).begin;
        if (i < outputs || !needs_buffer(i) || is_filled[i]) continue;
        copy<Direction::to_buffer>(item, buffers[i], part(i), columns, rows);
        // An expanded operand is the same in every part, of which the first is the largest.
        is_filled[i] = strides[i] == 0 && (strides[operands + i] == 0 || count == 1);
      }
      kernel(pointers, rows * columns);
      for (size_t i = 0; i < outputs; ++i) {
        if (needs_buffer(i)) copy<Direction::from_buffer>(item, buffers[i], part(i), columns, rows);
      }
    }
  }
}

}  // namespace fused_sigmoid
