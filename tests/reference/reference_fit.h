// Scale, zero and codes of single groups and tiles (README.md sections 3, 4, 9 and 11).
#ifndef SINQ_TESTS_REFERENCE_REFERENCE_FIT_H_
#define SINQ_TESTS_REFERENCE_REFERENCE_FIT_H_

#include <vector>

#include "tests/reference/reference.h"

namespace sinq::kernels {

// What value `code` stands for: itself, or a level of the codebook.
float LevelOf(int code, Rounding rounding);
// The code of an exact one: rounded and clamped to 0 .. 2^bits - 1, or that of the nearest level.
int NearestCode(float v, Rounding rounding, int bits);

// Squared error of a group coded with (scale, zero), in the order of section 4.1.
float ScoreError(const std::vector<float>& y, const ReferenceGroup& group, Rounding rounding,
                 int bits);
// The sum of the squares of a group, in the same order.
float PowerOf(const std::vector<float>& y);

// Profile upstream: scale and zero of one group from y, and the code of a value.
ReferenceGroup UpstreamFit(const std::vector<float>& y, const QuantParams& params);
int UpstreamCode(float y, const ReferenceGroup& group, const QuantParams& params);

// zeta of section 4; params.aux is effective.
float Zeta(float z, const QuantParams& params);
// lo0 and hi0 of section 4.
void StorableRange(const QuantParams& params, float& low, float& high);

// HQQ on the groups of one tile (section 9.2). For profile default `groups` hold what is stored;
// for profile upstream scale is 1/a.
struct HqqTile {
  std::vector<ReferenceGroup> groups;
  std::vector<float> inverse, code_zero;  // upstream: a, and the zero of the codes
};
HqqTile HqqFit(const std::vector<std::vector<float>>& groups, const QuantParams& params);

// The orthonormal Walsh-Hadamard transform.
std::vector<float> Hadamard(std::vector<float> y);

}  // namespace sinq::kernels

#endif  // SINQ_TESTS_REFERENCE_REFERENCE_FIT_H_
