// Every kernel of the loss of every instruction set over every length from 0 to 257 and around a
// block's, at every misalignment from 0 to 63 bytes, and flush with a guard page before and behind.
#pragma once

#include <random>
#include <vector>

#include "loss_trial.h"

namespace fused_sigmoid::trial {

constexpr int64_t longest_of_loss = 257;
// The loss goes to the kernels in blocks of 1024 elements.
constexpr int64_t around_a_block[] = {1023, 1024, 1025, 1300};
constexpr int64_t loss_pool_size = 1300;
constexpr double scales[] = {1, 1.0 / 3};

// Elements, and what the kernels make of them: judged when first seen, then the same bits for all.
struct LossPool {
  Dtype dtype;
  std::vector<char> inputs[loss_inputs];
  // By whether there are weights, the output, and the scale, which a loss is not multiplied by.
  std::vector<uint64_t> accepted[2][2][2];
  std::vector<bool> seen[2][2][2];
  std::vector<LossElement> elements[2];
  std::vector<ExactSum> sums[2];

  explicit LossPool(Dtype of) : dtype(of) {
    std::mt19937_64 random(static_cast<uint64_t>(of) + 1);
    for (int64_t k = 0; k < loss_pool_size; ++k) {
      append(logits, logit_bits(k, random));
      append(targets, encode(format(targets), target(k, random)));
      for (int operand : {weights, pos_weights}) {
        const double weight = k % 11 == operand ? 0 : 0.125 + uniform(random) * 4;
        append(operand, encode(format(operand), weight));
      }
    }
    for (int weighted = 0; weighted < 2; ++weighted) {
      const LossCase tried = unplaced({weighted != 0, true, true});
      const char* pointers[loss_inputs];
      for (int i = 0; i < loss_inputs; ++i) pointers[i] = inputs[i].data();
      for (int64_t k = 0; k < loss_pool_size; ++k) {
        elements[weighted].push_back(loss_element(tried, pointers, k));
        sums[weighted].emplace_back(format_of(dtype), elements[weighted].back());
      }
      for (auto& outputs : accepted[weighted]) {
        for (auto& bits : outputs) bits.assign(loss_pool_size, 0);
      }
      for (auto& outputs : seen[weighted]) {
        for (auto& flags : outputs) flags.assign(loss_pool_size, false);
      }
    }
  }

  const Format& format(int operand) const { return unplaced({}).format(operand); }
  LossCase unplaced(LossWork work) const { return {nullptr, dtype, work, 0, 1, {}, {}}; }

  // From element `start` of the pool.
  void check(const LossCase& tried, int64_t start, const std::vector<char>* results, double sum) {
    if (tried.work.writes_losses) check_output(tried, start, losses, results[0]);
    if (tried.work.writes_gradients) check_output(tried, start, gradients, results[1]);
    if (tried.work.writes_losses) return;
    ExactSum exact;
    for (int64_t k = start; k < start + tried.count; ++k) {
      exact.add(sums[tried.work.is_weighted][static_cast<size_t>(k)]);
    }
    if (!exact.right(sum, tried.count)) fail("a sum of losses is outside its bound");
  }

 private:
  static double uniform(std::mt19937_64& random) {
    return std::uniform_real_distribution<double>()(random);
  }

  void append(int operand, uint64_t bits) {
    const char* const from = reinterpret_cast<const char*>(&bits);
    inputs[operand].insert(inputs[operand].end(), from, from + format(operand).bytes);
  }

  // Any bits stand in the first quarter alone: beside a large number a sum shows nothing.
  uint64_t logit_bits(int64_t k, std::mt19937_64& random) const {
    if (k < loss_pool_size / 4 && k % 4 == 0) return random();
    const double reach = dtype == Dtype::float64 ? 750 : 110;
    const double number = k % 4 == 1 ? (2 * uniform(random) - 1) * reach
                                     : std::normal_distribution<double>(0, 4)(random);
    return encode(format(logits), number);
  }

