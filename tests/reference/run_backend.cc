#include "tests/reference/run_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "absl/strings/str_cat.h"
#include "kernels/half.h"

namespace sinq::kernels {
namespace {

// As many bytes as asked for, aligned as Backend wants them.
class Scratch {
 public:
  explicit Scratch(size_t bytes)
      : bytes_(bytes),
        data_(static_cast<std::byte*>(::operator new (bytes + 1, std::align_val_t{64}))) {
    std::memset(data_, 0xff, bytes);  // NaN: whoever reads before writing is found out
  }
  ~Scratch() { ::operator delete (data_, std::align_val_t{64}); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  absl::Span<std::byte> span() const { return {data_, bytes_}; }

 private:
  const size_t bytes_;
  std::byte* const data_;
};

PlaneDtype DenseDtypeOf(WeightDtype dtype) {
  if (dtype == WeightDtype::kF32) return PlaneDtype::kF32;
  return dtype == WeightDtype::kF16 ? PlaneDtype::kF16 : PlaneDtype::kBf16;
}

bool Same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// Figures that one of the backends does not take are not compared.
bool SameIfBoth(const std::optional<double>& a, const std::optional<double>& b) {
  return !a || !b || Same(*a, *b);
}

std::string StatsDifference(const TensorStats& a, const TensorStats& b) {
  if (!Same(a.relative_error, b.relative_error))
    return absl::StrCat("relative_error ", a.relative_error, " != ", b.relative_error);
  if (!SameIfBoth(a.balanced_error, b.balanced_error))
    return absl::StrCat("balanced_error ", *a.balanced_error, " != ", *b.balanced_error);
  if (!SameIfBoth(a.cosine, b.cosine))
    return absl::StrCat("cosine ", *a.cosine, " != ", *b.cosine);
  if (!SameIfBoth(a.max_abs_error, b.max_abs_error))
    return absl::StrCat("max_abs_error ", *a.max_abs_error, " != ", *b.max_abs_error);
  if (!Same(a.imbalance_before, b.imbalance_before))
    return absl::StrCat("imbalance_before ", a.imbalance_before, " != ", b.imbalance_before);
  if (!Same(a.imbalance_after, b.imbalance_after))
    return absl::StrCat("imbalance_after ", a.imbalance_after, " != ", b.imbalance_after);
  if (a.tiles_by_rounds != b.tiles_by_rounds || !Same(a.mean_rounds, b.mean_rounds)) {
    return absl::StrCat("mean_rounds ", a.mean_rounds, " != ", b.mean_rounds);
  }
  if (!Same(a.kurtosis, b.kurtosis) || a.kurtosis_gate_closed != b.kurtosis_gate_closed) {
    return absl::StrCat("kurtosis ", a.kurtosis, " != ", b.kurtosis);
  }
  return "";
}

}  // namespace

const std::vector<std::byte>& QuantizedPlanes::Plane(PlaneKind kind) const {
  static const std::vector<std::byte> kNone;
  for (size_t p = 0; p < specs.size(); ++p) {
    if (specs[p].kind == kind) return planes[p];
  }
  return kNone;
}

std::vector<float> QuantizedPlanes::F16Plane(PlaneKind kind) const {
  const std::vector<std::byte>& bytes = Plane(kind);
  std::vector<float> values(bytes.size() / 2);
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, &bytes[2 * i], sizeof bits);
    values[i] = F16ToFloat(bits);
  }
  return values;
}

QuantizedPlanes RunBackend(const Backend& backend, const MatrixView& in, const QuantParams& params,
                           ParallelFor parallel_for, size_t scratch_times) {
  QuantizedPlanes out;
  const absl::StatusOr<std::vector<PlaneSpec>> specs =
      PlanesOf(params, in.rows, in.cols, DenseDtypeOf(in.dtype));
  if (!specs.ok()) {
    out.status = specs.status();
    return out;
  }
  out.specs = *specs;
  std::vector<absl::Span<std::byte>> views;
  for (const PlaneSpec& spec : out.specs) out.planes.emplace_back(spec.size_bytes, std::byte{0xa5});
  for (std::vector<std::byte>& plane : out.planes) views.push_back(absl::MakeSpan(plane));
  const Scratch scratch(scratch_times * backend.ScratchBytes(params, in.rows, in.cols));
  out.status = backend.Quantize(
      in, params, scratch.span(), views, parallel_for, [] { return false; }, &out.stats);
  return out;
}

QuantizedPlanes RunBackend(const Backend& backend, const MatrixView& in,
                           const QuantParams& params) {
  return RunBackend(backend, in, params, RunSerially);
}

std::string Difference(const QuantizedPlanes& expected, const QuantizedPlanes& actual) {
  if (expected.status.code() != actual.status.code()) {
    return absl::StrCat("status ", expected.status.ToString(), " != ", actual.status.ToString());
  }
  if (!expected.status.ok()) return "";
  for (size_t p = 0; p < expected.planes.size(); ++p) {
    const std::vector<std::byte>&a = expected.planes[p], &b = actual.planes[p];
    const auto at = std::mismatch(a.begin(), a.end(), b.begin());
    if (at.first == a.end()) continue;
    return absl::StrCat("plane kind ", static_cast<int>(expected.specs[p].kind), " byte ",
                        at.first - a.begin(), ": ", static_cast<int>(*at.first),
                        " != ", static_cast<int>(*at.second));
  }
  return StatsDifference(expected.stats, actual.stats);
}

}  // namespace sinq::kernels
