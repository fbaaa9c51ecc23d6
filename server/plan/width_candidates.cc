#include "server/plan/width_candidates.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/base/error.h"
#include "server/export/module_names.h"
#include "server/plan/recipe_rules.h"

namespace sinq {
namespace {

constexpr int kFineGroup = 32;  // worth its scales for 4 bits only: more bits serve better beyond

std::vector<Width> AllWidths(const JobSpec& spec, bool symmetric) {
  std::vector<Width> widths;
  if (spec.format == "gguf") {
    // Blocks of 32 have scales of their own: wider groups take the same bytes.
    for (const int bits : SelectableBits(spec.format, symmetric)) widths.push_back({bits, 32});
    return widths;
  }
  for (const int bits : SelectableBits(spec.format, symmetric)) {
    for (const int group_size : {kFineGroup, 64, 128}) {
      if (group_size != kFineGroup || bits == 4) widths.push_back({bits, group_size});
    }
  }
  return widths;
}

// One group on its way.
class Finder {
 public:
  Finder(const JobSpec& spec, const Exporter& exporter, absl::string_view compute_dtype)
      : spec_(spec), exporter_(exporter), compute_dtype_(compute_dtype) {}

  absl::StatusOr<OpenGroup> Find(std::string name, absl::Span<const OpenTensor* const> tensors) {
    OpenGroup group;
    group.widths.name = std::move(name);
    std::vector<std::map<std::pair<int, int>, Taken>> taken;
    std::vector<Width> common = AllWidths(spec_, tensors.front()->requested.symmetric);
    if (common.empty()) return NothingToChoose(*tensors.front());
    for (const OpenTensor* tensor : tensors) {
      absl::Status why;
      taken.push_back(TakenWidths(*tensor, why));
      if (taken.back().empty()) {
        // Every width is refused: with the first reason, its plan says which.
        if (!why.ok()) return why;
        continue;
      }
      common.erase(std::remove_if(common.begin(), common.end(),
                                  [&](const Width& width) {
                                    return !taken.back().contains({width.bits, width.group_size});
                                  }),
                   common.end());
    }
    for (size_t i = 0; i < tensors.size(); ++i) AddMember(*tensors[i], taken[i], common, group);
    return group;
  }

 private:
  // A rule can make tensors asymmetric where only symmetric ones have several widths.
  absl::Status NothingToChoose(const OpenTensor& tensor) const {
    return MakeError(
        absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
        absl::StrCat("The bits of ", tensor.source->name, " cannot be chosen: format ",
                     spec_.format, tensor.requested.symmetric ? "" : " without symmetric",
                     " has one width only; give bits in its rule."),
        {{"tensor", tensor.source->name}, {"field", "recipe.rules"}});
  }

  struct Taken {
    kernels::QuantParams params;
    uint64_t bytes = 0;
  };

  // `why`: what the exporter says if it cannot adapt any width.
  std::map<std::pair<int, int>, Taken> TakenWidths(const OpenTensor& tensor, absl::Status& why) {
    std::map<std::pair<int, int>, Taken> taken;
    bool adapts = false;
    for (const Width& width : AllWidths(spec_, tensor.requested.symmetric)) {
      if (tensor.group_size != 0 && tensor.group_size != width.group_size) continue;
      kernels::QuantParams requested = tensor.requested;
      requested.bits = width.bits;
      requested.group_size = width.group_size;
      const absl::StatusOr<kernels::QuantParams> params =
          AdaptParams(exporter_, requested, compute_dtype_);
      if (!params.ok()) {
        why = params.status();
        continue;
      }
      adapts = true;
      const QuantizedLayer layer = LayerOf(*tensor.source, *params);
      if (exporter_.Refusal(layer)) continue;
      const std::optional<uint64_t> bytes = BytesOf(layer);
      if (bytes) taken[{width.bits, width.group_size}] = {*params, *bytes};
    }
    if (adapts) why = absl::OkStatus();
    return taken;
  }

  std::optional<uint64_t> BytesOf(const QuantizedLayer& layer) const {
    const absl::StatusOr<std::vector<OutputTensor>> tensors = exporter_.Tensors(layer);
    if (!tensors.ok()) return std::nullopt;
    uint64_t bytes = 0;
    for (const OutputTensor& tensor : *tensors) bytes += tensor.size_bytes;
    for (const ExtraTensor& extra : exporter_.LayerExtras(layer)) bytes += extra.tensor.size_bytes;
    return bytes;
  }

  void AddMember(const OpenTensor& tensor, const std::map<std::pair<int, int>, Taken>& taken,
                 const std::vector<Width>& common, OpenGroup& group) const {
    OpenMember member{tensor.tensor, taken.empty() || common.empty(), {}};
    if (member.is_refused) {
      member.candidates = {FirstParams(tensor)};
    } else {
      group.widths.widths = common;
      group.widths.bytes.resize(common.size());
      group.widths.tensors.push_back(tensor.tensor);
      for (size_t i = 0; i < common.size(); ++i) {
        const Taken& width = taken.at({common[i].bits, common[i].group_size});
        member.candidates.push_back(width.params);
        group.widths.bytes[i] += width.bytes;
      }
    }
    group.members.push_back(std::move(member));
  }

  // For the plan's reason why a refused tensor stays dense.
  kernels::QuantParams FirstParams(const OpenTensor& tensor) const {
    kernels::QuantParams params = tensor.requested;
    params.bits = SelectableBits(spec_.format, params.symmetric).front();
    const absl::StatusOr<kernels::QuantParams> adapted =
        AdaptParams(exporter_, params, compute_dtype_);
    return adapted.ok() ? *adapted : params;
  }

  const JobSpec& spec_;
  const Exporter& exporter_;
  const absl::string_view compute_dtype_;
};

}  // namespace

QuantizedLayer LayerOf(const SourceTensor& source, const kernels::QuantParams& params) {
  return {source.name, source.shape[0], source.shape[1], params, source.dtype};
}

absl::StatusOr<kernels::QuantParams> AdaptParams(const Exporter& exporter,
                                                 const kernels::QuantParams& requested,
                                                 absl::string_view compute_dtype) {
  absl::StatusOr<kernels::QuantParams> params = exporter.Adapt(requested, compute_dtype);
  if (!params.ok()) return params;
  if (absl::Status status = kernels::Validate(*params); !status.ok()) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                     absl::StrCat(status.message(), "."), {{"field", "recipe"}});
  }
  return params;
}

absl::StatusOr<std::vector<OpenGroup>> FindWidths(const JobSpec& spec, const Exporter& exporter,
                                                  absl::string_view compute_dtype,
                                                  absl::Span<const OpenTensor> tensors) {
  std::map<std::string, size_t> index;
  std::vector<std::pair<std::string, std::vector<const OpenTensor*>>> parts;
  for (const OpenTensor& tensor : tensors) {
    const std::string path = LayerPath(tensor.source->name);
    const std::string name = EnginesFuse(spec.format) ? FusedModule(path) : path;
    const auto [found, fresh] = index.try_emplace(name, parts.size());
    if (fresh) parts.push_back({name, {}});
    parts[found->second].second.push_back(&tensor);
  }
  Finder finder(spec, exporter, compute_dtype);
  std::vector<OpenGroup> groups;
  for (auto& [name, members] : parts) {
    absl::StatusOr<OpenGroup> group = finder.Find(std::move(name), members);
    if (!group.ok()) return group.status();
    groups.push_back(*std::move(group));
  }
  return groups;
}

}  // namespace sinq
