// Rounds column scales, scales and zeros to what the layout stores, writes them, and leaves what a
// reader reconstructs (README.md sections 4, 5 and 8).
#ifndef SINQ_KERNELS_GROUP_STORE_H_
#define SINQ_KERNELS_GROUP_STORE_H_

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/arena.h"
#include "kernels/pack.h"
#include "kernels/plane_set.h"
#include "kernels/quant_params.h"
#include "kernels/tile_ops.h"

namespace sinq::kernels {

// The largest zero grid for the parameters; aux is effective.
ZeroGrid ZeroGridOf(const QuantParams& params);

// Values of one tensor, in storage order.
struct GroupValues {
  absl::Span<float> column;  // t
  absl::Span<float> scale;   // [M]
  absl::Span<float> zero;    // [M]
};

class GroupStore {
 public:
  // `shape.params.aux` is effective.
  GroupStore(const TileOps& ops, const PackShape& shape, const PlaneSet& planes)
      : ops_(ops), shape_(shape), planes_(planes) {}

  // Takes what Store needs besides the planes. `columns`: column scales.
  void Take(Arena& arena, int64_t columns, int64_t groups);
  // InvalidArgument naming the value that the storage cannot hold.
  absl::Status Store(const GroupValues& values);

  // F16 bits by group for PackBlocks; after Store.
  const uint16_t* scale_bits() const { return reinterpret_cast<const uint16_t*>(scale_bytes_); }
  const uint16_t* minimum_bits() const { return reinterpret_cast<const uint16_t*>(zero_bytes_); }

 private:
  const QuantParams& params() const { return shape_.params; }
  bool IsGguf() const;
  bool HoldsColumnScale() const;
  // The plane, or bytes that nobody reads.
  std::byte* Out(PlaneKind kind) const;
  uint8_t* CodesOut(PlaneKind kind) const { return reinterpret_cast<uint8_t*>(Out(kind)); }

  absl::Status StoreNative(const GroupValues& values);
  absl::Status StoreGrids(const GroupValues& values);
  absl::Status StoreForeign(const GroupValues& values);
  absl::Status StoreMinima(const GroupValues& values);

  const TileOps& ops_;
  const PackShape& shape_;
  const PlaneSet& planes_;
  std::byte* unread_ = nullptr;       // kDense: where its planes would be
  std::byte* scale_bytes_ = nullptr;  // layouts of others: rounded bits by group
  std::byte* zero_bytes_ = nullptr;
};

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_GROUP_STORE_H_
