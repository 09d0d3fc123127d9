// The CUDA driver is reached by the names of its functions, PyTorch's streams and
// devices by c10's interfaces, so that a build without CUDA serves every torch.
#include "gpu_launch.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "operators.h"

namespace fused_sigmoid::gpu {
namespace {

constexpr int success = 0;

// The driver's functions, with CUresult as int and its handles as void*.
struct Driver {
  int (*launch)(void* function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                unsigned shared_bytes, void* stream, void** parameters, void** extra);
  int (*parameter)(void* function, size_t index, size_t* offset, size_t* size);
  int (*get_context)(void** context);
  int (*set_context)(void* context);
  int (*error_text)(int error, const char** text);
};

template <class Function>
bool find(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  return function != nullptr;
}

// Null where there is no driver, or one older than CUDA 12.4.
const Driver* driver() {
  static const Driver* const found = []() -> const Driver* {
    // Triton has loaded it; nothing is loaded here.
    void* library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) return nullptr;
    static Driver functions;
    const bool complete = find(library, "cuLaunchKernel", functions.launch) &&
                          find(library, "cuFuncGetParamInfo", functions.parameter) &&
                          find(library, "cuCtxGetCurrent", functions.get_context) &&
                          find(library, "cuCtxSetCurrent", functions.set_context) &&
                          find(library, "cuGetErrorString", functions.error_text);
    return complete ? &functions : nullptr;
  }();
  return found;
}

// Behind the pointers and the count a kernel has Triton's own parameters, pointers to memory that
// these kernels do not use: 2 in Triton 3.6 to 3.9.
constexpr size_t most_unused = 4;

struct Added {
  Launch launch;
  void* context;
  const Added* before;  // for the same key
};

constexpr size_t dtypes = 4;
constexpr size_t devices = 64;
constexpr size_t widths = size_t{1} << most_operands;
constexpr size_t keys = kernel_count * layout_count * dtypes * widths;

// Read without a lock. What was added is never freed, as a launch may be using it.
std::array<std::array<std::atomic<const Added*>, keys>, devices> added{};
std::array<std::atomic<bool>, devices> added_to_device{};
std::atomic<uint64_t> launch_count{0};

size_t index_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return 0;
    case at::kFloat:
      return 1;
    case at::kHalf:
      return 2;
    default:
      return 3;
  }
}

std::atomic<const Added*>& slot(const Key& key) {
  const size_t layout = static_cast<size_t>(key.layout);
  const size_t kind = (key.kernel.index() * layout_count + layout) * dtypes + index_of(key.dtype);
  return added[key.device][kind * widths + key.wide];
}

bool is_device(c10::DeviceIndex device) {
  return device >= 0 && static_cast<size_t>(device) < devices;
}

// What of a kernel's parameters is not as expected, or "": all are to be of 8 bytes, one after the
// other, and few more than passed. Past the last the driver answers with an error, of whatever
// kind.
std::string unexpected_parameters(const Driver& driver, void* function, size_t passed) {
  for (size_t i = 0; i <= passed + most_unused; ++i) {
    size_t offset = 0, size = 0;
    const int error = driver.parameter(function, i, &offset, &size);
    if (error != success && i >= passed) return "";
    if (error != success || size != sizeof(void*) || offset != i * sizeof(void*)) {
      return "parameter " + std::to_string(i) + " has error " + std::to_string(error) +
             ", offset " + std::to_string(offset) + ", size " + std::to_string(size);
    }
  }
  return "there are more than " + std::to_string(passed + most_unused);
}

// The launch for calls of so many elements, or null.
const Added* find(const Key& key, int64_t count) {
  const Added* found = slot(key).load(std::memory_order_acquire);
  while (found != nullptr && (count < found->launch.fewest || count > found->launch.most)) {
    found = found->before;
  }
  return found;
}

bool is_hooked(const Launch& launch) {
  for (const ssize_t* count : launch.hook_counts) {
    if (__atomic_load_n(count, __ATOMIC_RELAXED) != 0) return true;
  }
  return false;
}

void check(const Driver& driver, int error) {
  if (error == success) return;
  const char* text = nullptr;
  driver.error_text(error, &text);
  TORCH_CHECK(false, "fused_sigmoid: CUDA error at the launch of a kernel: ",
              text == nullptr ? std::to_string(error) : text);
}

constexpr int64_t wide_bytes = 16;

bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % wide_bytes == 0;
}

bool is_expanded_number(const at::Tensor& tensor) {
  return tensor.numel() > 1 && std::all_of(tensor.strides().begin(), tensor.strides().end(),
                                           [](int64_t stride) { return stride == 0; });
}

