// Hands out aligned pieces of the caller's scratch; with a null base it only counts.
#ifndef SINQ_KERNELS_ARENA_H_
#define SINQ_KERNELS_ARENA_H_

#include <cstddef>
#include <cstdint>

namespace sinq::kernels {

inline constexpr size_t kScratchAlignment = 64;

class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}
  std::byte* Bytes(int64_t count) {
    std::byte* at = base_ == nullptr ? nullptr : base_ + used_;
    const size_t size_bytes = static_cast<size_t>(count);
    used_ += (size_bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
    return at;
  }
  float* Floats(int64_t count) {
    return reinterpret_cast<float*>(Bytes(static_cast<int64_t>(sizeof(float)) * count));
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_ARENA_H_
