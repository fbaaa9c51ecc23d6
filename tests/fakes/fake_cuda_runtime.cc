#include "tests/fakes/fake_cuda_runtime.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace sinq::kernels {
namespace {

constexpr int kDevicePattern = 0xff;  // NaN as fp32, fp64, F16 and BF16
constexpr int kHostPattern = 0xcd;
constexpr size_t kMaxViolations = 20;

using Lock = std::lock_guard<std::mutex>;

absl::Status OutOfMemory() { return absl::ResourceExhaustedError("fake: out of memory"); }

}  // namespace

FakeCudaRuntime::FakeCudaRuntime(const FakeCudaOptions& options) : options_(options) {}
FakeCudaRuntime::~FakeCudaRuntime() = default;

void FakeCudaRuntime::FailAt(CudaCall call, int nth, absl::Status error) {
  const Lock lock(mutex_);
  orders_[call] = {nth, false, std::move(error)};
}
void FakeCudaRuntime::FailAlways(CudaCall call, absl::Status error) {
  const Lock lock(mutex_);
  orders_[call] = {0, true, std::move(error)};
}
void FakeCudaRuntime::Heal() {
  const Lock lock(mutex_);
  orders_.clear();
}

int FakeCudaRuntime::Calls(CudaCall call) const {
  const Lock lock(mutex_);
  const auto found = calls_.find(call);
  return found == calls_.end() ? 0 : found->second;
}
size_t FakeCudaRuntime::DeviceBytesInUse() const {
  const Lock lock(mutex_);
  size_t total = 0;
  for (const auto& [begin, allocation] : device_) total += allocation.size_bytes;
  return total;
}
size_t FakeCudaRuntime::LiveObjects() const {
  const Lock lock(mutex_);
  return device_.size() + pinned_.size() + streams_.size() + events_.size();
}
std::vector<std::string> FakeCudaRuntime::Violations() const {
  const Lock lock(mutex_);
  return violations_;
}

int FakeCudaRuntime::CurrentDevice() const {
  const auto found = current_device_.find(std::this_thread::get_id());
  return found == current_device_.end() ? 0 : found->second;
}

void FakeCudaRuntime::Violate(std::string what) {
  if (violations_.size() < kMaxViolations) violations_.push_back(std::move(what));
}

void FakeCudaRuntime::Lose(const absl::Status& error) { lost_.emplace(CurrentDevice(), error); }

absl::Status FakeCudaRuntime::Answer(CudaCall call) {
  ++calls_[call];
  if (const auto lost = lost_.find(CurrentDevice()); lost != lost_.end()) return lost->second;
  const auto found = orders_.find(call);
  if (found == orders_.end()) return absl::OkStatus();
  const Order order = found->second;
  if (!order.always && --found->second.countdown > 0) return absl::OkStatus();
  if (!order.always) orders_.erase(found);
  if (absl::IsUnavailable(order.error)) Lose(order.error);
  return order.error;
}

absl::StatusOr<int> FakeCudaRuntime::DeviceCount() { return options_.devices; }

absl::StatusOr<CudaDeviceInfo> FakeCudaRuntime::DeviceInfo(int device) {
  if (device < 0 || device >= options_.devices) return absl::NotFoundError("fake: no such device");
  return CudaDeviceInfo{absl::StrCat("fake ", device), options_.major, options_.minor, 4,
                        options_.device_bytes};
}

absl::Status FakeCudaRuntime::UseDevice(int device) {
  const Lock lock(mutex_);
  current_device_[std::this_thread::get_id()] = device;
  return Answer(CudaCall::kUseDevice);
}

absl::StatusOr<size_t> FakeCudaRuntime::FreeDeviceBytes() {
  const Lock lock(mutex_);
  if (absl::Status status = Answer(CudaCall::kFreeDeviceBytes); !status.ok()) return status;
  size_t free = options_.device_bytes;
  for (const auto& [begin, allocation] : device_) {
    if (allocation.device == CurrentDevice()) free -= allocation.size_bytes;
  }
  return free;
}

void* FakeCudaRuntime::AddAllocation(Allocations& allocations, size_t size_bytes) {
  // As aligned as cudaMalloc's.
  constexpr size_t kAlignment = 256;
  auto memory = std::make_unique_for_overwrite<std::byte[]>(size_bytes + kAlignment);
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory.get());
  std::byte* const begin = memory.get() + (kAlignment - address % kAlignment) % kAlignment;
  allocations[begin] = {std::move(memory), size_bytes, CurrentDevice()};
  return begin;
}

