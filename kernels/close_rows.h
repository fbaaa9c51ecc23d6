// The groups whose dearer error figures are taken: those of every eighth row, numbered in order
// (README.md section 7). For host and device code.
#ifndef SINQ_KERNELS_CLOSE_ROWS_H_
#define SINQ_KERNELS_CLOSE_ROWS_H_

#include <cstdint>

namespace sinq::kernels {

inline constexpr int64_t kCloseRowStep = 8;

// How many of them come before group e = row * groups_per_row + j.
constexpr int64_t CloseGroupsBefore(int64_t e, int64_t groups_per_row) {
  const int64_t row = e / groups_per_row, j = e % groups_per_row;
  const int64_t rows_before = (row + kCloseRowStep - 1) / kCloseRowStep;
  return rows_before * groups_per_row + (row % kCloseRowStep == 0 ? j : 0);
}
// Which group the n-th of them is.
constexpr int64_t CloseGroup(int64_t n, int64_t groups_per_row) {
  const int64_t close_row = n / groups_per_row;
  return close_row * kCloseRowStep * groups_per_row + n % groups_per_row;
}
static_assert(CloseGroupsBefore(0, 5) == 0 && CloseGroupsBefore(3, 5) == 3);
static_assert(CloseGroupsBefore(5, 5) == 5 && CloseGroupsBefore(40, 5) == 5);
static_assert(CloseGroup(7, 5) == 42 && CloseGroupsBefore(42, 5) == 7);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CLOSE_ROWS_H_
