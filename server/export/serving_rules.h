// What the formats that serving engines read have in common: which requests they can hold, which
// shapes their kernels take, which layers they fuse.
#ifndef SINQ_SERVER_EXPORT_SERVING_RULES_H_
#define SINQ_SERVER_EXPORT_SERVING_RULES_H_

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/export/exporter.h"

namespace sinq {

// InvalidArgument naming recipe.`field`.
absl::Status CannotHold(absl::string_view field, absl::string_view message);

// What zeros a format holds.
enum class Zeros : uint8_t { kInteger, kReal };

// OK if method, profile, tiling and group size leave plain uniform codes in groups along K, which
// is all that formats other than sinq and dense hold.
absl::Status CheckUniform(const kernels::QuantParams& requested, Zeros zeros,
                          absl::string_view format);
// OK if `bits` is one of `held`; else the nearest of them is named.
absl::Status CheckWidth(int bits, std::initializer_list<int> held, absl::string_view format,
                        absl::string_view why);

// Scales of this storage have the dtype that the model computes in.
kernels::AuxStorage AuxOf(absl::string_view compute_dtype);

// Why the mixed-precision kernels of vLLM and SGLang (Marlin and its kin: N % 64, K % 128) would
// refuse the layer, or PlanesOf does; nothing if both take it.
std::optional<std::string> KernelRefusal(const QuantizedLayer& layer);

// The layer's planes as tensors `path + suffix(kind)`.
absl::StatusOr<std::vector<OutputTensor>> PlaneTensors(
    const QuantizedLayer& layer, absl::FunctionRef<absl::string_view(kernels::PlaneKind)> suffix);

// InvalidArgument naming two layers of one fused module that are not stored alike.
absl::Status CheckFusedModules(const ExportedModel& model);

}  // namespace sinq

#endif  // SINQ_SERVER_EXPORT_SERVING_RULES_H_