absl::StatusOr<void*> FakeCudaRuntime::AllocateDevice(size_t size_bytes) {
  const Lock lock(mutex_);
  if (absl::Status status = Answer(CudaCall::kAllocateDevice); !status.ok()) return status;
  size_t used = 0;
  for (const auto& [begin, allocation] : device_) {
    if (allocation.device == CurrentDevice()) used += allocation.size_bytes;
  }
  if (size_bytes > options_.device_bytes - used) return OutOfMemory();
  void* const memory = AddAllocation(device_, size_bytes);
  std::memset(memory, kDevicePattern, size_bytes);
  return memory;
}
void FakeCudaRuntime::FreeDevice(void* memory) {
  const Lock lock(mutex_);
  if (device_.erase(static_cast<std::byte*>(memory)) == 0)
    Violate("FreeDevice of what is not allocated");
}

absl::StatusOr<void*> FakeCudaRuntime::AllocatePinned(size_t size_bytes) {
  const Lock lock(mutex_);
  if (absl::Status status = Answer(CudaCall::kAllocatePinned); !status.ok()) return status;
  return AddAllocation(pinned_, size_bytes);
}
void FakeCudaRuntime::FreePinned(void* memory) {
  const Lock lock(mutex_);
  if (pinned_.erase(static_cast<std::byte*>(memory)) == 0)
    Violate("FreePinned of what is not allocated");
}

absl::StatusOr<CudaStream> FakeCudaRuntime::CreateStream() {
  const Lock lock(mutex_);
  if (absl::Status status = Answer(CudaCall::kCreateStream); !status.ok()) return status;
  const CudaStream stream = reinterpret_cast<CudaStream>(next_handle_++);
  streams_[stream].device = CurrentDevice();
  return stream;
}
void FakeCudaRuntime::DestroyStream(CudaStream stream) {
  const Lock lock(mutex_);
  if (streams_.erase(stream) == 0) Violate("DestroyStream of what is not a stream");
}

FakeCudaRuntime::Stream* FakeCudaRuntime::FindStream(CudaStream stream, const char* call) {
  const auto found = streams_.find(stream);
  if (found == streams_.end()) {
    Violate(absl::StrCat(call, " with what is not a stream"));
    return nullptr;
  }
  if (found->second.device != CurrentDevice())
    Violate(absl::StrCat(call, " while another device than the stream's is in use"));
  return &found->second;
}

void FakeCudaRuntime::Pass(Stream& stream, int64_t at) {
  stream.passed = std::max(stream.passed, at);
  const auto later = std::find_if(stream.pending.begin(), stream.pending.end(),
                                  [at](const Pending& pending) { return pending.at > at; });
  for (auto pending = stream.pending.begin(); pending != later; ++pending) {
    const std::vector<std::byte>& bytes = pending->bytes;
    if (pending->deliver_to != nullptr)
      std::memcpy(pending->deliver_to, bytes.data(), bytes.size());
    if (pending->unchanged != nullptr &&
        std::memcmp(pending->unchanged, bytes.data(), bytes.size()) != 0) {
      Violate("host memory was changed while it was copied to the device");
    }
  }
  stream.pending.erase(stream.pending.begin(), later);
}

absl::Status FakeCudaRuntime::Synchronize(CudaStream stream) {
  const Lock lock(mutex_);
  if (absl::Status status = Answer(CudaCall::kSynchronize); !status.ok()) {
    // Nothing of a lost device arrives any more.
    if (Stream* found = FindStream(stream, "Synchronize"); found != nullptr && !lost_.empty())
      found->pending.clear();
    return status;
  }
  Stream* const found = FindStream(stream, "Synchronize");
  if (found == nullptr) return absl::InternalError("fake: no such stream");
  Pass(*found, found->put);
  return absl::OkStatus();
}

absl::StatusOr<CudaEvent> FakeCudaRuntime::CreateEvent() {
  const Lock lock(mutex_);
  if (absl::Status status = Answer(CudaCall::kCreateEvent); !status.ok()) return status;
  const CudaEvent event = reinterpret_cast<CudaEvent>(next_handle_++);
  events_[event] = {};
  return event;
}
void FakeCudaRuntime::DestroyEvent(CudaEvent event) {
  const Lock lock(mutex_);
  if (events_.erase(event) == 0) Violate("DestroyEvent of what is not an event");
}

absl::Status FakeCudaRuntime::Record(CudaEvent event, CudaStream stream) {
  const Lock lock(mutex_);
  if (absl::Status status = Answer(CudaCall::kRecord); !status.ok()) return status;
  Stream* const found = FindStream(stream, "Record");
  if (found == nullptr) return absl::InternalError("fake: no such stream");
  events_[event] = {stream, ++found->put};
  return absl::OkStatus();
}

absl::Status FakeCudaRuntime::SynchronizeEvent(CudaEvent event) {
  const Lock lock(mutex_);
  if (absl::Status status = Answer(CudaCall::kSynchronizeEvent); !status.ok()) return status;
  const Event& found = events_[event];
  if (found.stream == nullptr) return absl::OkStatus();
  if (Stream* stream = FindStream(found.stream, "SynchronizeEvent"); stream != nullptr)
    Pass(*stream, found.at);
  return absl::OkStatus();
}

