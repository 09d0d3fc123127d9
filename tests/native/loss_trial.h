// One trial of a kernel of the binary cross entropy, as trial.h has them of the others. Includes no
// torch header.
#pragma once

#include <deque>

#include "loss_reference.h"
#include "trial.h"

namespace fused_sigmoid::trial {

enum LossOperand { logits, targets, weights, pos_weights, losses, gradients };
constexpr int loss_inputs = 4, loss_operands = 6;

struct LossCase {
  const KernelTable* table;
  Dtype dtype;
  LossWork work;
  int64_t count;
  double scale;
  Place places[loss_operands];
  int misalignments[loss_operands];

  bool has(int operand) const {
    if (operand == losses) return work.writes_losses;
    if (operand == gradients) return work.writes_gradients;
    return operand < weights || work.is_weighted;
  }
  const Format& format(int operand) const {
    const bool is_weight = operand == weights || operand == pos_weights;
    return format_of(is_weight && dtype != Dtype::float64 ? Dtype::float32 : dtype);
  }
  int64_t bytes(int operand) const { return count * format(operand).bytes; }
};

inline LossCase& current_loss() {
  static LossCase tried{};
  return tried;
}
inline void print_current_loss() {
  const LossCase& tried = current_loss();
  std::fprintf(
      stderr, "in this call: %s, %s, loss, %s%s%s%lld elements", tried.table->instruction_set,
      format_of(tried.dtype).name, tried.work.is_weighted ? "weighted, " : "",
      tried.work.writes_losses ? "writes losses, " : "",
      tried.work.writes_gradients ? "writes gradients, " : "", static_cast<long long>(tried.count));
  for (int i = 0; i < loss_operands; ++i) {
    if (!tried.has(i)) continue;
    constexpr const char* names[] = {"front", "back", "misaligned"};
    std::fprintf(stderr, "; operand %d: %s", i, names[static_cast<int>(tried.places[i])]);
    if (tried.places[i] == Place::misaligned) {
      std::fprintf(stderr, " by %d", tried.misalignments[i]);
    }
  }
  std::fprintf(stderr, "\n");
}

inline LossElement loss_element(const LossCase& tried, const char* const* inputs, int64_t k) {
  const auto number = [&](int operand) -> long double {
    if (!tried.has(operand)) return 1;
    const Format& format = tried.format(operand);
    return decode(format, element_bits(inputs[operand] + k * format.bytes, format.bytes));
  };
  const long double x = number(logits), t = number(targets), w = number(weights);
  return {x, t, w, number(pos_weights), tried.scale, tried.work.is_weighted};
}

// Ends the process if the element that a kernel wrote cannot be right.
inline void judge_loss(const LossCase& tried, const LossElement& of, int output, uint64_t bits) {
  if (!can_be_judged(format_of(tried.dtype), of)) return;
  const ExactTerms exact = output == losses ? exact_loss(of) : exact_loss_gradient(of);
  const long double got = decode(format_of(tried.dtype), bits);
  if (right_loss_number(tried.dtype, of, exact, got)) return;
  std::fprintf(stderr, "%s: from logit %La, target %La, weights %La, %La came %La for %La\n",
               output == losses ? "loss" : "gradient", of.logit, of.target, of.weight,
               of.pos_weight, got, exact.number);
  fail("a loss or its gradient is outside its bound");
}

class LossTrial {
 public:
  // For operands of up to `bytes`.
  explicit LossTrial(size_t bytes) {
    for (int i = 0; i < loss_operands; ++i) memory_.emplace_back(bytes + 4 * 4096);
  }

  // Runs the kernel once. `results` receive the losses and the gradients, if it writes these, and
  // the sum of the losses is returned if it does not.
  double run(const LossCase& tried, const char* const* inputs, std::vector<char>* results) {
    current_loss() = tried;
    print_call = print_current_loss;
    char* data[loss_operands] = {};
    Window windows[loss_operands];
    for (int i = 0; i < loss_operands; ++i) {
      if (tried.has(i)) lay_out(tried, i, inputs, data, windows);
    }
    for (int i = 0; i < loss_operands; ++i) {
      if (tried.has(i)) forbid_all_but(memory_[at(i)], data[i], data[i] + tried.bytes(i));
    }
    const LossBlock block{data[logits], data[targets],   data[weights], data[pos_weights],
                          data[losses], data[gradients], tried.scale};
    const double sum = tried.table->get(tried.work, tried.dtype)(block, tried.count);
    for (const GuardedMemory& memory : memory_) allow_all(memory);
    for (int i = 0; i < loss_operands; ++i) {
      if (tried.has(i)) look_at(tried, i, data[i], windows[i], results);
    }
    ++runs_;
    elements_ += tried.count;
    return sum;
  }

  int64_t runs() const { return runs_; }
  int64_t elements() const { return elements_; }

 private:
  static size_t at(int operand) { return static_cast<size_t>(operand); }

  void lay_out(const LossCase& tried, int i, const char* const* inputs, char** data,
               Window* windows) {
    const int64_t bytes = tried.bytes(i);
    data[i] = placed(memory_[at(i)], tried.places[i], tried.misalignments[i], bytes);
    windows[i] = Window(memory_[at(i)], data[i], data[i] + bytes);
    std::memset(windows[i].begin, Window::canary, windows[i].bytes());
    if (i < loss_inputs) std::memcpy(data[i], inputs[i], static_cast<size_t>(bytes));
    before_[i].assign(windows[i].begin, windows[i].end);
  }

  void look_at(const LossCase& tried, int i, char* data, const Window& window,
               std::vector<char>* results) {
    if (i >= loss_inputs) {
      const size_t bytes = static_cast<size_t>(tried.bytes(i));
      results[i - loss_inputs].assign(data, data + bytes);
      std::memcpy(data, before_[i].data() + (data - window.begin), bytes);
    }
    if (std::memcmp(window.begin, before_[i].data(), window.bytes()) != 0) {
      fail(i < loss_inputs ? "a kernel wrote to an input"
                           : "a kernel wrote outside its outputs' elements");
    }
  }

  std::deque<GuardedMemory> memory_;
  std::vector<char> before_[loss_operands];
  int64_t runs_ = 0, elements_ = 0;
};

}  // namespace fused_sigmoid::trial
