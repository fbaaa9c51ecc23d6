// The output arrays of one call, found by kind.
#ifndef SINQ_KERNELS_PLANE_SET_H_
#define SINQ_KERNELS_PLANE_SET_H_

#include <cstddef>
#include <vector>

#include "absl/types/span.h"
#include "kernels/layout.h"

namespace sinq::kernels {

class PlaneSet {
 public:
  PlaneSet(absl::Span<const PlaneSpec> specs, absl::Span<const absl::Span<std::byte>> planes)
      : specs_(specs), planes_(planes) {}

  // Empty if the layout has no such array.
  absl::Span<std::byte> Of(PlaneKind kind) const {
    for (size_t i = 0; i < specs_.size(); ++i) {
      if (specs_[i].kind == kind) return planes_[i];
    }
    return {};
  }
  bool Has(PlaneKind kind) const { return !Of(kind).empty(); }

 private:
  const absl::Span<const PlaneSpec> specs_;
  const absl::Span<const absl::Span<std::byte>> planes_;
};

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_PLANE_SET_H_
