// A CUDA device for tests on machines without one: PyTorch's streams, devices and allocations, and
// the functions of the CUDA driver that csrc/gpu_launch.cpp calls, on the host's memory. Built as
// libcuda.so.1, so that it is found by that name. A kernel's handle says what it computes:
//   number of parameters << 16 | size of the first is wrong << 15 | layout << 12 | kernel << 8 |
//   bytes of an element
// Nothing is computed but float32.
#include <ATen/EmptyTensor.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <mutex>
#include <vector>

namespace {

constexpr int devices = 2;
thread_local c10::DeviceIndex current_device = 0;
thread_local std::array<int64_t, devices> current_stream{};
thread_local int64_t current_context = 0;
int64_t next_error = 0;

std::mutex launches_mutex;
std::vector<std::vector<int64_t>> launches;

struct FakeGuard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = c10::DeviceType::CUDA;
  FakeGuard() = default;
  explicit FakeGuard(c10::DeviceType) {}
  c10::DeviceType type() const override { return static_type; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    current_device = device.index();
    return before;
  }
  c10::Device getDevice() const override { return {static_type, current_device}; }
  void setDevice(c10::Device device) const override { current_device = device.index(); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    current_device = device.index();
  }
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::UNSAFE, device, current_stream[device.index()]);
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::UNSAFE, device, 0);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const c10::Stream before = getStream(stream.device());
    current_stream[stream.device_index()] = stream.id();
    return before;
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override {
    return reinterpret_cast<void*>(1000 * (1 + stream.device_index()) + stream.id());
  }
  c10::DeviceIndex deviceCount() const noexcept override { return devices; }
};
C10_REGISTER_GUARD_IMPL(CUDA, FakeGuard)

struct FakeAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = std::aligned_alloc(512, (bytes / 512 + 1) * 512);
    return {memory, memory, std::free, c10::Device(c10::DeviceType::CUDA, current_device)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};
FakeAllocator allocator;

const c10::DispatchKeySet cuda_keys{c10::DispatchKey::CUDA};

void use(const std::optional<at::Device>& device) {
  if (device && device->has_index()) current_device = device->index();
}

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  const c10::Device before{c10::DeviceType::CUDA, current_device};
  use(device);
  auto result = at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator, cuda_keys,
                                          c10::dtype_or_default(dtype), format);
  current_device = before.index();
  return result;
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device> device, std::optional<bool>) {
  const c10::Device before{c10::DeviceType::CUDA, current_device};
  use(device);
  auto result = at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size),
                                                  C10_AS_INTARRAYREF_SLOW(stride), &allocator,
                                                  cuda_keys, c10::dtype_or_default(dtype));
  current_device = before.index();
  return result;
}

// The same memory, seen as a tensor of another device.
at::Tensor seen_on(const at::Tensor& tensor, c10::Device device) {
  return at::for_blob(tensor.mutable_data_ptr(), tensor.sizes())
      .strides(tensor.strides())
      .deleter([tensor](void*) {})
      .options(tensor.options().device(device).requires_grad(false))
      .target_device(device)
      .make_tensor();
}

at::Tensor to_device(const at::Tensor& tensor, int64_t device) {
  return seen_on(tensor, {c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device)});
}

at::Tensor to_host(const at::Tensor& tensor) { return seen_on(tensor, c10::kCPU); }

void set_device(int64_t device) { current_device = static_cast<c10::DeviceIndex>(device); }

void set_stream(int64_t device, int64_t stream) { current_stream[device] = stream; }

void set_context(int64_t context) { current_context = context; }

void fail_next(int64_t error) { next_error = error; }

std::vector<std::vector<int64_t>> take_launches() {
  const std::lock_guard<std::mutex> lock(launches_mutex);
  return std::exchange(launches, {});
}

double value(double x) { return 1 / (1 + std::exp(-x)); }

// By the numbers of csrc/functions/works.h.
constexpr int64_t sigmoid = 0, with_derivative = 1, backward = 2, from_output = 3,
                  from_derivative = 4, of_kept = 7;
