#include "client/report.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/format.h"
#include "client/manifest.h"

namespace sinq::client {
namespace {

using Json = nlohmann::ordered_json;

std::string Text(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

// NaN and infinity are no JSON, so a number here is finite.
std::optional<double> Number(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number()) return std::nullopt;
  return found->get<double>();
}

// Sizes and counts: not negative, and small enough that sums of them over all tensors of a manifest
// cannot overflow.
std::optional<int64_t> Count(const Json& object, const char* key) {
  constexpr uint64_t kMost = uint64_t{1} << 50;
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number_unsigned()) return std::nullopt;
  const uint64_t value = found->get<uint64_t>();
  return value <= kMost ? std::optional<int64_t>(static_cast<int64_t>(value)) : std::nullopt;
}

// Layer and projection from a name: "model.layers.3.mlp.experts.7.up_proj.weight" is layer 3,
// "model.layers.mlp.experts.up_proj".
void PlaceInModel(TensorReport& tensor) {
  std::vector<absl::string_view> kept;
  for (absl::string_view part : absl::StrSplit(tensor.name, '.')) {
    int64_t number;
    const bool digits = !part.empty() && std::all_of(part.begin(), part.end(), absl::ascii_isdigit);
    if (!digits) {
      kept.push_back(part);
    } else if (!tensor.layer && absl::SimpleAtoi(part, &number)) {
      tensor.layer = number;
    }
  }
  if (kept.size() > 1 && kept.back() == "weight") kept.pop_back();
  tensor.projection = absl::StrJoin(kept, ".");
}

absl::Status ParseShape(const Json& entry, TensorReport& tensor) {
  constexpr int64_t kMost = int64_t{1} << 50;
  const auto shape = entry.find("shape");
  if (shape == entry.end() || !shape->is_array()) return absl::OkStatus();
  tensor.weights = 1;
  for (const Json& size : *shape) {
    if (!size.is_number_unsigned() || size.get<uint64_t>() > static_cast<uint64_t>(kMost)) {
      return absl::InvalidArgumentError(
          absl::StrCat("The manifest's shape of tensor \"", tensor.name, "\" cannot be right."));
    }
    const int64_t value = size.get<int64_t>();
    if (value > 0 && tensor.weights > kMost / value) {
      return absl::InvalidArgumentError(
          absl::StrCat("The manifest's shape of tensor \"", tensor.name, "\" cannot be right."));
    }
    tensor.shape.push_back(value);
    tensor.weights *= value;
  }
  return absl::OkStatus();
}

void ParseOutputs(const Json& entry, TensorReport& tensor) {
  const auto outputs = entry.find("outputs");
  if (outputs == entry.end() || !outputs->is_array()) return;
  tensor.has_bytes = true;
  for (const Json& output : *outputs) {
    const auto size =
        output.is_object() ? Count(output, "size_bytes") : std::optional<int64_t>();
    if (!size) {
      tensor.has_bytes = false;
      tensor.bytes = {};
      return;
    }
    PartKind kind = PartOf(Text(output, "name"), tensor.quantized());
    // GGUF has codes and scales in blocks, under the weight's own name.
    constexpr int64_t kSmallestDenseBytes = 2;
    if (kind == PartKind::kDense && tensor.quantized() &&
        *size < kSmallestDenseBytes * tensor.weights)
      kind = PartKind::kCodes;
    tensor.bytes[static_cast<size_t>(kind)] += *size;
  }
}

absl::StatusOr<TensorReport> ParseTensor(const Json& entry) {
  TensorReport tensor;
  if (entry.is_object()) tensor.name = Text(entry, "name");
  if (tensor.name.empty()) {
    return absl::InvalidArgumentError("The manifest has a tensor without a name.");
  }
  tensor.action = Text(entry, "action");
  tensor.reason = Text(entry, "reason");
  tensor.aux = Text(entry, "aux");
  PlaceInModel(tensor);
  if (absl::Status status = ParseShape(entry, tensor); !status.ok()) return status;
  tensor.bits = Count(entry, "bits");
  tensor.group_size = Count(entry, "group_size");
  tensor.relative_error = Number(entry, "relative_error");
  tensor.balanced_error = Number(entry, "balanced_error");
  tensor.cosine = Number(entry, "cosine");
  tensor.max_abs_error = Number(entry, "max_abs_error");
  tensor.imbalance_before = Number(entry, "imbalance_before");
  tensor.imbalance_after = Number(entry, "imbalance_after");
  tensor.rounds = Number(entry, "rounds");
  tensor.kurtosis = Number(entry, "kurtosis");
  ParseOutputs(entry, tensor);
  return tensor;
}

// "sinq, 4 bits, group 64, profile default": the scalar settings, as they stand in the manifest.
std::string RecipeText(const Json& root) {
  const auto recipe = root.find("recipe");
  if (recipe == root.end() || !recipe->is_object()) return "";
  std::vector<std::string> parts;
  for (const auto& [key, value] : recipe->items()) {
    if (value.is_string() && !value.get_ref<const std::string&>().empty()) {
      parts.push_back(absl::StrCat(key, " ", value.get_ref<const std::string&>()));
    } else if (value.is_boolean() && value.get<bool>()) {
      parts.push_back(key);
    } else if (value.is_number()) {
      parts.push_back(absl::StrCat(key, " ", value.dump()));
    } else if (value.is_array() && !value.empty()) {
      parts.push_back(absl::StrCat(key, " (", value.size(), ")"));
    }
  }
  return absl::StrJoin(parts, ", ");
}

void AddTotals(QualityReport& report) {
  report.has_bytes = !report.tensors.empty();
  for (size_t i = 0; i < report.tensors.size(); ++i) {
    const TensorReport& tensor = report.tensors[i];
    for (size_t kind = 0; kind < kPartKinds; ++kind) report.bytes[kind] += tensor.bytes[kind];
    report.has_bytes = report.has_bytes && (tensor.has_bytes || tensor.action == "drop");
    if (!tensor.quantized()) continue;
    ++report.quantized_tensors;
    if (tensor.rank_error()) report.worst.push_back(i);
  }
  std::stable_sort(report.worst.begin(), report.worst.end(), [&](size_t a, size_t b) {
    return *report.tensors[a].rank_error() > *report.tensors[b].rank_error();
  });
}

// Ranks are comparable only if all tensors have the same figure.
void DropPartialBalancedErrors(QualityReport& report) {
  const auto lacks = [](const TensorReport& t) { return t.quantized() && !t.balanced_error; };
  if (!std::any_of(report.tensors.begin(), report.tensors.end(), lacks)) return;
  for (TensorReport& tensor : report.tensors) tensor.balanced_error.reset();
}

Json OrNull(const std::optional<double>& value) {
  return value && std::isfinite(*value) ? Json(*value) : Json();
}
Json OrNull(const std::optional<int64_t>& value) { return value ? Json(*value) : Json(); }

Json PartsJson(const PartBytes& bytes) {
  Json parts;
  for (size_t kind = 0; kind < kPartKinds; ++kind)
    parts[std::string(PartName(static_cast<PartKind>(kind)))] = bytes[kind];
  return parts;
}

Json TensorJson(const TensorReport& tensor) {
  Json out;
  out["name"] = tensor.name;
  out["action"] = tensor.action;
  out["reason"] = tensor.reason;
  out["layer"] = OrNull(tensor.layer);
  out["projection"] = tensor.projection;
  out["shape"] = tensor.shape;
  out["bits"] = OrNull(tensor.bits);
  out["group_size"] = OrNull(tensor.group_size);
  out["aux"] = tensor.aux.empty() ? Json() : Json(tensor.aux);
  out["sqnr_db"] = OrNull(tensor.sqnr_db());
  out["relative_error"] = OrNull(tensor.relative_error);
  out["balanced_error"] = OrNull(tensor.balanced_error);
  out["cosine"] = OrNull(tensor.cosine);
  out["max_abs_error"] = OrNull(tensor.max_abs_error);
  out["imbalance_before"] = OrNull(tensor.imbalance_before);
  out["imbalance_after"] = OrNull(tensor.imbalance_after);
  out["rounds"] = OrNull(tensor.rounds);
  out["kurtosis"] = OrNull(tensor.kurtosis);
  out["bytes"] = tensor.has_bytes ? PartsJson(tensor.bytes) : Json();
  return out;
}

// A cell is one line: a newline in a name must not look like another row.
std::string OneLine(std::string text) {
  std::replace(text.begin(), text.end(), '\n', '?');
  return text;
}

std::string BytesCell(const TensorReport& tensor) {
  return tensor.has_bytes ? FormatBytes(Sum(tensor.bytes)) : "-";
}

void AddRow(const TensorReport& t, Table& table) {
  table.Add({OneLine(t.name), OneLine(t.action), CountText(t.bits), CountText(t.group_size),
             FigureText(t.sqnr_db(), 2), FigureText(t.balanced_error, 5), FigureText(t.cosine, 6),
             FigureText(t.imbalance_before, 2), FigureText(t.imbalance_after, 2),
             FigureText(t.rounds, 1), FigureText(t.kurtosis, 2), BytesCell(t)});
}

Table FigureTable() {
  return Table({"TENSOR", "ACTION", "BITS", "GROUP", "SQNR DB", "BALANCED ERROR", "COSINE",
                "IMBALANCE", "AFTER", "ROUNDS", "KURTOSIS", "SIZE"});
}

}  // namespace