// One row without an end, longer than any count of elements that is divided into rows.
constexpr int64_t endless = int64_t{1} << 31;

// Divides numbers below 2^31 by a product: n / d = (the high 32 bits of n `factor`, plus n) >>
// `shift`, as in Granlund and Montgomery, "Division by invariant integers using multiplication"
// (1994). A division in a kernel takes five times as many instructions.
struct Divisor {
  int64_t shift = 0;
  int64_t factor;
  explicit Divisor(int64_t d) {
    while ((int64_t{1} << shift) < d) ++shift;
    factor = ((int64_t{1} << 32) * ((int64_t{1} << shift) - d)) / d + 1;
  }
};

// Fills in rows' strides and what can be read wide; false if the tensors do not lie in rows.
bool fill_in_rows(Call& call, Tensors tensors, size_t inputs) {
  const int64_t count = tensors.back()->numel();
  if (count >= endless) return false;
  Dimensions dims = dimensions_of(tensors);
  remove_ones(dims);
  for (size_t i = inputs; i < tensors.size(); ++i) {
    sort_by_memory(dims, i);
    if (!is_nested(dims, i)) return false;
  }
  join(dims, tensors.size());
  if (dims.size() > 2) return false;
  const bool is_one_row = dims.size() < 2;
  const Dimension inner = dims.empty() ? Dimension{1, {}} : dims.back();
  const Dimension outer = is_one_row ? Dimension{1, {}} : dims.front();
  const int64_t columns = is_one_row ? endless : inner.size;
  const int64_t bytes = static_cast<int64_t>(tensors[0]->element_size());
  call.layout = Layout::rows;
  const Divisor divisor(columns);
  call.numbers = {count, columns, divisor.factor, divisor.shift};
  for (size_t i = 0; i < most_operands; ++i) {
    const int64_t row = outer.strides[i], column = inner.strides[i];
    call.numbers.push_back(row);
    call.numbers.push_back(column);
    const bool is_wide = column == 1 && row * bytes % wide_bytes == 0 &&
                         columns * bytes % wide_bytes == 0 && is_aligned(call.pointers[i]);
    if (i < tensors.size()) call.wide |= static_cast<unsigned>(is_wide) << i;
  }
  return true;
}

}  // namespace

bool is_left_to_triton() {
  const char* set = std::getenv("FUSED_SIGMOID_LAUNCH");
  const std::string choice = set == nullptr || *set == '\0' ? "extension" : set;
  if (choice != "extension" && choice != "triton") {
    throw std::invalid_argument("FUSED_SIGMOID_LAUNCH is '" + choice +
                                "'; accepted are 'extension' and 'triton'");
  }
  return choice == "triton";
}

std::optional<Call> call_of(Work work, Tensors tensors) {
  const size_t inputs = inputs_of(work);
  const at::Tensor& last = *tensors.back();
  Call call{Layout::dense, 0, {}, {last.numel()}};
  // Outputs come first: asking for memory to write to moves a tensor that shares its memory lazily.
  for (size_t i = tensors.size(); i-- > 0;) {
    call.pointers[i] = i < inputs ? tensors[i]->const_data_ptr() : tensors[i]->mutable_data_ptr();
  }
  const bool is_one = inputs == 2 && is_expanded_number(*tensors[0]);
  const bool is_dense =
      last.is_non_overlapping_and_dense() &&
      std::all_of(tensors.begin() + is_one, tensors.end(),
                  [&](const at::Tensor* each) { return is_laid_out_alike(*each, last); });
  if (is_dense) {
    call.layout = is_one ? Layout::of_one : Layout::dense;
    for (size_t i = is_one; i < tensors.size(); ++i) {
      call.wide |= static_cast<unsigned>(is_aligned(call.pointers[i])) << i;
    }
  } else if (!fill_in_rows(call, tensors, inputs)) {
    return std::nullopt;
  }
  // The compiler gives a thread the elements that it writes at a time. Inputs may be read by single
  // elements all the same; but were outputs written by single elements and an input read 16 bytes
  // at a time, threads would have to exchange elements through shared memory.
  const unsigned all = (1u << tensors.size()) - 1, of_outputs = all & ~((1u << inputs) - 1);
  if ((call.wide & of_outputs) != of_outputs) call.wide = 0;
  return call;
}

