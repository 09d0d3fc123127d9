// Every kernel of every instruction set over every length from 0 to 257 and around the block of
// the strided loop, at every misalignment from 0 to 63 bytes, flush with a guard page before and
// behind, in place and not, dense, strided and in rows; and streamed past the caches. Every result
// is compared with a computation in long double, and bit by bit with the other instruction sets and
// placements. The kernels of the loss, which know neither strides nor memory that is shared, are
// swept by loss_sweep.h. Prints how much it ran.
#include <random>

#include "loss_sweep.h"
#include "trial.h"

namespace fused_sigmoid::trial {
namespace {

constexpr int64_t longest = 257;
// The strided loop gathers 512 elements at a time.
constexpr int64_t around_blocks[] = {511, 512, 513, 1023, 1024, 1025, 1300};
constexpr int64_t pool_size = 1300;
constexpr int misalignments = 64;
constexpr int stride_multiples[] = {1, 0, 2, 3, 7, -1, -2, -5};
constexpr size_t largest_span = 1300 * 7 * 8;

// Inputs, and what each kernel makes of them: judged against the reference when first seen, then
// the same bits for all.
struct Pool {
  Dtype dtype;
  std::vector<char> inputs[2];
  std::vector<uint64_t> accepted[work_count][2];
  std::vector<bool> seen[work_count][2];

  explicit Pool(Dtype of) : dtype(of) {
    const Format& format = format_of(dtype);
    std::mt19937_64 random(static_cast<uint64_t>(of) + 1);
    std::normal_distribution<double> near(0, 4);
    const double reach = dtype == Dtype::float64 ? 750 : 110;
    std::uniform_real_distribution<double> far(-reach, reach);
    for (auto& input : inputs) {
      input.resize(static_cast<size_t>(pool_size * format.bytes));
      for (int64_t k = 0; k < pool_size; ++k) {
        // A quarter any bits, among them NaN, infinities and subnormals; the rest where the
        // sigmoid bends, and out to where the derivative vanishes.
        const double number = k % 4 == 1 ? far(random) : near(random);
        uint64_t bits = k % 4 == 0 ? random() : encode(format, number);
        std::memcpy(&input[static_cast<size_t>(k * format.bytes)], &bits,
                    static_cast<size_t>(format.bytes));
      }
    }
    for (auto& outputs : accepted) {
      for (auto& bits : outputs) bits.assign(pool_size, 0);
    }
    for (auto& outputs : seen) {
      for (auto& flags : outputs) flags.assign(pool_size, false);
    }
  }

  // From element `start` of the pool; a stride of 0 repeats the first.
  void check(const Case& tried, int64_t start, const std::vector<char>* results) {
    const Format& format = format_of(dtype);
    const Shape shape = shape_of(tried.work);
    bool expanded = false;
    for (int i = 0; i < shape.inputs; ++i) expanded |= tried.strides[shape.outputs + i] == 0;
    for (int o = 0; o < shape.outputs; ++o) {
      auto& known = accepted[static_cast<int>(tried.work)][o];
      auto& judged = seen[static_cast<int>(tried.work)][o];
      for (int64_t k = 0; k < tried.count; ++k) {
        const size_t at = static_cast<size_t>(start + k);
        const uint64_t got =
            element_bits(&results[o][static_cast<size_t>(k * format.bytes)], format.bytes);
        if (!expanded && judged[at] && known[at] == got) continue;
        uint64_t elements[2] = {};
        for (int i = 0; i < shape.inputs; ++i) {
          const bool repeated = tried.strides[shape.outputs + i] == 0;
          const int64_t from = repeated ? start : start + k;
          elements[i] =
              element_bits(&inputs[i][static_cast<size_t>(from * format.bytes)], format.bytes);
        }
        if (!right(dtype, tried.work, o, elements, got)) wrong(o, k, elements, got);
        if (expanded || (judged[at] && is_nan(format, known[at]))) continue;
        if (judged[at]) fail("the bits depend on the instruction set or the placement");
        known[at] = got;
        judged[at] = true;
      }
    }
  }

  [[noreturn]] static void wrong(int output, int64_t k, const uint64_t* elements, uint64_t got) {
    std::fprintf(stderr, "output %d, element %lld: from %#llx, %#llx came %#llx\n", output,
                 static_cast<long long>(k), static_cast<unsigned long long>(elements[0]),
                 static_cast<unsigned long long>(elements[1]),
                 static_cast<unsigned long long>(got));
    fail("a result is outside its bound");
  }
};

class Sweep {
 public:
  // Of so many trials one is run, chosen at random.
  explicit Sweep(uint32_t one_in) : trial_(largest_span), one_in_(one_in) {}