absl::string_view PartName(PartKind kind) {
  constexpr std::array<absl::string_view, kPartKinds> kNames = {"codes", "scales", "zeros",
                                                                "column_scales", "dense"};
  return kNames[static_cast<size_t>(kind)];
}

PartKind PartOf(absl::string_view name, bool quantized) {
  if (!quantized) return PartKind::kDense;
  // The native format has ".meta.scale2", ".meta.scale.x" and so on; compared in this order.
  constexpr std::array<std::pair<absl::string_view, PartKind>, 9> kRules = {{
      {".meta.scale2", PartKind::kColumnScales},
      {".meta.scale", PartKind::kScales},
      {".meta.zero", PartKind::kZeros},
      {".weight_scale", PartKind::kScales},
      {".weight_zero_point", PartKind::kZeros},
      {".scales", PartKind::kScales},
      {".qzeros", PartKind::kZeros},
      {".scale", PartKind::kScales},
      {".zero", PartKind::kZeros},
  }};
  for (const auto& [part, kind] : kRules) {
    if (absl::StrContains(name, part)) return kind;
  }
  // ".weight" of a quantized layer: dequantized again for a dense checkpoint.
  return absl::EndsWith(name, ".weight") ? PartKind::kDense : PartKind::kCodes;
}

int64_t Sum(const PartBytes& bytes) {
  return std::accumulate(bytes.begin(), bytes.end(), int64_t{0});
}

