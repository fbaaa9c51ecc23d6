// The measuring calls of the CPU backend (README.md section 11).
#ifndef SINQ_KERNELS_MEASURE_CPU_H_
#define SINQ_KERNELS_MEASURE_CPU_H_

#include "kernels/tile_pass.h"

namespace sinq::kernels {

// Scratch of one lane, for the widest of the candidates' groups.
size_t MeasureSlotBytes(const MatrixView& in, absl::Span<const QuantParams> candidates);

// As Backend::MeasureColumns; `params` are valid and some group size works.
absl::Status MeasureColumnScales(const PassContext& context, const QuantParams& params,
                                 absl::Span<float> t);
// As Backend::MeasureErrors; every candidate is valid and its group size works.
absl::Status MeasureCandidates(const PassContext& context, absl::Span<const QuantParams> candidates,
                               absl::Span<Measurement> measured);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_MEASURE_CPU_H_
