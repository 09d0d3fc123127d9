// See gpu.h. The CUDA driver is reached by the names of its functions, PyTorch's streams and
// devices by c10's interfaces, so that a build without CUDA serves every torch.
#include "gpu.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "ops.h"

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
constexpr size_t most_tensors = 3;

struct Added {
  Launch launch;
  void* context;
};

constexpr size_t dtypes = 4;
constexpr size_t devices = 64;
constexpr size_t alignments = size_t{1} << most_tensors;
constexpr size_t keys = kernels * dtypes * alignments;

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
  const size_t kernel = static_cast<size_t>(key.kernel);
  return added[key.device][(kernel * dtypes + index_of(key.dtype)) * alignments + key.aligned];
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

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

bool same_layout(const at::Tensor& a, const at::Tensor& b) {
  return a.strides() == b.strides() || (a.is_contiguous() && b.is_contiguous());
}

// With the strides that torch.sigmoid gives its result. A contiguous tensor may have any stride
// where it has one element; the result has the usual.
at::Tensor empty_result(const at::Tensor& operand) {
  if (operand.is_contiguous()) return at::empty(operand.sizes(), operand.options());
  return at::empty_like(operand, at::MemoryFormat::Preserve);
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

std::string add(const Key& key, Launch launch) {
  if (is_left_to_triton()) return "FUSED_SIGMOID_LAUNCH=triton";
  if (!is_device(key.device)) return "device " + std::to_string(key.device) + " is past the 64th";
  const Driver* cuda = driver();
  if (cuda == nullptr) return "there is no CUDA driver, or one older than CUDA 12.4";
  const size_t kernel = static_cast<size_t>(key.kernel);
  const std::string unexpected =
      unexpected_parameters(*cuda, launch.function, operands[kernel] + results[kernel] + 1);
  if (!unexpected.empty()) {
    return "the compiled kernel has other parameters than expected: " + unexpected;
  }
  void* context = nullptr;
  if (cuda->get_context(&context) != success || context == nullptr) return "no current context";
  slot(key).store(new Added{std::move(launch), context}, std::memory_order_release);
  added_to_device[key.device].store(true, std::memory_order_release);
  return "";
}

bool launch(Kernel kernel, at::ArrayRef<at::Tensor> tensors) {
  const c10::Device device = tensors[0].device();
  if (!is_device(device.index())) return false;
  std::array<const void*, most_tensors> pointers;
  unsigned aligned = 0;
  // Results first: asking for memory to write to moves a tensor that shares its memory lazily.
  for (size_t i = tensors.size(); i-- > 0;) {
    const bool is_operand = i < operands[static_cast<size_t>(kernel)];
    pointers[i] = is_operand ? tensors[i].const_data_ptr() : tensors[i].mutable_data_ptr();
    aligned |= static_cast<unsigned>(is_aligned(pointers[i])) << i;
  }
  const Added* found = slot({kernel, device.index(), tensors[0].scalar_type(), aligned})
                           .load(std::memory_order_acquire);
  if (found == nullptr || is_hooked(found->launch)) return false;
  int64_t count = tensors.back().numel();
  const int64_t blocks = (count + found->launch.block_size - 1) / found->launch.block_size;
  if (blocks > std::numeric_limits<int32_t>::max()) return false;

  // As many as a kernel may have; the driver reads those that it has.
  const void* no_memory = nullptr;
  std::array<void*, most_tensors + 1 + most_unused> parameters;
  parameters.fill(&no_memory);
  for (size_t i = 0; i < tensors.size(); ++i) parameters[i] = &pointers[i];
  parameters[tensors.size()] = &count;

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

bool fits(const at::Tensor& tensor) {
  return tensor.is_cuda() && is_device(tensor.get_device()) &&
         added_to_device[tensor.get_device()].load(std::memory_order_acquire) && is_plain(tensor) &&
         has_kernel_dtype(tensor) && tensor.is_non_overlapping_and_dense() && tensor.numel() > 0;
}

bool fits(const at::Tensor& tensor, const at::Tensor& other) {
  return fits(tensor) && is_plain(other) && tensor.scalar_type() == other.scalar_type() &&
         tensor.device() == other.device() && tensor.sizes() == other.sizes() &&
         same_layout(tensor, other);
}

bool fits_of_one(const at::Tensor& grad, const at::Tensor& tensor) {
  const auto is_zero = [](int64_t stride) { return stride == 0; };
  return grad.numel() > 1 && std::all_of(grad.strides().begin(), grad.strides().end(), is_zero) &&
         fits(tensor) && is_plain(grad) && grad.scalar_type() == tensor.scalar_type() &&
         grad.device() == tensor.device() && grad.sizes() == tensor.sizes();
}

c10::SmallVector<at::Tensor, 3> run(Kernel kernel, at::ArrayRef<at::Tensor> operands) {
  c10::SmallVector<at::Tensor, 3> tensors(operands.begin(), operands.end());
  for (size_t i = 0; i < results[static_cast<size_t>(kernel)]; ++i) {
    tensors.push_back(empty_result(operands.back()));
  }
  if (!launch(kernel, tensors)) return {};
  tensors.erase(tensors.begin(), tensors.begin() + operands.size());
  return tensors;
}

}  // namespace fused_sigmoid::gpu
