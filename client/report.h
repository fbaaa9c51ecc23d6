// The quality report of a published directory: what its manifest says about every tensor, summed up
// and ranked. Nothing but the manifest is read.
#ifndef SINQ_CLIENT_REPORT_H_
#define SINQ_CLIENT_REPORT_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sinq::client {

// What the bytes of an output tensor are.
enum class PartKind : uint8_t { kCodes, kScales, kZeros, kColumnScales, kDense };
inline constexpr size_t kPartKinds = 5;
absl::string_view PartName(PartKind kind);  // "codes", "scales", "zeros", "column_scales", "dense"
// From the name that the format gives to its tensors; a tensor of no quantized layer is kDense.
PartKind PartOf(absl::string_view output_name, bool quantized);

using PartBytes = std::array<int64_t, kPartKinds>;
int64_t Sum(const PartBytes& bytes);

// One tensor of the source. Figures that the manifest does not have (a copied tensor, a manifest
// of an older server) are absent.
struct TensorReport {
  std::string name;
  std::string action;  // "quantize", "copy", "drop"
  std::string reason;
  std::optional<int64_t> layer;  // the first number in the name
  std::string projection;        // the name without its numbers and "weight"
  std::vector<int64_t> shape;
  int64_t weights = 0;  // product of the shape
  std::optional<int64_t> bits, group_size;
  std::string aux;
  std::optional<double> relative_error;  // ||W' - W|| / ||W||
  std::optional<double> balanced_error;  // the same with every column divided by its scale t
  std::optional<double> cosine;          // of W' and W
  std::optional<double> max_abs_error;   // of W' - W
  std::optional<double> imbalance_before, imbalance_after;
  std::optional<double> rounds;    // of balancing, mean over the tiles
  std::optional<double> kurtosis;  // of W
  PartBytes bytes{};
  bool has_bytes = false;

  bool quantized() const { return action == "quantize"; }
  // Signal to quantization noise, 20 log10(1 / relative_error); infinite for an error of 0.
  std::optional<double> sqnr_db() const;
  // What tensors are ranked by: the balanced error where it is known, because the plain one
  // misjudges balanced weights.
  std::optional<double> rank_error() const;
};

struct QualityReport {
  std::string job_id, code_version, source_uri;
  std::string recipe;  // "sinq, 4 bits, group 64, ...": what the manifest's recipe has
  std::vector<TensorReport> tensors;  // in the manifest's order
  int64_t quantized_tensors = 0;
  int64_t quantized_weights = 0;
  int64_t output_bytes = 0;
  std::optional<double> effective_bits;  // per quantized weight
  bool has_bytes = false;                // the manifest has the sizes of the output tensors
  PartBytes bytes{};                     // over all tensors
  std::vector<size_t> worst;             // indices of quantized tensors, largest rank_error first
};

// The worst tensors that reports show by name.
inline constexpr size_t kWorstShown = 10;

// InvalidArgument says what is wrong with the manifest.
absl::StatusOr<QualityReport> ParseReport(absl::string_view manifest_json);
// NotFound without a manifest in `directory`.
absl::StatusOr<QualityReport> ReadReport(const std::string& directory);

// Names of output fields, stable for programs: see README.md.
std::string ReportJson(const QualityReport& report, absl::string_view directory);
std::string ReportText(const QualityReport& report);

// Figures as tables show them; "-" where absent.
std::string FigureText(const std::optional<double>& value, int digits);
std::string CountText(const std::optional<int64_t>& value);

}  // namespace sinq::client

#endif  // SINQ_CLIENT_REPORT_H_
