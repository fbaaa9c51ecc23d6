// Puts the tensors of a plan into the places that a GGUF template has for them.
#ifndef SINQ_SERVER_PLAN_GGUF_PLAN_H_
#define SINQ_SERVER_PLAN_GGUF_PLAN_H_

#include "absl/status/status.h"
#include "server/export/gguf_template.h"
#include "server/plan/model_shape.h"
#include "server/plan/plan.h"
#include "server/source/model_source.h"

namespace sinq {

inline constexpr char kGgufFileName[] = "model.gguf";

// Turns `plan`, whose tensors have their actions and folds, into one that writes the template
// again, with these of its tensors replaced:
// - quantized layers, as their blocks;
// - what scales are folded into: norms and biases in the template's dtype (F32 as converters write
//   them: they take the scale almost exactly), dense layers rounded to the template's dtype.
// Other tensors of the source are dropped: the template has them. Its own follow in plan.tensors,
// copied byte for byte; so is the metadata, but for general.file_type and
// general.quantization_version. Sets plan.files (one) and plan.gguf_template.
//
// InvalidArgument naming the tensor and what to do: an architecture that gguf_names.h does not have
// or that is not the source's; a replaced tensor that the template lacks, or has in another shape
// or already quantized; head counts that do not fit. Where source and template are in plain dtypes,
// a few rows of every tensor are compared too: another checkpoint, or rows in another order, are
// refused as such.
absl::Status PlanGguf(const GgufTemplate& gguf_template, const ModelSource& source,
                      const ModelShape& shape, Plan& plan);

}  // namespace sinq

#endif  // SINQ_SERVER_PLAN_GGUF_PLAN_H_
