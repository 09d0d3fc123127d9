// A digest of the bits that each kernel gives, by instruction set, dtype and work: of all patterns
// of float16 and bfloat16, of every 1,021st of float32 and of as many of float64. Two machines that
// print the same compute the same. Every NaN counts as one, since which one comes out is not
// promised and processors differ; and the sums of losses are left out, whose order follows from the
// width of the vectors. Includes no torch header.
#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "loss_trial.h"
#include "trial.h"

namespace fused_sigmoid::trial {
namespace {

constexpr uint64_t step = 1021;
constexpr uint64_t wide_patterns = (uint64_t{1} << 32) / step + 1;
// Each pattern of a half stands beside as many others.
constexpr uint64_t rounds = 16;

uint64_t count_of(const Format& format) { return format.bytes == 2 ? rounds << 16 : wide_patterns; }

// Integers alone make up the operands, so that they are the same on every machine.
uint64_t mixed(uint64_t number) {
  number = (number ^ number >> 30) * 0xbf58476d1ce4e5b9;
  number = (number ^ number >> 27) * 0x94d049bb133111eb;
  return number ^ number >> 31;
}
uint64_t chance(uint64_t operand, uint64_t k) {
  return mixed((k * 8 + operand + 1) * 0x9e3779b97f4a7c15);
}

uint64_t cut(const Format& format, uint64_t bits) {
  return format.bytes == 8 ? bits : bits & ((uint64_t{1} << 8 * format.bytes) - 1);
}
uint64_t power_of_two(const Format& format, int exponent) {
  return static_cast<uint64_t>(format.largest_exponent + exponent) << (format.precision - 1);
}

// Any bits, among them those of a NaN of which every bit is set.
uint64_t any(const Format& format, uint64_t random) {
  return cut(format, random % 64 == 0 ? ~uint64_t{0} : mixed(random));
}
// Of either sign, with a magnitude from 2^-12 up to 2^10.
uint64_t moderate(const Format& format, uint64_t random) {
  const uint64_t lowest = power_of_two(format, -12), behind = power_of_two(format, 10);
  const uint64_t sign = random >> 63 << (8 * format.bytes - 1);
  return sign | (lowest + mixed(random) % (behind - lowest));
}
// From 0 to `most`, both included: positive numbers are in the order of their bits.
uint64_t up_to(uint64_t most, uint64_t random) { return mixed(random) % (most + 1); }

// What the kernels are functions of: x, the output or the derivative; and the logit.
uint64_t argument(const Format& format, uint64_t k) {
  if (format.bytes == 2) return cut(format, k);
  if (format.bytes == 4) return k * step;
  const uint64_t random = chance(0, k);
  if (k % 4 == 0) return any(format, random);
  return k % 4 == 1 ? up_to(power_of_two(format, 0), random) : moderate(format, random);
}
uint64_t gradient(const Format& format, uint64_t k) {
  const uint64_t random = chance(1, k);
  return random >> 32 & 1 ? any(format, random) : moderate(format, random);
}
uint64_t target(const Format& format, uint64_t k) {
  const uint64_t random = chance(2, k), one = power_of_two(format, 0);
  switch (random >> 32 & 7) {
    case 0:
      return any(format, random);
    case 1:
    case 2:
      return up_to(one, random);
    default:
      return random >> 35 & 1 ? one : 0;
  }
}
uint64_t weight(const Format& format, uint64_t operand, uint64_t k) {
  const uint64_t random = chance(operand, k);
  return (random >> 32 & 15) == 0 ? any(format, random) : up_to(power_of_two(format, 2), random);
}

// A block of what the kernels read, and room for what they write.
class Block {
 public:
  explicit Block(Dtype dtype) : dtype_(dtype) {
    for (auto* operand : {&arguments_, &gradients_, &targets_, &weights_, &pos_weights_}) {
      operand->resize(most * sizeof(double));
    }
    for (auto& output : outputs_) output.resize(most * sizeof(double));
  }

  // From pattern number `first` on.
  void fill(uint64_t first, uint64_t count) {
    count_ = count;
    const Format& of_weights = LossCase{nullptr, dtype_, {}, 0, 1, {}, {}}.format(weights);
    for (uint64_t k = 0; k < count; ++k) {
      put(arguments_, format(), k, argument(format(), first + k));
      put(gradients_, format(), k, gradient(format(), first + k));
      put(targets_, format(), k, target(format(), first + k));
      put(weights_, of_weights, k, weight(of_weights, weights, first + k));
      put(pos_weights_, of_weights, k, weight(of_weights, pos_weights, first + k));
    }
  }

