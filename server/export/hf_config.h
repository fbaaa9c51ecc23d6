// config.json of a quantized checkpoint, as transformers, vLLM and SGLang read it.
#ifndef SINQ_SERVER_EXPORT_HF_CONFIG_H_
#define SINQ_SERVER_EXPORT_HF_CONFIG_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "server/export/exporter.h"

namespace sinq {

// The file that tells how the model is quantized. With a source config.json: that, its own
// quantization_config (an FP8 checkpoint's) replaced by `section`, and every dtype in it replaced
// by `dtype` if given. For a bare file, whose model is not known: "quantization_config.json" with
// the section alone, to be put into the model's config.json. Nothing for a bare file without a
// section; a null section leaves none in config.json. InvalidArgument/kMalformedSource for a
// config that is not an object.
absl::StatusOr<std::optional<SideFile>> ConfigFile(
    const ExportedModel& model, const nlohmann::ordered_json& section,
    std::optional<absl::string_view> dtype = std::nullopt);

// Module paths of the dense linear layers in the source's order, and "lm_head" in any case: readers
// would look for its packed weights also where it is tied to the embedding.
std::vector<std::string> DenseModules(const ExportedModel& model);

}  // namespace sinq

#endif  // SINQ_SERVER_EXPORT_HF_CONFIG_H_
