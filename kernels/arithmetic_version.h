// Which README.md the bytes follow.
#ifndef SINQ_KERNELS_ARITHMETIC_VERSION_H_
#define SINQ_KERNELS_ARITHMETIC_VERSION_H_

namespace sinq::kernels {

// Raised with every change of README.md that can change a byte of an output, so that no output is
// begun by one arithmetic and finished by another.
//   2: the search of section 4.1 has five codings.
//   3: shards are laid out in the order of the plan (shard_layout.h); groups that are not balanced
//      are scaled one by one (section 8.2).
//   4: shards are laid out in the order of stages (fold_stages.h), small constants behind.
//   5: uneven ranges for zeros with fractions, min/max first if symmetric (section 4.1); constants
//      on a grid of scales take all steps.
inline constexpr int kArithmeticVersion = 5;

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_ARITHMETIC_VERSION_H_
