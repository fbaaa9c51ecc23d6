#include "server/export/serving_rules.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/base/error.h"
#include "server/export/module_names.h"

namespace sinq {
namespace {

constexpr int64_t kKernelRows = 64, kKernelCols = 128;

std::string SchemeName(const kernels::QuantParams& params) {
  return absl::StrCat(params.bits, " bits in groups of ", params.group_size,
                      params.symmetric ? ", symmetric" : ", asymmetric");
}

absl::Status CheckMethod(const kernels::QuantParams& requested, Zeros zeros,
                         absl::string_view format) {
  const absl::string_view method = kernels::MethodName(requested.method);
  const auto refuse = [&](absl::string_view what, absl::string_view instead) {
    return CannotHold("method", absl::StrCat("Method ", method, " makes ", what, ", which format ",
                                             format, " does not hold; use ", instead, "."));
  };
  switch (kernels::RoundingOf(requested.method)) {
    case kernels::Rounding::kNf4:
    case kernels::Rounding::kNf3:
      return refuse("codes of a codebook", "method sinq, or format sinq or dense");
    case kernels::Rounding::kHadamard:
      return refuse("transformed weights", "method sinq, or format dense");
    case kernels::Rounding::kHqq:
      if (zeros == Zeros::kReal) break;
      return refuse("real zeros", "method sinq, or format sinq, hqq or dense");
    case kernels::Rounding::kUniform:
      break;
  }
  if (kernels::NeedsActivations(requested.method))
    return refuse("a column scale of its own", "method sinq, or format sinq or dense");
  return absl::OkStatus();
}

}  // namespace

absl::Status CannotHold(absl::string_view field, absl::string_view message) {
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument, message,
                   {{"field", absl::StrCat("recipe.", field)}});
}

absl::Status CheckUniform(const kernels::QuantParams& requested, Zeros zeros,
                          absl::string_view format) {
  if (absl::Status status = CheckMethod(requested, zeros, format); !status.ok()) return status;
  if (requested.profile != kernels::Profile::kDefault && zeros == Zeros::kInteger) {
    return CannotHold("profile",
                      absl::StrCat("Profile upstream gives zeros outside the range of codes, which "
                                   "format ",
                                   format, " does not hold; use profile default, or format sinq."));
  }
  if (requested.tiling != kernels::Tiling::k1D) {
    return CannotHold("tiling", absl::StrCat("Tiling 2D has a column scale for each square, which "
                                             "format ",
                                             format, " does not hold; use tiling 1D."));
  }
  if (requested.group_size < 32) {
    return CannotHold("group_size", absl::StrCat("Readers of format ", format,
                                                 " take groups of 32, 64 or 128; got ",
                                                 requested.group_size, "."));
  }
  return absl::OkStatus();
}

absl::Status CheckWidth(int bits, std::initializer_list<int> held, absl::string_view format,
                        absl::string_view why) {
  if (std::find(held.begin(), held.end(), bits) != held.end()) return absl::OkStatus();
  const int nearest = *std::min_element(held.begin(), held.end(), [&](int a, int b) {
    // Of two that are equally near the wider one, which loses nothing.
    return std::make_pair(std::abs(a - bits), -a) < std::make_pair(std::abs(b - bits), -b);
  });
  return CannotHold(
      "bits", absl::StrCat("Format ", format, " takes ", absl::StrJoin(held, ", "), " bits", why,
                           "; got ", bits, ", the nearest is ", nearest, "."));
}

kernels::AuxStorage AuxOf(absl::string_view compute_dtype) {
  if (compute_dtype == "float32") return kernels::AuxStorage::kF32;
  return compute_dtype == "float16" ? kernels::AuxStorage::kF16 : kernels::AuxStorage::kBf16;
}

std::optional<std::string> KernelRefusal(const QuantizedLayer& layer) {
  if (layer.rows % kKernelRows != 0) {
    return absl::StrCat("out_features = ", layer.rows, " is not a multiple of ", kKernelRows,
                        ", as the kernels of serving engines need");
  }
  if (layer.cols % kKernelCols != 0) {
    return absl::StrCat("in_features = ", layer.cols, " is not a multiple of ", kKernelCols,
                        ", as the kernels of serving engines need");
  }
  const auto planes = kernels::PlanesOf(layer.params, layer.rows, layer.cols);
  if (!planes.ok()) return std::string(planes.status().message());
  return std::nullopt;
}

absl::StatusOr<std::vector<OutputTensor>> PlaneTensors(
    const QuantizedLayer& layer, absl::FunctionRef<absl::string_view(kernels::PlaneKind)> suffix) {
  const auto planes = kernels::PlanesOf(layer.params, layer.rows, layer.cols, DenseDtype(layer));
  if (!planes.ok()) return Annotate(planes.status(), layer.name);
  const std::string path = LayerPath(layer.name);
  std::vector<OutputTensor> tensors;
  for (const kernels::PlaneSpec& plane : *planes) {
    tensors.push_back({absl::StrCat(path, suffix(plane.kind)), std::string(DtypeName(plane.dtype)),
                       plane.shape, plane.size_bytes});
  }
  return tensors;
}

absl::Status CheckFusedModules(const ExportedModel& model) {
  struct Part {
    std::string path, scheme;
  };
  std::map<std::string, Part> first;
  const auto check = [&](absl::string_view name, std::string scheme) -> absl::Status {
    std::string path = LayerPath(name);
    const auto [found, fresh] = first.try_emplace(FusedModule(path), Part{path, scheme});
    if (fresh || found->second.scheme == scheme) return absl::OkStatus();
    return MakeError(
        absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
        absl::StrCat("Engines fuse ", found->second.path, " (", found->second.scheme, ") and ",
                     path, " (", scheme,
                     ") into one module, so that they must be stored alike: quantize both in the "
                     "same way or exclude both."),
        {{"tensor", std::string(name)}});
  };
  for (const QuantizedLayer& layer : model.layers) {
    if (absl::Status status = check(layer.name, SchemeName(layer.params)); !status.ok())
      return status;
  }
  for (const std::string& name : model.dense_linears) {
    if (absl::Status status = check(name, "dense"); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace sinq
