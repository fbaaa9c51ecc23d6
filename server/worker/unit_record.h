// What a finished tensor leaves behind: in the store for a resumed job, in the manifest for
// readers.
#ifndef SINQ_SERVER_WORKER_UNIT_RECORD_H_
#define SINQ_SERVER_WORKER_UNIT_RECORD_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sinq {

struct UnitRecord {
  std::string source_sha256;               // hex, of the tensor's bytes in the source
  std::vector<std::string> output_sha256;  // hex, of what was written: one per output range
  bool quantized = false;                  // the rest is only for quantized tensors
  double relative_error = 0;
  double imbalance_before = 0, imbalance_after = 0;
  double mean_rounds = 0;
  // Only of Phase::kMeasure: kernels::ColumnCodes, by column.
  std::vector<int8_t> column_codes = {};
  // As kernels::TensorStats has them: absent where the backend does not take them.
  std::optional<double> balanced_error = {}, cosine = {}, max_abs_error = {}, kurtosis = {};
  std::optional<double> output_error = {};  // on the recipe's sample inputs (output_check.h)
};

// Numbers survive the round trip exactly. A measurement has its codes alone, in base64.
std::string UnitRecordToJson(const UnitRecord& record);
// DataLoss for text that UnitRecordToJson did not write.
absl::StatusOr<UnitRecord> UnitRecordFromJson(absl::string_view json);

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_UNIT_RECORD_H_