std::optional<double> TensorReport::sqnr_db() const {
  if (!relative_error || *relative_error < 0) return std::nullopt;
  if (*relative_error == 0) return std::numeric_limits<double>::infinity();
  return -20 * std::log10(*relative_error);
}

std::optional<double> TensorReport::rank_error() const {
  return balanced_error ? balanced_error : relative_error;
}

absl::StatusOr<QualityReport> ParseReport(absl::string_view manifest_json) {
  const Json root =
      Json::parse(manifest_json.begin(), manifest_json.end(), nullptr, /*allow_exceptions=*/false);
  if (!root.is_object() || !root.contains("tensors") || !root["tensors"].is_array()) {
    return absl::InvalidArgumentError("The manifest is not JSON with a list of tensors.");
  }
  QualityReport report;
  report.job_id = Text(root, "job_id");
  report.code_version = Text(root, "code_version");
  const auto source = root.find("source");
  if (source != root.end() && source->is_object()) report.source_uri = Text(*source, "uri");
  report.recipe = RecipeText(root);
  report.quantized_weights = Count(root, "quantized_weights").value_or(0);
  report.output_bytes = Count(root, "output_bytes").value_or(0);
  report.effective_bits = Number(root, "effective_bits");
  for (const Json& entry : root["tensors"]) {
    absl::StatusOr<TensorReport> tensor = ParseTensor(entry);
    if (!tensor.ok()) return tensor.status();
    report.tensors.push_back(*std::move(tensor));
  }
  DropPartialBalancedErrors(report);
  AddTotals(report);
  return report;
}

