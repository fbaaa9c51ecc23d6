// Names and metadata of the SINQ native format (authors' patch_model.py; README "Formats").
#ifndef SINQ_SERVER_EXPORT_SINQ_SIDECAR_H_
#define SINQ_SERVER_EXPORT_SINQ_SIDECAR_H_

#include <string>

#include "absl/strings/string_view.h"
#include "server/export/exporter.h"

namespace sinq {

// The layer's entry of the sidecar: {"meta": {...}}. `compute_dtype`: "bfloat16", "float16",
// "float32".
std::string SinqSidecarEntryJson(const QuantizedLayer& layer, absl::string_view compute_dtype);

}  // namespace sinq

#endif  // SINQ_SERVER_EXPORT_SINQ_SIDECAR_H_