  void kernel(const KernelTable* table, Pool& pool, Work work) {
    const Shape shape = shape_of(work);
    Case tried{};
    tried.table = table;
    tried.dtype = pool.dtype;
    tried.work = work;
    // -1: no output is an input.
    for (int pairing = -1; pairing < shape.outputs * shape.inputs; ++pairing) {
      tried.aliased_output = pairing < 0 ? -1 : pairing / shape.inputs;
      tried.aliased_input = pairing < 0 ? -1 : pairing % shape.inputs;
      dense(tried, pool);
      strided(tried, pool);
      rows(tried, pool);
      tried.row_length = 0;
      streamed(tried, pool);
    }
    nothing(table, pool.dtype, work);
  }

  int64_t runs() const { return trial_.runs(); }
  int64_t elements() const { return trial_.elements(); }

 private:
  void dense(Case& tried, Pool& pool) {
    const int operands = shape_of(tried.work).outputs + shape_of(tried.work).inputs;
    for (int i = 0; i < operands; ++i) tried.strides[i] = format_of(pool.dtype).bytes;
    for (int64_t count = 0; count <= longest; ++count) {
      tried.count = count;
      // Each operand flush with the page before it or the one behind it.
      for (int sides = 0; sides < 1 << operands; ++sides) {
        for (int i = 0; i < operands; ++i) {
          tried.places[i] = sides >> i & 1 ? Place::back : Place::front;
        }
        run(tried, pool);
      }
      for (int misalignment = 0; misalignment < misalignments; ++misalignment) {
        for (int i = 0; i < operands; ++i) {
          tried.places[i] = Place::misaligned;
          // The operands' misalignments differ by something else at each length.
          tried.misalignments[i] =
              static_cast<int>((misalignment + i * (count + 1)) % misalignments);
        }
        run(tried, pool);
      }
    }
  }

  void strided(Case& tried, Pool& pool) {
    const int outputs = shape_of(tried.work).outputs;
    const int operands = outputs + shape_of(tried.work).inputs;
    constexpr int choices = sizeof(stride_multiples) / sizeof(stride_multiples[0]);
    int combinations = 1;
    for (int i = 0; i < operands; ++i) combinations *= choices;
    for (int combination = 1; combination < combinations; ++combination) {
      int rest = combination;
      for (int i = 0; i < operands; ++i, rest /= choices) {
        tried.strides[i] = stride_multiples[rest % choices] * format_of(pool.dtype).bytes;
      }
      if (tried.aliased_output >= 0 &&
          tried.strides[tried.aliased_output] != tried.strides[outputs + tried.aliased_input]) {
        continue;
      }
      bool overlapping = false;
      for (int i = 0; i < outputs; ++i) overlapping |= tried.strides[i] == 0;
      // An output of one element may have any stride.
      for (int64_t count = 0; count <= (overlapping ? 1 : longest); count += step(count)) {
        tried.count = count;
        anywhere(tried, pool);
      }
      if (overlapping) continue;
      // Two of them for each combination of strides.
      for (int i = 0; i < 2; ++i) {
        tried.count = around_blocks[random_() % (sizeof(around_blocks) / sizeof(int64_t))];
        anywhere(tried, pool);
      }
    }
  }

  // Rows that are gathered and rows that are not, of each operand with gaps within and between.
  void rows(Case& tried, Pool& pool) {
    const int outputs = shape_of(tried.work).outputs;
    const int64_t item = format_of(pool.dtype).bytes;
    for (int64_t length : {1, 2, 3, 15, 16, 17, 63, 64, 65, 511, 513}) {
      for (int64_t count : {1, 2, 3, 8, 33, 256, 257, 513, 1300}) {
        if (length * count > pool_size) continue;
        for (int repeat = 0; repeat < 8; ++repeat) {
          tried.row_length = length;
          tried.count = length * count;
          for (size_t i = 0; i < most_operands; ++i) {
            const uint64_t choice = random_();
            tried.strides[i] = item * static_cast<int64_t>(1 + choice % 2);
            tried.row_strides[i] =
                length * tried.strides[i] + item * static_cast<int64_t>(choice / 2 % 4);
          }
          if (tried.aliased_output >= 0) {
            const int input = outputs + tried.aliased_input;
            tried.strides[tried.aliased_output] = tried.strides[input];
            tried.row_strides[tried.aliased_output] = tried.row_strides[input];
          }
          anywhere(tried, pool);
        }
      }
    }
  }