absl::StatusOr<QualityReport> ReadReport(const std::string& directory) {
  const absl::StatusOr<std::string> text = ReadManifest(directory);
  return text.ok() ? ParseReport(*text) : text.status();
}

std::string ReportJson(const QualityReport& report, absl::string_view directory) {
  Json out;
  out["directory"] = std::string(directory);
  out["job_id"] = report.job_id;
  out["code_version"] = report.code_version;
  out["source"] = report.source_uri;
  out["recipe"] = report.recipe;
  Json& totals = out["totals"];
  totals["tensors"] = report.tensors.size();
  totals["quantized_tensors"] = report.quantized_tensors;
  totals["quantized_weights"] = report.quantized_weights;
  totals["effective_bits"] = OrNull(report.effective_bits);
  totals["output_bytes"] = report.output_bytes;
  totals["bytes"] = report.has_bytes ? PartsJson(report.bytes) : Json();
  out["worst"] = Json::array();
  for (size_t i = 0; i < std::min(kWorstShown, report.worst.size()); ++i)
    out["worst"].push_back(report.tensors[report.worst[i]].name);
  out["tensors"] = Json::array();
  for (const TensorReport& tensor : report.tensors) out["tensors"].push_back(TensorJson(tensor));
  return out.dump(2, ' ', false, Json::error_handler_t::replace);
}

std::string ReportText(const QualityReport& report) {
  Table tensors = FigureTable();
  for (const TensorReport& tensor : report.tensors) AddRow(tensor, tensors);
  Table worst = FigureTable();
  for (size_t i = 0; i < std::min(kWorstShown, report.worst.size()); ++i)
    AddRow(report.tensors[report.worst[i]], worst);
  Table totals({"TOTAL", ""});
  totals.Add({"source", OneLine(report.source_uri)});
  totals.Add({"recipe", OneLine(report.recipe)});
  totals.Add({"tensors", absl::StrCat(report.tensors.size(), ", ", report.quantized_tensors,
                                      " of them quantized")});
  totals.Add({"quantized weights", absl::StrCat(report.quantized_weights)});
  totals.Add({"bits per weight", FigureText(report.effective_bits, 3)});
  totals.Add({"output", FormatBytes(report.output_bytes)});
  for (size_t kind = 0; kind < kPartKinds && report.has_bytes; ++kind) {
    totals.Add({std::string(PartName(static_cast<PartKind>(kind))),
                FormatBytes(report.bytes[kind])});
  }
  const std::string ranked =
      report.worst.empty() ? "" : absl::StrCat("\nThe worst:\n", worst.Render());
  return absl::StrCat(tensors.Render(), ranked, "\n", totals.Render());
}

std::string FigureText(const std::optional<double>& value, int digits) {
  if (!value) return "-";
  if (std::isinf(*value)) return "exact";
  if (std::abs(*value) >= 1e6) return absl::StrFormat("%.3g", *value);
  return absl::StrFormat("%.*f", digits, *value);
}

std::string CountText(const std::optional<int64_t>& value) {
  return value ? absl::StrCat(*value) : "-";
}

}  // namespace sinq::client
