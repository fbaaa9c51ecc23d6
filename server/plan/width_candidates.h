// Which widths a recipe that leaves the bits open may choose from, and what each would take.
#ifndef SINQ_SERVER_PLAN_WIDTH_CANDIDATES_H_
#define SINQ_SERVER_PLAN_WIDTH_CANDIDATES_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/quant_params.h"
#include "server/export/exporter.h"
#include "server/job/job_spec.h"
#include "server/plan/plan.h"
#include "server/source/model_source.h"

namespace sinq {

QuantizedLayer LayerOf(const SourceTensor& source, const kernels::QuantParams& params);
// As the exporter adapts them, and valid: else InvalidArgument.
absl::StatusOr<kernels::QuantParams> AdaptParams(const Exporter& exporter,
                                                 const kernels::QuantParams& requested,
                                                 absl::string_view compute_dtype);

// A tensor whose width is to be chosen.
struct OpenTensor {
  int tensor = 0;  // into Plan::tensors
  const SourceTensor* source = nullptr;
  kernels::QuantParams requested;  // but for bits and group_size
  int group_size = 0;              // given by a rule; 0: any
};

struct OpenMember {
  int tensor = 0;
  bool is_refused = false;  // the format stores it in none of the widths: it stays dense
  std::vector<kernels::QuantParams> candidates;  // adapted; one if refused
};

struct OpenGroup {
  WidthGroup widths;  // no widths if all members are refused
  std::vector<OpenMember> members;
};

// Groups by what engines fuse for the format, in the order of their first tensor. Widths: those
// of SelectableBits with groups of 64 and 128 weights, and of 32 for 4 bits, as far as the format
// takes them for every member that it takes at all. InvalidArgument if it takes none of them.
absl::StatusOr<std::vector<OpenGroup>> FindWidths(const JobSpec& spec, const Exporter& exporter,
                                                  absl::string_view compute_dtype,
                                                  absl::Span<const OpenTensor> tensors);

}  // namespace sinq

#endif  // SINQ_SERVER_PLAN_WIDTH_CANDIDATES_H_
