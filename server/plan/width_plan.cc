#include "server/plan/width_plan.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "server/base/error.h"
#include "server/plan/bit_allocation.h"

namespace sinq {
namespace {

// Headers and side files grow with the widths by a few bytes, so that the first choice under a size
// may be above it; each turn takes off what it was above.
constexpr int kMaxTurns = 16;

// The same for all experts of a layer: "...mlp.experts.17.up_proj" without the number.
std::string WithoutExpert(absl::string_view name) {
  constexpr absl::string_view kExperts = ".experts.";
  const size_t at = name.find(kExperts);
  if (at == absl::string_view::npos) return std::string(name);
  size_t end = at + kExperts.size();
  while (end < name.size() && std::isdigit(static_cast<unsigned char>(name[end]))) ++end;
  return absl::StrCat(name.substr(0, at + kExperts.size()), name.substr(end));
}

absl::StatusOr<std::vector<WidthItem>> ItemsOf(const Plan& plan, const WidthErrors& errors) {
  std::map<std::string, double> alike;  // how many tensors share a name but for the expert's number
  for (const PlannedTensor& tensor : plan.tensors) {
    if (!tensor.candidates.empty()) ++alike[WithoutExpert(tensor.source.name)];
  }
  std::vector<WidthItem> items;
  for (const WidthGroup& group : plan.width_groups) {
    WidthItem& item = items.emplace_back(WidthItem{group.name, {}});
    for (const uint64_t bytes : group.bytes) item.widths.push_back({bytes, 0});
    for (const int index : group.tensors) {
      const std::string& name = plan.tensors[static_cast<size_t>(index)].source.name;
      const auto measured = errors.find(name);
      if (measured == errors.end() || measured->second.size() != item.widths.size()) {
        return absl::DataLossError(absl::StrCat("the measured errors of ", name,
                                                " do not fit the plan; delete the job and submit "
                                                "again"));
      }
      for (size_t i = 0; i < item.widths.size(); ++i)
        item.widths[i].error += measured->second[i] / alike[WithoutExpert(name)];
    }
  }
  return items;
}

uint64_t TakenBytes(const JobSpec& spec, const Plan& plan) {
  return spec.target_size_bytes != 0 ? plan.output_bytes : plan.quantized_bytes;
}

uint64_t TargetBytes(const JobSpec& spec, const Plan& plan) {
  if (spec.target_size_bytes != 0) return spec.target_size_bytes;
  return static_cast<uint64_t>(
      std::floor(spec.target_bits_per_weight * static_cast<double>(plan.quantized_weights) / 8));
}

bool HasTarget(const JobSpec& spec) {
  return spec.target_size_bytes != 0 || spec.target_bits_per_weight != 0;
}

}  // namespace

absl::Status CheckTarget(const JobSpec& spec, const Plan& plan) {
  if (!HasTarget(spec) || TakenBytes(spec, plan) <= TargetBytes(spec, plan))
    return absl::OkStatus();
  const bool by_size = spec.target_size_bytes != 0;
  const std::string what =
      by_size ? absl::StrCat("target_size_bytes is ", spec.target_size_bytes,
                             ", but the smallest possible output has ", plan.output_bytes, " bytes")
              : absl::StrFormat("target_bits_per_weight is %g, but the smallest possible is %.4f",
                                spec.target_bits_per_weight,
                                std::ceil(plan.effective_bits * 1e4) / 1e4);
  return MakeError(
      absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
      absl::StrCat(what, " with the narrowest widths of format ", spec.format,
                   " and everything counted; raise the target."),
      {{"field", by_size ? "recipe.target_size_bytes" : "recipe.target_bits_per_weight"}});
}

absl::StatusOr<Plan> PlanWidths(const JobSpec& spec, const ModelSource& source,
                                const Exporter& exporter, const PlanOptions& options,
                                const WidthErrors& errors) {
  const absl::StatusOr<Plan> open = MakePlan(spec, source, exporter, options);
  if (!open.ok()) return open.status();
  const absl::StatusOr<std::vector<WidthItem>> items = ItemsOf(*open, errors);
  if (!items.ok()) return items.status();
  // The rest of the target is what the widths can have beyond their smallest.
  uint64_t smallest = 0;
  for (const WidthItem& item : *items) smallest += item.widths[CheapestWidth(item)].bytes;
  uint64_t budget = smallest + TargetBytes(spec, *open) - TakenBytes(spec, *open);
  for (int turn = 0; turn < kMaxTurns; ++turn) {
    if (turn + 1 == kMaxTurns) budget = smallest;  // fits, as MakePlan has checked
    const std::vector<size_t> chosen = AllocateWidths(*items, budget);
    ChosenWidths widths;
    for (size_t i = 0; i < chosen.size(); ++i)
      widths[open->width_groups[i].name] = open->width_groups[i].widths[chosen[i]];
    PlanOptions with_widths = options;
    with_widths.widths = &widths;
    absl::StatusOr<Plan> plan = MakePlan(spec, source, exporter, with_widths);
    if (!plan.ok()) return plan;
    const uint64_t taken = TakenBytes(spec, *plan), target = TargetBytes(spec, *plan);
    if (taken <= target) return plan;
    // From what was taken, so that each turn takes less than the one before.
    uint64_t chosen_bytes = 0;
    for (size_t i = 0; i < chosen.size(); ++i) chosen_bytes += (*items)[i].widths[chosen[i]].bytes;
    budget = chosen_bytes - std::min(chosen_bytes, taken - target);
  }
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                   absl::StrCat("No choice of widths meets target_size_bytes ",
                                spec.target_size_bytes, "; raise it by a few kilobytes."),
                   {{"field", "recipe.target_size_bytes"}});
}

}  // namespace sinq