  static double target(int64_t k, std::mt19937_64& random) {
    if (k % 6 < 4) return static_cast<double>(k % 2);
    if (k < loss_pool_size / 4 && k % 6 == 4) return std::normal_distribution<double>(0, 2)(random);
    return uniform(random);
  }

  void check_output(const LossCase& tried, int64_t start, int output,
                    const std::vector<char>& results) {
    const size_t weighted = tried.work.is_weighted, which = output == gradients ? 1 : 0;
    const size_t scaled = output == gradients && tried.scale != 1 ? 1 : 0;
    auto& known = accepted[weighted][which][scaled];
    auto& judged = seen[weighted][which][scaled];
    const Format& format = format_of(dtype);
    for (int64_t k = 0; k < tried.count; ++k) {
      const size_t at = static_cast<size_t>(start + k);
      const uint64_t got =
          element_bits(&results[static_cast<size_t>(k * format.bytes)], format.bytes);
      if (judged[at] && known[at] == got) continue;
      if (judged[at] && is_nan(format, known[at]) && is_nan(format, got)) continue;
      if (judged[at]) fail("the bits depend on the instruction set or the placement");
      LossElement of = elements[weighted][at];
      of.scale = output == gradients ? tried.scale : 1;
      judge_loss(tried, of, output, got);
      known[at] = got;
      judged[at] = true;
    }
  }
};

class LossSweep {
 public:
  // Of so many trials one is run, chosen at random.
  explicit LossSweep(uint32_t one_in) : one_in_(one_in) {}

  void kernel(const KernelTable* table, LossPool& pool, LossWork work) {
    LossCase tried = pool.unplaced(work);
    tried.table = table;
    for (int64_t count = 0; count <= longest_of_loss; ++count) {
      tried.count = count;
      // Each operand flush with the page before it or the one behind it.
      for (int sides = 0; sides < 1 << loss_operands;
           sides += 1 + static_cast<int>(random_() % 8)) {
        for (int i = 0; i < loss_operands; ++i) {
          tried.places[i] = sides >> i & 1 ? Place::back : Place::front;
        }
        run(tried, pool);
      }
      // An eighth of the misalignments at each length, and the others at the next.
      for (int64_t misalignment = count % 8; misalignment < 64; misalignment += 8) {
        misaligned(tried, pool, static_cast<int>(misalignment));
      }
    }
    for (int64_t count : around_a_block) {
      tried.count = count;
      for (int repeat = 0; repeat < 8; ++repeat) {
        misaligned(tried, pool, static_cast<int>(random_() % 64));
      }
    }
    // The data of an empty tensor is a null pointer.
    if (table->get(work, pool.dtype)(LossBlock{}, 0) != 0) fail("the sum of nothing is not 0");
  }

  int64_t runs() const { return trial_.runs(); }
  int64_t elements() const { return trial_.elements(); }

 private:
  void misaligned(LossCase& tried, LossPool& pool, int misalignment) {
    for (int i = 0; i < loss_operands; ++i) {
      tried.places[i] = Place::misaligned;
      // The operands' misalignments differ by something else at each length.
      tried.misalignments[i] = static_cast<int>((misalignment + i * (tried.count + 1)) % 64);
    }
    run(tried, pool);
  }

  void run(LossCase& tried, LossPool& pool) {
    if (one_in_ > 1 && random_() % one_in_ != 0) return;
    tried.scale = scales[random_() % 2];
    const int64_t start =
        static_cast<int64_t>(random_() % static_cast<uint64_t>(loss_pool_size - tried.count + 1));
    const char* inputs[loss_inputs];
    for (int i = 0; i < loss_inputs; ++i) {
      inputs[i] = pool.inputs[i].data() + start * pool.format(i).bytes;
    }
    const double sum = trial_.run(tried, inputs, results_);
    pool.check(tried, start, results_, sum);
  }

  LossTrial trial_{loss_pool_size * sizeof(double)};
  std::vector<char> results_[2];
  std::mt19937 random_{1};
  const uint32_t one_in_;
};

}  // namespace fused_sigmoid::trial
