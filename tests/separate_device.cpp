// A device for PyTorch with a memory of its own: what it computes, the CPU computes for it.
//
// It stands for a GPU where there is none. Its memory cannot be touched by anything but a copy to or from it (whoever
// tries crashes), tensors of different devices do not go into one operation, and it can be used up. There are two.

#include <ATen/ATen.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <sys/mman.h>
#include <torch/extension.h>

#include <atomic>
#include <cstring>
#include <map>
#include <mutex>

namespace {

constexpr auto kType = c10::DeviceType::PrivateUse1;
constexpr c10::DeviceIndex kDevices = 2;
std::atomic<int64_t> used[kDevices], most_used[kDevices], operations[kDevices];
std::atomic<int64_t> limit{int64_t{1} << 62};
thread_local c10::DeviceIndex current = 0;
std::mutex touching;  // one copy at a time may open a device's memory

struct Block {
  size_t size;
  c10::DeviceIndex device;
};
std::map<void*, Block> blocks;
std::mutex changing;

void release(void* data) {
  if (data == nullptr) return;
  std::lock_guard<std::mutex> lock(changing);
  const auto found = blocks.find(data);
  munmap(data, found->second.size);
  used[found->second.device] -= static_cast<int64_t>(found->second.size);
  blocks.erase(found);
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device device(kType, current);
    if (bytes == 0) return {nullptr, nullptr, &release, device};
    const auto after = used[current] += static_cast<int64_t>(bytes);
    if (after > limit) {
      used[current] -= static_cast<int64_t>(bytes);
      TORCH_CHECK_WITH(OutOfMemoryError, false, "separate:", int(current), " is out of memory");
    }
    if (after > most_used[current]) most_used[current] = after;
    void* data = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK(data != MAP_FAILED, "no address is free");
    std::lock_guard<std::mutex> lock(changing);
    blocks[data] = {bytes, current};
    return {data, data, &release, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void*, const void*, size_t) const override { TORCH_CHECK(false, "not used"); }
};
Memory memory;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return {kType, current}; }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() < kDevices, "there are two devices");
    if (device.index() >= 0) current = device.index();
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.index() >= 0) current = device.index();
  }
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(c10::DeviceIndex device) const override { current = device; }
  bool isPinnedPtr(const void*) const override { return false; }
};

// ---------------------------------------------------------------------------------------------------------- copies
at::Tensor storage_on_cpu(const at::Tensor& tensor) {
  const auto bytes = static_cast<int64_t>(tensor.storage().nbytes());
  auto out = at::empty({bytes}, at::kByte);
  if (bytes == 0) return out;
  void* data = tensor.storage().mutable_data();
  std::lock_guard<std::mutex> lock(touching);
  mprotect(data, bytes, PROT_READ);
  std::memcpy(out.mutable_data_ptr(), data, bytes);
  mprotect(data, bytes, PROT_NONE);
  return out;
}

at::Tensor view_of(const at::Tensor& bytes, const at::Tensor& like) {
  auto out = at::empty({0}, like.options().device(at::kCPU));
  return out.set_(bytes.storage(), like.storage_offset(), like.sizes(), like.strides());
}

at::Tensor on_cpu(const at::Tensor& tensor) { return view_of(storage_on_cpu(tensor), tensor); }

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  const auto source = from.is_cpu() ? from : on_cpu(from);
  if (to.is_cpu()) {
    to.copy_(source);
    return to;
  }
  const auto bytes = storage_on_cpu(to);  // what is between the elements stays
  view_of(bytes, to).copy_(source);
  if (bytes.numel() == 0) return to;
  void* data = to.storage().mutable_data();
  std::lock_guard<std::mutex> lock(touching);
  mprotect(data, bytes.numel(), PROT_READ | PROT_WRITE);
  std::memcpy(data, bytes.data_ptr(), bytes.numel());
  mprotect(data, bytes.numel(), PROT_NONE);
  return to;
}

// ------------------------------------------------------------------------------------------------------ operations
void same_device(const at::Tensor& tensor, std::optional<c10::Device>& device, const std::string& name) {
  if (!tensor.defined() || (tensor.is_cpu() && tensor.dim() == 0)) return;
  TORCH_CHECK(!device || *device == tensor.device(), "Expected all tensors to be on the same device, but found at least ",
              "two devices, ", *device, " and ", tensor.device(), ", in ", name);
  device = tensor.device();
}

void by_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  std::optional<c10::Device> device;
  const auto& name = op.schema().name();
  for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (value.isTensor()) same_device(value.toTensor(), device, name);
    if (value.isTensorList()) {
      for (const at::Tensor& tensor : value.toTensorVector()) same_device(tensor, device, name);
    }
  }
  if (device) operations[device->index()]++;
  at::native::cpu_fallback(op, stack);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> type,
                         std::optional<at::Layout>, std::optional<c10::Device> device, std::optional<bool>) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           type.value_or(at::kFloat));
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                 std::optional<c10::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   type.value_or(at::kFloat), format);
}

const at::Tensor& resized(const at::Tensor& tensor, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  const size_t bytes = tensor.numel() * tensor.element_size();
  if (bytes > tensor.storage().nbytes()) {  // what it held is lost: torch resizes tensors that results go into
    const c10::OptionalDeviceGuard guard(tensor.device());
    tensor.storage().set_data_ptr_noswap(memory.allocate(bytes));
    tensor.storage().set_nbytes(bytes);
  }
  return tensor;
}

at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                       at::IntArrayRef output_padding, int64_t groups) {
  std::optional<c10::Device> device;
  for (const auto& tensor : {x, weight, bias.value_or(at::Tensor())}) same_device(tensor, device, "aten::convolution");
  operations[device->index()]++;
  std::optional<at::Tensor> own;
  if (bias && bias->defined()) own = bias->cpu();
  return at::convolution(x.cpu(), weight.cpu(), own, stride, padding, dilation, transposed, output_padding, groups)
      .to(x.device());
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_cpu>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("_copy_from", TORCH_FN(copy_from));
  m.impl("_copy_from_and_resize", [](const at::Tensor& from, const at::Tensor& to) {
    if (to.sizes() != from.sizes()) resized(to, from.sizes(), std::nullopt);
    return copy_from(from, to, false);
  });
  m.impl("convolution_overrideable", TORCH_FN(convolution));
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("resize_", TORCH_FN(resized));
  m.impl("set_.source_Storage", [](at::Tensor& self, at::Storage source) -> at::Tensor& { return at::native::set_(self, source); });
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(at::native::set_storage_cpu_));
  m.impl("_reshape_alias", [](const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride) {
    return at::native::_reshape_alias(self, size, stride);
  });
}

const bool registered = [] {
  c10::SetAllocator(kType, &memory);
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();

}  // namespace

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("current_device", [] { return int(current); });
  m.def("set_device", [](int device) { current = static_cast<c10::DeviceIndex>(device); });
  m.def("used", [](int device) { return used[device].load(); });
  m.def("most_used", [](int device) { return most_used[device].load(); });
  m.def("operations", [](int device) { return operations[device].load(); });
  m.def("limit", [] { return limit.load(); });
  m.def("set_limit", [](int64_t bytes) { limit = bytes; });
}