  // Dense operands, in blocks of 2 KiB, whose outputs begin and end anywhere in a line.
  void streamed(Case& tried, Pool& pool) {
    std::fill_n(tried.strides, most_operands, format_of(pool.dtype).bytes);
    tried.is_streamed = true;
    for (int64_t count : {0, 1, 31, 32, 33, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 1300}) {
      tried.count = count;
      for (int repeat = 0; repeat < 64; ++repeat) anywhere(tried, pool);
    }
    tried.is_streamed = false;
  }

  // Other lengths for each combination of strides, the short ones more often.
  int64_t step(int64_t count) {
    return 1 + static_cast<int64_t>(random_() % (count < 34 ? 3 : 48));
  }

  void anywhere(Case& tried, Pool& pool) {
    for (size_t i = 0; i < most_operands; ++i) {
      const uint64_t choice = random_();
      tried.places[i] = static_cast<Place>(choice % 3);
      tried.misalignments[i] = static_cast<int>(choice / 3 % misalignments);
    }
    run(tried, pool);
  }

  // The data of an empty tensor is a null pointer.
  void nothing(const KernelTable* table, Dtype dtype, Work work) {
    char* data[most_operands] = {};
    const Kernel kernel = table->get({Sigmoid_, work}, dtype);
    kernel(data, 0);
    for (int item : {0, format_of(dtype).bytes}) {
      const int64_t stride = item;
      const int64_t strides[2 * most_operands] = {stride, stride, stride, stride, stride, stride};
      run_strided(kernel, work, format_of(dtype).bytes, data, strides, 0, 1);
    }
  }

  void run(const Case& tried, Pool& pool) {
    if (one_in_ > 1 && random_() % one_in_ != 0) return;
    const int64_t start =
        static_cast<int64_t>(random_() % static_cast<uint64_t>(pool_size - tried.count + 1));
    const char* inputs[2];
    for (int i = 0; i < 2; ++i) {
      inputs[i] = pool.inputs[i].data() + start * format_of(pool.dtype).bytes;
    }
    trial_.run(tried, inputs, results_);
    pool.check(tried, start, results_);
  }

  Trial trial_;
  std::vector<char> results_[2];
  std::mt19937 random_{1};
  const uint32_t one_in_;
};

}  // namespace
}  // namespace fused_sigmoid::trial

// The first argument, if any, is how many trials there are to each that is run; those behind it
// name the dtypes, of which all are swept if none is named.
int main(int count, char** arguments) {
  using namespace fused_sigmoid;
  using namespace fused_sigmoid::trial;
  print_current_on_death();
  const uint32_t one_in = count > 1 ? static_cast<uint32_t>(std::atoi(arguments[1])) : 1;
  if (one_in == 0) fail("the first argument is a number from 1 on");
  Sweep sweep(one_in);
  LossSweep loss_sweep(one_in);
  std::string sets;
  const std::vector<const KernelTable*> tables = runnable_tables();
  for (const KernelTable* table : tables)
    sets += (sets.empty() ? "" : " ") + std::string(table->instruction_set);
  for (size_t dtype = 0; dtype < dtype_count; ++dtype) {
    const auto is_it = [&](const char* name) {
      return std::strcmp(name, formats[dtype].name) == 0;
    };
    if (count > 2 && std::none_of(arguments + 2, arguments + count, is_it)) continue;
    LossPool loss_pool(static_cast<Dtype>(dtype));
    for (const KernelTable* table : tables) {
      for (size_t work = 0; work < loss_work_count; ++work) {
        loss_sweep.kernel(table, loss_pool, loss_work(work));
      }
    }
    Pool pool(static_cast<Dtype>(dtype));
    for (const KernelTable* table : tables) {
      for (size_t work = 0; work < work_count; ++work) {
        sweep.kernel(table, pool, static_cast<Work>(work));
      }
    }
  }
  std::printf("{\"instruction_sets\": \"%s\", \"kernel_executions\": %lld, \"elements\": %lld}\n",
              sets.c_str(), static_cast<long long>(sweep.runs() + loss_sweep.runs()),
              static_cast<long long>(sweep.elements() + loss_sweep.elements()));
}