constexpr int64_t of_one = 1, rows = 2;

void compute(int64_t kernel, int64_t layout, void** parameters) {
  const bool is_unary = kernel == sigmoid || kernel == of_kept;
  const int tensors = is_unary ? 2 : 3;
  const auto number = [&](int i) { return *static_cast<int64_t*>(parameters[tensors + i]); };
  auto* const* pointers = reinterpret_cast<float* const* const*>(parameters);
  const auto at = [&](int tensor, int64_t i) -> float& {
    float* const memory = *pointers[tensor];
    if (layout == of_one && tensor == 0) return memory[0];
    if (layout != rows) return memory[i];
    // As the kernel divides, in 32 bits.
    const uint64_t place = static_cast<uint64_t>(i), factor = static_cast<uint64_t>(number(2));
    const int64_t row = ((place * factor >> 32) + place) >> number(3);
    const int64_t column = i - row * number(1);
    return memory[row * number(4 + 2 * tensor) + column * number(5 + 2 * tensor)];
  };
  for (int64_t i = 0; i < number(0); ++i) {
    const double x = at(0, i);
    if (is_unary) {
      at(1, i) = value(x);
      continue;
    }
    if (kernel == with_derivative) {
      at(1, i) = value(x);
      at(2, i) = value(x) * value(-x);
      continue;
    }
    const double kept = at(1, i);
    double factor = std::max((1 - kept) * kept, 1e-12);  // before a loss
    if (kernel == backward) factor = value(kept) * value(-kept);
    if (kernel == from_output) factor = (1 - kept) * kept;
    if (kernel == from_derivative) factor = kept;
    at(2, i) = x * factor;
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  c10::SetAllocator(c10::DeviceType::CUDA, &allocator);
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("as_strided", at::native::as_strided_tensorimpl);
}

TORCH_LIBRARY(fake_cuda, library) {
  library.def("to_device(Tensor tensor, int device) -> Tensor", to_device);
  library.def("to_host(Tensor tensor) -> Tensor", to_host);
  library.def("set_device(int device) -> ()", set_device);
  library.def("set_stream(int device, int stream) -> ()", set_stream);
  library.def("set_context(int context) -> ()", set_context);
  library.def("fail_next(int error) -> ()", fail_next);
  library.def("take_launches() -> int[][]", take_launches);
}

extern "C" {

int cuCtxGetCurrent(void** context) {
  *context = reinterpret_cast<void*>(current_context);
  return 0;
}

int cuCtxSetCurrent(void* context) {
  current_context = reinterpret_cast<int64_t>(context);
  return 0;
}

int cuGetErrorString(int error, const char** text) {
  *text = error == 700 ? "an illegal memory access was encountered" : nullptr;
  return 0;
}

int cuFuncGetParamInfo(void* function, size_t index, size_t* offset, size_t* size) {
  const auto handle = reinterpret_cast<uint64_t>(function);
  // Past the last parameter: an error, which the extension is to take whatever it is.
  if (index >= handle >> 16) return (handle & 0xff) == sizeof(double) ? 999 : 1;
  *offset = 8 * index;
  *size = index == 0 && (handle >> 15 & 1) ? 4 : 8;
  return 0;
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                   void* stream, void** parameters, void** extra) {
  if (next_error != 0) return static_cast<int>(std::exchange(next_error, 0));
  const auto handle = reinterpret_cast<int64_t>(function);
  std::vector<int64_t> seen = {handle,         grid_x,          grid_y,
                               grid_z,         block_x,         block_y,
                               block_z,        shared,          reinterpret_cast<int64_t>(stream),
                               current_device, current_context, extra != nullptr};
  for (int64_t i = 0; i < handle >> 16; ++i) seen.push_back(*static_cast<int64_t*>(parameters[i]));
  if ((handle & 0xff) == sizeof(float)) compute(handle >> 8 & 0xf, handle >> 12 & 7, parameters);
  const std::lock_guard<std::mutex> lock(launches_mutex);
  launches.push_back(std::move(seen));
  return 0;
}

}  // extern "C"
