#include "server/export/exporter.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "server/base/error.h"
#include "server/export/export_awq.h"
#include "server/export/export_compressed_tensors.h"
#include "server/export/export_dense.h"
#include "server/export/export_gguf.h"
#include "server/export/export_gptq.h"
#include "server/export/export_hqq.h"
#include "server/export/export_presinq.h"
#include "server/export/export_sinq.h"

namespace sinq {
namespace {

template <class Kind>
std::unique_ptr<Exporter> Make() {
  return std::make_unique<Kind>();
}

struct Format {
  absl::string_view name;
  std::unique_ptr<Exporter> (*make)();
};

constexpr std::array kFormats = {
    Format{"sinq", Make<SinqExporter>},
    Format{"compressed-tensors", Make<CompressedTensorsExporter>},
    Format{"awq", Make<AwqExporter>},
    Format{"gptq", Make<GptqExporter>},
    Format{"hqq", Make<HqqExporter>},
    Format{"dense", Make<DenseExporter>},
    Format{"bf16-presinq", Make<PresinqExporter>},
    Format{"gguf", Make<GgufExporter>},
};

}  // namespace

kernels::PlaneDtype DenseDtype(const QuantizedLayer& layer) {
  if (layer.source_dtype == "F32") return kernels::PlaneDtype::kF32;
  return layer.source_dtype == "F16" ? kernels::PlaneDtype::kF16 : kernels::PlaneDtype::kBf16;
}

absl::string_view DtypeName(kernels::PlaneDtype dtype) {
  switch (dtype) {
    case kernels::PlaneDtype::kU8:
      return "U8";
    case kernels::PlaneDtype::kI32:
      return "I32";
    case kernels::PlaneDtype::kF16:
      return "F16";
    case kernels::PlaneDtype::kBf16:
      return "BF16";
    case kernels::PlaneDtype::kF32:
      return "F32";
  }
  return "";
}

std::string LayerPath(absl::string_view weight_name) {
  return std::string(absl::StripSuffix(weight_name, ".weight"));
}

std::unique_ptr<Exporter> MakeSinqExporter() { return Make<SinqExporter>(); }

std::vector<absl::string_view> WrittenFormats() {
  std::vector<absl::string_view> names;
  for (const Format& format : kFormats) names.push_back(format.name);
  return names;
}

absl::StatusOr<std::unique_ptr<Exporter>> MakeExporter(absl::string_view format) {
  for (const Format& known : kFormats) {
    if (known.name == format) return known.make();
  }
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                   absl::StrCat("format must be one of ", absl::StrJoin(WrittenFormats(), ", "),
                                "; got \"", format.substr(0, 32), "\"."),
                   {{"field", "recipe.format"}});
}

}  // namespace sinq
