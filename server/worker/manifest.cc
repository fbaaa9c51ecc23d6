#include "server/worker/manifest.h"

#include "kernels/quant_params.h"
#include "nlohmann/json.hpp"

namespace sinq {
namespace {

using nlohmann::ordered_json;

constexpr int kManifestVersion = 1;

ordered_json SourceSection(const Job& job, const ModelSource& source) {
  ordered_json section;
  section["uri"] = job.spec.source_uri;
  section["fingerprint"] = source.Fingerprint();
  section["files"] = ordered_json::array();
  for (const SourceFile& file : source.files()) {
    section["files"].push_back({{"name", file.name},
                                {"size_bytes", file.size_bytes},
                                {"header_sha256", file.header_sha256}});
  }
  return section;
}

ordered_json TensorEntry(const PlannedTensor& tensor,
                         const std::map<std::string, UnitRecord>& records) {
  ordered_json entry;
  entry["name"] = tensor.source.name;
  entry["action"] = std::string(ActionName(tensor.action));
  entry["reason"] = tensor.reason;
  entry["dtype"] = tensor.source.dtype;
  entry["shape"] = tensor.source.shape;
  const auto found = records.find(tensor.source.name);
  if (found == records.end()) return entry;
  const UnitRecord& record = found->second;
  entry["source_sha256"] = record.source_sha256;
  if (record.quantized) {
    entry["bits"] = tensor.params.bits;
    entry["group_size"] = tensor.params.group_size;
    entry["aux"] = std::string(kernels::AuxName(tensor.params.aux));
    entry["method"] = std::string(kernels::MethodName(tensor.params.method));
    entry["symmetric"] = tensor.params.symmetric;
    entry["relative_error"] = record.relative_error;
    if (record.balanced_error) entry["balanced_error"] = *record.balanced_error;
    if (record.cosine) entry["cosine"] = *record.cosine;
    if (record.max_abs_error) entry["max_abs_error"] = *record.max_abs_error;
    if (record.output_error) entry["output_error"] = *record.output_error;
    if (record.kurtosis) entry["kurtosis"] = *record.kurtosis;
    entry["imbalance_before"] = record.imbalance_before;
    entry["imbalance_after"] = record.imbalance_after;
    entry["rounds"] = record.mean_rounds;
  }
  entry["outputs"] = ordered_json::array();
  for (size_t i = 0; i < tensor.outputs.size() && i < record.output_sha256.size(); ++i) {
    entry["outputs"].push_back(
        {{"name", tensor.outputs[i].tensor.name},
         {"size_bytes", tensor.outputs[i].tensor.size_bytes},
         {"sha256", record.output_sha256[i]}});
  }
  return entry;
}

ordered_json FoldSection(const Plan& plan) {
  ordered_json section;
  section["note"] = plan.fold.note;
  section["pairs"] = ordered_json::array();
  for (const FoldPair& pair : plan.fold.pairs) {
    ordered_json entry;
    entry["producer"] = pair.name;
    entry["consumers"] = ordered_json::array();
    for (const int index : pair.consumers)
      entry["consumers"].push_back(plan.tensors[static_cast<size_t>(index)].source.name);
    entry["folded"] = pair.folded();
    if (!pair.folded()) entry["reason"] = pair.refusal;
    section["pairs"].push_back(std::move(entry));
  }
  return section;
}

}  // namespace

std::string MakeManifest(const Job& job, const Plan& plan, const ModelSource& source,
                         const std::map<std::string, UnitRecord>& records,
                         const std::vector<ManifestFile>& files, const CodeVersion& version) {
  ordered_json manifest;
  manifest["manifest_version"] = kManifestVersion;
  manifest["job_id"] = job.id;
  manifest["code_version"] = version.release;
  manifest["arithmetic_version"] = version.arithmetic;
  manifest["source"] = SourceSection(job, source);
  if (plan.gguf_template) {
    manifest["gguf_template"] = {{"uri", job.spec.gguf_template_uri},
                                 {"size_bytes", plan.gguf_template->size_bytes},
                                 {"header_sha256", plan.gguf_template->header_sha256}};
  }
  manifest["recipe"] =
      ordered_json::parse(RecipeToJson(job.spec), nullptr, /*allow_exceptions=*/false);
  manifest["plan_digest"] = plan.digest;
  manifest["effective_bits"] = plan.effective_bits;
  manifest["quantized_weights"] = plan.quantized_weights;
  manifest["output_bytes"] = plan.output_bytes;
  manifest["files"] = ordered_json::array();
  for (const ManifestFile& file : files) {
    manifest["files"].push_back(
        {{"name", file.name}, {"size_bytes", file.size_bytes}, {"sha256", file.sha256}});
  }
  if (!plan.fold.note.empty()) manifest["fold"] = FoldSection(plan);
  manifest["tensors"] = ordered_json::array();
  for (const PlannedTensor& tensor : plan.tensors)
    manifest["tensors"].push_back(TensorEntry(tensor, records));
  return manifest.dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace sinq