std::string add(const Key& key, Launch launch) {
  if (is_left_to_triton()) return "FUSED_SIGMOID_LAUNCH=triton";
  if (!is_device(key.device)) return "device " + std::to_string(key.device) + " is past the 64th";
  const Driver* cuda = driver();
  if (cuda == nullptr) return "there is no CUDA driver, or one older than CUDA 12.4";
  const std::string unexpected = unexpected_parameters(
      *cuda, launch.function, operands_of(key.kernel.work) + numbers_in(key.layout));
  if (!unexpected.empty()) {
    return "the compiled kernel has other parameters than expected: " + unexpected;
  }
  void* context = nullptr;
  if (cuda->get_context(&context) != success || context == nullptr) return "no current context";
  std::atomic<const Added*>& place = slot(key);
  const Added* before = place.load(std::memory_order_acquire);
  place.store(new Added{std::move(launch), context, before}, std::memory_order_release);
  added_to_device[key.device].store(true, std::memory_order_release);
  return "";
}

bool launch(KernelNumber kernel, Tensors tensors) {
  const c10::Device device = tensors[0]->device();
  if (!is_device(device.index())) return false;
  std::optional<Call> call = call_of(kernel.work, tensors);
  if (!call.has_value()) return false;
  const int64_t count = call->numbers[0];
  const Added* found =
      find({kernel, call->layout, device.index(), tensors[0]->scalar_type(), call->wide}, count);
  if (found == nullptr || is_hooked(found->launch)) return false;
  const int64_t blocks = (count + found->launch.block_size - 1) / found->launch.block_size;
  if (blocks > std::numeric_limits<int32_t>::max()) return false;

  // As many as a kernel may have; the driver reads those that it has.
  const void* no_memory = nullptr;
  std::array<void*, most_operands + numbers_in(Layout::rows) + most_unused> parameters;
  parameters.fill(&no_memory);
  size_t filled = 0;
  for (size_t i = 0; i < tensors.size(); ++i) parameters[filled++] = &call->pointers[i];
  for (int64_t& number : call->numbers) parameters[filled++] = &number;

  const Driver& cuda = *driver();
  const c10::DeviceGuard guard(device);
  // A thread that has only used PyTorch's cached memory so far has no context yet.
  void* context = nullptr;
  check(cuda, cuda.get_context(&context));
  if (context == nullptr) check(cuda, cuda.set_context(found->context));
  const c10::Stream stream = c10::impl::getDeviceGuardImpl(device.type())->getStream(device);
  check(cuda, cuda.launch(found->launch.function, static_cast<unsigned>(blocks), 1, 1,
                          found->launch.threads, 1, 1, 0, stream.native_handle(), parameters.data(),
                          nullptr));
  launch_count.fetch_add(1, std::memory_order_relaxed);
  return true;
}

void forget() {
  for (auto& device : added_to_device) device.store(false, std::memory_order_release);
  for (auto& device : added) {
    for (auto& entry : device) entry.store(nullptr, std::memory_order_release);
  }
}

uint64_t launches() { return launch_count.load(std::memory_order_relaxed); }

bool fits(at::ArrayRef<at::Tensor*> outputs, Tensors inputs) {
  const at::Tensor& like = *inputs.back();
  if (!like.is_cuda() || !is_device(like.get_device()) ||
      !added_to_device[like.get_device()].load(std::memory_order_acquire) ||
      !has_kernel_dtype(like) || like.numel() == 0) {
    return false;
  }
  const auto is_alike = [&](const at::Tensor& each) {
    return each.scalar_type() == like.scalar_type() && each.device() == like.device() &&
           each.sizes() == like.sizes();
  };
  for (const at::Tensor* input : inputs) {
    if (!is_alike(*input)) return false;
  }
  if (!outputs[0]->defined()) return true;
  for (const at::Tensor* output : outputs) {
    if (!is_alike(*output)) return false;
  }
  return may_write(outputs, inputs);
}

bool run(KernelNumber kernel, at::ArrayRef<at::Tensor*> outputs, Tensors inputs) {
  std::array<const at::Tensor*, most_operands> tensors{};
  std::array<at::Tensor, 2> fresh;
  const bool is_fresh = !outputs[0]->defined();
  std::copy(inputs.begin(), inputs.end(), tensors.begin());
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (is_fresh) fresh[i] = empty_output(inputs);
    tensors[inputs.size() + i] = is_fresh ? &fresh[i] : outputs[i];
  }
  if (!launch(kernel, {tensors.data(), inputs.size() + outputs.size()})) return false;
  for (size_t i = 0; i < outputs.size() && is_fresh; ++i) *outputs[i] = std::move(fresh[i]);
  return true;
}

}  // namespace fused_sigmoid::gpu