absl::Status FakeCudaRuntime::WaitFor(CudaStream stream, CudaEvent) {
  const Lock lock(mutex_);
  // Kernels and copies to the device happen at once here, so that the order is kept anyway.
  FindStream(stream, "WaitFor");
  return absl::OkStatus();
}

absl::StatusOr<double> FakeCudaRuntime::SecondsBetween(CudaEvent begin, CudaEvent end) {
  const Lock lock(mutex_);
  if (absl::Status status = Answer(CudaCall::kSecondsBetween); !status.ok()) return status;
  for (const CudaEvent event : {begin, end}) {
    const Event& found = events_[event];
    if (found.stream == nullptr || found.at > streams_[found.stream].passed) {
      Violate("SecondsBetween asks for an event that the stream has not passed");
      return absl::InternalError("fake: event not passed");
    }
  }
  // One microsecond for each piece of work.
  return 1e-6 * static_cast<double>(events_[end].at - events_[begin].at);
}

bool FakeCudaRuntime::Holds(const Allocations& allocations, const void* memory, size_t size_bytes) {
  const std::byte* const begin = static_cast<const std::byte*>(memory);
  const auto after = allocations.upper_bound(begin);
  if (after == allocations.begin()) return false;
  const auto& [base, allocation] = *std::prev(after);
  const size_t offset = static_cast<size_t>(begin - base);
  return offset <= allocation.size_bytes && size_bytes <= allocation.size_bytes - offset;
}

void FakeCudaRuntime::CopyRow(void* to, const void* from, size_t size_bytes, Stream& stream) {
  if (!Holds(device_, to, size_bytes)) return Violate("a copy to the device leaves its allocation");
  if (!Holds(pinned_, from, size_bytes))
    return Violate("a copy to the device comes from memory that is not page-locked");
  std::memcpy(to, from, size_bytes);
  const std::byte* const source = static_cast<const std::byte*>(from);
  stream.pending.push_back({++stream.put, nullptr, source, {source, source + size_bytes}});
}

absl::Status FakeCudaRuntime::CopyToDevice(void* to, const void* from, size_t size_bytes,
                                           CudaStream stream) {
  return CopyToDevice2D({to, size_bytes, from, size_bytes, size_bytes, 1}, stream);
}

absl::Status FakeCudaRuntime::CopyToDevice2D(const CudaCopy2D& copy, CudaStream stream) {
  const Lock lock(mutex_);
  if (absl::Status status = Answer(CudaCall::kCopyToDevice); !status.ok()) return status;
  Stream* const found = FindStream(stream, "CopyToDevice");
  if (found == nullptr) return absl::InternalError("fake: no such stream");
  for (size_t row = 0; row < copy.rows; ++row) {
    CopyRow(static_cast<std::byte*>(copy.to) + row * copy.to_pitch_bytes,
            static_cast<const std::byte*>(copy.from) + row * copy.from_pitch_bytes, copy.row_bytes,
            *found);
  }
  return absl::OkStatus();
}

absl::Status FakeCudaRuntime::CopyToHost(void* to, const void* from, size_t size_bytes,
                                         CudaStream stream) {
  const Lock lock(mutex_);
  if (absl::Status status = Answer(CudaCall::kCopyToHost); !status.ok()) return status;
  Stream* const found = FindStream(stream, "CopyToHost");
  if (found == nullptr) return absl::InternalError("fake: no such stream");
  if (!Holds(device_, from, size_bytes)) {
    Violate("a copy to the host leaves its device allocation");
    return absl::OkStatus();
  }
  if (!Holds(pinned_, to, size_bytes)) {
    Violate("a copy to the host goes to memory that is not page-locked");
    return absl::OkStatus();
  }
  const std::byte* const source = static_cast<const std::byte*>(from);
  std::byte* const target = static_cast<std::byte*>(to);
  found->pending.push_back({++found->put, target, nullptr, {source, source + size_bytes}});
  std::memset(target, kHostPattern, size_bytes);
  return absl::OkStatus();
}

absl::Status FakeCudaRuntime::SetBytes(void* memory, int value, size_t size_bytes,
                                       CudaStream stream) {
  const Lock lock(mutex_);
  if (absl::Status status = Answer(CudaCall::kSetBytes); !status.ok()) return status;
  FindStream(stream, "SetBytes");
  if (!Holds(device_, memory, size_bytes)) {
    Violate("SetBytes leaves its allocation");
    return absl::OkStatus();
  }
  std::memset(memory, value, size_bytes);
  return absl::OkStatus();
}

absl::Status FakeCudaRuntime::CheckLaunch(int cuda_error, const char* step) {
  const Lock lock(mutex_);
  if (absl::Status status = Answer(CudaCall::kLaunch); !status.ok()) return status;
  if (cuda_error == 0) return absl::OkStatus();
  const absl::Status status =
      absl::UnavailableError(absl::StrCat("fake: ", step, " ended with error ", cuda_error));
  Lose(status);
  return status;
}

}  // namespace sinq::kernels
