// A libFuzzer target: the bytes choose dtype, work, length, placement, stride, aliasing and the
// bits of every element, of a function's kernel or one of the loss. Each instruction set runs the
// same call; results are compared with the formula and bit by bit with each other, and nothing
// outside the outputs may be touched.
#include <fuzzer/FuzzedDataProvider.h>

#include "loss_trial.h"
#include "trial.h"

namespace fused_sigmoid::trial {
namespace {

constexpr int64_t longest = 1100;  // past two blocks of the strided loop
constexpr int widest_stride = 9;   // in elements, either way
constexpr size_t largest_span = longest * widest_stride * 8;

struct Fuzzer {
  std::vector<const KernelTable*> tables = runnable_tables();
  Trial trial{largest_span};
  LossTrial loss_trial{longest * sizeof(double)};
  std::vector<char> inputs[loss_inputs], results[2], expected[2];

  Fuzzer() { print_current_on_death(); }
  ~Fuzzer() {
    std::string sets;
    for (const KernelTable* table : tables)
      sets += std::string(sets.empty() ? "" : " ") + table->instruction_set;
    std::fprintf(
        stderr, "{\"instruction_sets\": \"%s\", \"kernel_executions\": %lld, \"elements\": %lld}\n",
        sets.c_str(), static_cast<long long>(trial.runs() + loss_trial.runs()),
        static_cast<long long>(trial.elements() + loss_trial.elements()));
  }
};

int64_t stride(FuzzedDataProvider& bytes, bool is_output, int64_t count, int item) {
  // Half dense: all operands have to be for the loop that most calls take.
  if (bytes.ConsumeBool()) return item;
  const int multiple = bytes.ConsumeIntegralInRange(-widest_stride, widest_stride);
  return (multiple == 0 && is_output && count > 1 ? 1 : multiple) * item;
}

void fill(FuzzedDataProvider& bytes, std::vector<char>& input, size_t size) {
  input = bytes.ConsumeBytes<char>(size);
  if (input.empty()) input.push_back(0);
  const size_t own = input.size();
  input.resize(size);
  // What is left of the input's bytes repeats, at a length that need not divide the element's.
  for (size_t at = own; at < size; ++at) input[at] = input[at - own];
}

// Of each target its lowest bit, as a number: 0 or 1.
void harden(std::vector<char>& input, const LossCase& tried) {
  const Format& format = tried.format(targets);
  for (int64_t k = 0; k < tried.count; ++k) {
    char* const element = &input[static_cast<size_t>(k * format.bytes)];
    const uint64_t bits = encode(format, element_bits(element, format.bytes) & 1 ? 1 : 0);
    std::memcpy(element, &bits, static_cast<size_t>(format.bytes));
  }
}

void judge(const Case& tried, const Fuzzer& fuzzer) {
  const Format& format = format_of(tried.dtype);
  const Shape shape = shape_of(tried.work);
  for (int64_t k = 0; k < tried.count; ++k) {
    uint64_t elements[2] = {};
    for (int i = 0; i < shape.inputs; ++i) {
      const int64_t from = tried.strides[shape.outputs + i] == 0 ? 0 : k;
      elements[i] =
          element_bits(&fuzzer.inputs[i][static_cast<size_t>(from * format.bytes)], format.bytes);
    }
    for (int o = 0; o < shape.outputs; ++o) {
      const size_t at = static_cast<size_t>(k * format.bytes);
      const uint64_t got = element_bits(&fuzzer.results[o][at], format.bytes);
      if (!right(tried.dtype, tried.work, o, elements, got)) {
        std::fprintf(stderr, "output %d, element %lld: from %#llx, %#llx came %#llx\n", o,
                     static_cast<long long>(k), static_cast<unsigned long long>(elements[0]),
                     static_cast<unsigned long long>(elements[1]),
                     static_cast<unsigned long long>(got));
        fail("a result is outside its bound");
      }
    }
  }
}

void agree(const Format& format, int outputs, const Fuzzer& fuzzer) {
  for (int o = 0; o < outputs; ++o) {
    for (size_t at = 0; at < fuzzer.results[o].size(); at += static_cast<size_t>(format.bytes)) {
      const uint64_t got = element_bits(&fuzzer.results[o][at], format.bytes);
      const uint64_t wanted = element_bits(&fuzzer.expected[o][at], format.bytes);
      if (got != wanted && !(is_nan(format, got) && is_nan(format, wanted))) {
        fail("two instruction sets differ");
      }
    }
  }
}

// Mostly shorter than two rounds of the unrolled loops, where the tails are.
int64_t length(FuzzedDataProvider& bytes) {
  const bool is_long = bytes.ConsumeIntegral<uint8_t>() == 255;
  return bytes.ConsumeIntegralInRange<int64_t>(0, is_long ? longest : 140);
}

Place place(FuzzedDataProvider& bytes) {
  return static_cast<Place>(bytes.ConsumeIntegralInRange(0, 2));
}

void judge(const LossCase& tried, const char* const* inputs, double sum, const Fuzzer& fuzzer) {
  const Format& format = format_of(tried.dtype);
  ExactSum exact;
  for (int64_t k = 0; k < tried.count; ++k) {
    LossElement of = loss_element(tried, inputs, k);
    const auto bits = [&](int output) {
      const auto& results = fuzzer.results[output - loss_inputs];
      return element_bits(&results[static_cast<size_t>(k * format.bytes)], format.bytes);
    };
    if (tried.work.writes_gradients) judge_loss(tried, of, gradients, bits(gradients));
    of.scale = 1;
    if (tried.work.writes_losses) judge_loss(tried, of, losses, bits(losses));
    exact.add(ExactSum(format, of));
  }
  if (!tried.work.writes_losses && !exact.right(sum, tried.count)) {
    fail("a sum of losses is outside its bound");
  }
}

void try_loss(FuzzedDataProvider& bytes, Fuzzer& fuzzer) {
  LossCase tried{};
  tried.dtype = static_cast<Dtype>(bytes.ConsumeIntegralInRange<size_t>(0, dtype_count - 1));
  tried.work = loss_work(bytes.ConsumeIntegralInRange<size_t>(0, loss_work_count - 1));
  tried.scale = bytes.ConsumeBool() ? 1 : 1.0 / 3;
  tried.count = length(bytes);
  for (int i = 0; i < loss_operands; ++i) {
    tried.places[i] = place(bytes);
    tried.misalignments[i] = bytes.ConsumeIntegralInRange(0, 63);
  }
  const bool is_hard = bytes.ConsumeBool();
  const char* inputs[loss_inputs];
  for (int i = 0; i < loss_inputs; ++i) {
    fill(bytes, fuzzer.inputs[i], static_cast<size_t>(tried.bytes(i)));
    if (i == targets && is_hard) harden(fuzzer.inputs[i], tried);
    inputs[i] = fuzzer.inputs[i].data();
  }
  for (const KernelTable* table : fuzzer.tables) {
    tried.table = table;
    const double sum = fuzzer.loss_trial.run(tried, inputs, fuzzer.results);
    judge(tried, inputs, sum, fuzzer);
    const bool is_first = table == fuzzer.tables.front();
    for (int o = 0; o < 2; ++o) {
      if (!tried.has(loss_inputs + o)) fuzzer.results[o].clear();
      if (is_first) fuzzer.expected[o] = fuzzer.results[o];
    }
    if (!is_first) agree(format_of(tried.dtype), 2, fuzzer);
  }
}

void try_function(FuzzedDataProvider& bytes, Fuzzer& fuzzer) {
  Case tried{};
  tried.dtype = static_cast<Dtype>(bytes.ConsumeIntegralInRange<size_t>(0, dtype_count - 1));
  tried.work = static_cast<Work>(bytes.ConsumeIntegralInRange<size_t>(0, work_count - 1));
  const Shape shape = shape_of(tried.work);
  const int item = format_of(tried.dtype).bytes;
  tried.count = length(bytes);
  for (int i = 0; i < shape.outputs + shape.inputs; ++i) {
    tried.strides[i] = stride(bytes, i < shape.outputs, tried.count, item);
    tried.places[i] = place(bytes);
    tried.misalignments[i] = bytes.ConsumeIntegralInRange(0, 63);
  }
  if (bytes.ConsumeBool()) {
    tried.aliased_output = bytes.ConsumeIntegralInRange(0, shape.outputs - 1);
    tried.aliased_input = bytes.ConsumeIntegralInRange(0, shape.inputs - 1);
    int64_t& shared = tried.strides[shape.outputs + tried.aliased_input];
    if (shared == 0 && tried.count > 1) shared = item;
    tried.strides[tried.aliased_output] = shared;
  }
  const char* inputs[2];
  for (int i = 0; i < 2; ++i) {
    fill(bytes, fuzzer.inputs[i], static_cast<size_t>(std::max<int64_t>(tried.count, 1) * item));
    inputs[i] = fuzzer.inputs[i].data();
  }
  for (const KernelTable* table : fuzzer.tables) {
    tried.table = table;
    fuzzer.trial.run(tried, inputs, fuzzer.results);
    if (table != fuzzer.tables.front()) {
      agree(format_of(tried.dtype), shape.outputs, fuzzer);
      continue;
    }
    judge(tried, fuzzer);
    for (int o = 0; o < 2; ++o) fuzzer.expected[o] = fuzzer.results[o];
  }
}

}  // namespace
}  // namespace fused_sigmoid::trial

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fused_sigmoid::trial;
  static Fuzzer fuzzer;
  FuzzedDataProvider bytes(data, size);
  if (bytes.ConsumeBool()) {
    try_loss(bytes, fuzzer);
  } else {
    try_function(bytes, fuzzer);
  }
  return 0;
}
