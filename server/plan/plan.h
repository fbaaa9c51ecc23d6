// A plan: every tensor's action, every output byte range, peak memory and disk, before any work.
// The job runs exactly it.
#ifndef SINQ_SERVER_PLAN_PLAN_H_
#define SINQ_SERVER_PLAN_PLAN_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/quant_params.h"
#include "server/base/file_system.h"
#include "server/export/exporter.h"
#include "server/export/gguf_template.h"
#include "server/job/job_spec.h"
#include "server/plan/fold_pair.h"
#include "server/source/activation_file.h"
#include "server/source/model_source.h"

namespace sinq {

// kFold: stays in a storage dtype, but is multiplied by folded column scales or freed of FP8 block
// scales.
enum class TensorAction : uint8_t { kQuantize, kCopy, kDrop, kFold };
absl::string_view ActionName(TensorAction action);  // "quantize", "copy", "drop", "fold"

// Units inside a phase are independent; a phase starts when all of the one before is durable.
// kWidths comes before the plan that has the other two: it is of the open plan.
enum class Phase : uint8_t { kWidths, kMeasure, kQuantize };

// Where one output tensor goes.
struct OutputRange {
  OutputTensor tensor;
  int file_index = 0;   // into Plan::files
  uint64_t offset = 0;  // from the start of the file
};

struct PlannedTensor {
  SourceTensor source;
  TensorAction action = TensorAction::kCopy;
  std::string reason;           // a sentence for people, always set
  kernels::QuantParams params;  // kQuantize: adapted to the format, effective group size and aux
  int scale_tensor = -1;  // kQuantize, kFold of FP8: index of its weight_scale_inv in Plan::tensors
  std::vector<OutputRange> outputs;  // kQuantize: one per plane; kCopy, kFold: one; kDrop: none
  // kQuantize by a method that needs them.
  std::optional<ActivationTensor> activations;
  // What its bits and group size may be, in the order of its width group; adapted, with effective
  // group sizes. Empty: nothing is to be chosen.
  std::vector<kernels::QuantParams> candidates;
  bool measured = false;  // a unit of Phase::kMeasure, too
  // Indexes into Plan::fold.pairs, -1 for none: whose scale divides the columns, whose scale
  // multiplies the rows (of a vector: its elements).
  int fold_columns = -1, fold_rows = -1;
  bool from_template = false;  // kCopy: `source` lies in the GGUF template
  // Above 0: the output has the rows of each of so many heads in the order that SourceRow tells.
  int64_t alternating_heads = 0;

  // The row of the source that is row `row` of the output: with alternating heads those of the
  // first half of a head take turns with those of the second.
  int64_t SourceRow(int64_t row) const {
    if (alternating_heads == 0) return row;
    const int64_t head_rows = source.shape[0] / alternating_heads, i = row % head_rows;
    return row - i + i % 2 * (head_rows / 2) + i / 2;
  }
  bool is_folded() const { return fold_columns >= 0 || fold_rows >= 0; }
};

bool HasUnit(Phase phase, const PlannedTensor& tensor);
// Key of a finished unit in the job store.
std::string UnitName(Phase phase, const PlannedTensor& tensor);

// A range of a file that no tensor has: zeros, as a new file has them.
struct PlannedPadding {
  uint64_t offset = 0, size_bytes = 0;
};

struct PlannedFile {
  std::string name;  // "model-00001-of-00002.safetensors"
  uint64_t size_bytes = 0;
  std::string header;  // 8-byte length, JSON, padding: the first bytes of the file
  std::vector<PlannedPadding> padding = {};
};

struct PlannedExtra {
  OutputRange range;
  std::shared_ptr<const std::string> content;  // layers of one shape share it
};

// Bits and group size.
struct Width {
  int bits = 0, group_size = 0;

  friend bool operator==(const Width&, const Width&) = default;
};

// Tensors that get the same width, because engines make one module of them: or a single one.
struct WidthGroup {
  std::string name;
  std::vector<int> tensors;     // into Plan::tensors
  std::vector<Width> widths;    // at least one
  std::vector<uint64_t> bytes;  // of the whole group, by width, everything counted
};

// The GGUF file that the output is made from, too.
struct PlannedTemplate {
  uint64_t size_bytes = 0;
  std::string header_sha256;  // hex: of the metadata and of where every tensor lies
};

struct Plan {
  std::vector<PlannedTensor> tensors;  // in source order: by file, then offset; then a template's
  std::vector<PlannedFile> files;      // shards
  std::vector<PlannedExtra> extras;
  std::vector<SideFile> side_files;   // config.json, index, sidecar: written whole
  std::vector<AuxFile> copied_files;  // tokenizer and others
  FoldPlan fold;
  std::optional<PlannedTemplate> gguf_template;
  std::vector<WidthGroup> width_groups;  // of a recipe that leaves the bits open
  uint64_t source_bytes = 0;             // tensor bytes of the source, each read once ...
  uint64_t measured_bytes = 0;           // ... and what memory cannot keep of these once more
  uint64_t output_bytes = 0;             // shards + side files + copied files
  uint64_t peak_memory_bytes =
      0;  // upper bound of buffers at once for the given budget and workers
  uint64_t disk_bytes = 0;
  uint64_t quantized_weights = 0;
  uint64_t quantized_bytes = 0;  // that they take: planes, and constant tensors of the format
  double effective_bits = 0;     // of these bytes, per quantized weight
  std::string digest;            // hex SHA-256 over all of the above: same plan, same digest
};

using ChosenWidths = std::map<std::string, Width>;  // by WidthGroup::name

struct PlanOptions {
  uint64_t memory_budget_bytes = 0;
  int workers = 1;
  // Of a recipe that names them; null otherwise. Outlives the call.
  const ActivationFile* activations = nullptr;
  // For a recipe that leaves the bits open: one width of each group. Null: each gets its smallest,
  // and a target below that is InvalidArgument. Outlives the call.
  const ChosenWidths* widths = nullptr;
  // For an exporter that patches one; null otherwise. Outlives the call.
  const GgufTemplate* gguf_template = nullptr;
};

// What a specification names on the server's disk.
struct PlanInputs {
  std::unique_ptr<ModelSource> source;
  std::unique_ptr<Exporter> exporter;
  std::unique_ptr<ActivationFile> activations;  // null if the recipe names none
  std::unique_ptr<GgufTemplate> gguf_template;  // null if the exporter needs none
};
// Resolves and opens them. Errors name the field.
absl::StatusOr<PlanInputs> OpenPlanInputs(const JobSpec& spec, const FileSystem& files);

// Errors: InvalidArgument (spec against this source: a regex matching nothing, q already quantized
// checkpoint, ...), FailedPrecondition. Deterministic: same source and spec, same plan.
absl::StatusOr<Plan> MakePlan(const JobSpec& spec, const ModelSource& source,
                              const Exporter& exporter, const PlanOptions& options);

}  // namespace sinq

#endif  // SINQ_SERVER_PLAN_PLAN_H_