  // The digest that goes on with the bits of this block.
  uint64_t digest(const KernelTable& table, Work work, uint64_t digest) {
    char* data[most_operands];
    const size_t outputs = outputs_of(work), inputs = inputs_of(work);
    for (size_t i = 0; i < outputs; ++i) data[i] = outputs_[i].data();
    data[outputs] = gradients_.data();
    data[outputs + inputs - 1] = arguments_.data();
    table.get({Sigmoid_, work}, dtype_)(data, static_cast<int64_t>(count_));
    for (size_t i = 0; i < outputs; ++i) digest = with(outputs_[i], digest);
    return digest;
  }
  uint64_t digest(const KernelTable& table, LossWork work, uint64_t digest) {
    const LossBlock block{
        arguments_.data(),  targets_.data(),    weights_.data(), pos_weights_.data(),
        outputs_[0].data(), outputs_[1].data(), 1.0 / 3};
    table.get(work, dtype_)(block, static_cast<int64_t>(count_));
    if (work.writes_losses) digest = with(outputs_[0], digest);
    if (work.writes_gradients) digest = with(outputs_[1], digest);
    return digest;
  }

  static constexpr uint64_t most = 4096;

 private:
  const Format& format() const { return format_of(dtype_); }

  static void put(std::vector<char>& memory, const Format& format, uint64_t k, uint64_t bits) {
    const size_t bytes = static_cast<size_t>(format.bytes);
    std::memcpy(&memory[k * bytes], &bits, bytes);
  }

  uint64_t with(const std::vector<char>& memory, uint64_t digest) const {
    const uint64_t nan = power_of_two(format(), format().largest_exponent + 1) + 1;
    for (uint64_t k = 0; k < count_; ++k) {
      const size_t at = k * static_cast<size_t>(format().bytes);
      const uint64_t bits = element_bits(&memory[at], format().bytes);
      digest = mixed(digest + (is_nan(format(), bits) ? nan : bits) + 1);
    }
    return digest;
  }

  Dtype dtype_;
  uint64_t count_ = 0;
  std::vector<char> arguments_, gradients_, targets_, weights_, pos_weights_, outputs_[2];
};

std::string name_of(LossWork work) {
  return std::string(work.is_weighted ? "weighted loss" : "loss") +
         (work.writes_losses ? ", writes losses" : "") +
         (work.writes_gradients ? ", writes gradients" : "");
}

// By instruction set, and by dtype and work.
using Digests = std::map<std::string, std::map<std::string, uint64_t>>;

// Returns how many kernels it called.
int64_t add_digests(Dtype dtype, Digests& digests) {
  const Format& format = format_of(dtype);
  const std::vector<const KernelTable*> tables = runnable_tables();
  int64_t executions = 0;
  Block block(dtype);
  for (uint64_t first = 0; first < count_of(format); first += Block::most) {
    block.fill(first, std::min(Block::most, count_of(format) - first));
    for (const KernelTable* table : tables) {
      const auto add = [&](const std::string& name, auto work) {
        uint64_t& digest = digests[table->instruction_set][format.name + (", " + name)];
        digest = block.digest(*table, work, digest);
        ++executions;
      };
      for (size_t work = 0; work < work_count; ++work) {
        add(work_names[work], static_cast<Work>(work));
      }
      for (size_t number = 0; number < loss_work_count; ++number) {
        const LossWork work = loss_work(number);
        if (work.writes_losses || work.writes_gradients) add(name_of(work), work);
      }
    }
  }
  return executions;
}

}  // namespace
}  // namespace fused_sigmoid::trial

// For the dtypes that the arguments name.
int main(int count, char** arguments) {
  using namespace fused_sigmoid;
  using namespace fused_sigmoid::trial;
  Digests digests;
  int64_t executions = 0;
  for (size_t dtype = 0; dtype < dtype_count; ++dtype) {
    const bool is_named = std::any_of(arguments + 1, arguments + count, [&](const char* name) {
      return std::strcmp(name, formats[dtype].name) == 0;
    });
    if (is_named) executions += add_digests(static_cast<Dtype>(dtype), digests);
  }
  std::printf("{\"kernel_executions\": %lld, \"digests\": ", static_cast<long long>(executions));
  const char* between_sets = "{";
  for (const auto& [instruction_set, kernels] : digests) {
    std::printf("%s\"%s\": ", between_sets, instruction_set.c_str());
    between_sets = ", ";
    const char* between = "{";
    for (const auto& [kernel, digest] : kernels) {
      std::printf("%s\"%s\": \"%016llx\"", between, kernel.c_str(),
                  static_cast<unsigned long long>(digest));
      between = ", ";
    }
    std::printf("}");
  }
  std::printf("}}\n");
}
