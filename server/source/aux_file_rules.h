// Which files beside the weights belong to a model.
#ifndef SINQ_SERVER_SOURCE_AUX_FILE_RULES_H_
#define SINQ_SERVER_SOURCE_AUX_FILE_RULES_H_

#include "absl/strings/string_view.h"

namespace sinq {

// Whether a top-level file is copied along: tokenizer, generation config, chat template, remote
// code. Not config.json and safetensors indexes (the exporter writes its own), not weights in any
// format, not hidden files, not names that could not be written back (control characters).
bool IsAuxFileName(absl::string_view name);

}  // namespace sinq

#endif  // SINQ_SERVER_SOURCE_AUX_FILE_RULES_H_
