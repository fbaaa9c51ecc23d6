// Powers from IEEE additions, multiplications and divisions alone, in a written order: the same
// bits on every backend, which no library's pow promises. README.md section 9.3. For host and
// device code; the build must not contract (-ffp-contract=off, -fmad=false).
#ifndef SINQ_KERNELS_DETERMINISTIC_MATH_H_
#define SINQ_KERNELS_DETERMINISTIC_MATH_H_

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define SINQ_HOST_DEVICE __host__ __device__
#else
#define SINQ_HOST_DEVICE
#endif

namespace sinq::kernels {

// log2 of a positive, finite fp32 value, within 1e-15 absolute of the true one.
SINQ_HOST_DEVICE inline double Log2(float x) {
  const double wide = static_cast<double>(x);  // a normal number for every x > 0
  uint64_t bits;
  memcpy(&bits, &wide, sizeof bits);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  bits = (bits & 0xfffffffffffffULL) | (uint64_t{1023} << 52);
  double m;
  memcpy(&m, &bits, sizeof m);
  if (m > 1.4142135623730951) {
    m = m * 0.5;
    exponent += 1;
  }
  // ln m = 2 atanh(f), f = (m - 1) / (m + 1), |f| < 0.1716
  const double f = (m - 1.0) / (m + 1.0);
  const double f2 = f * f;
  double sum = 1.0 / 21.0;
  for (int n = 19; n >= 1; n -= 2) sum = sum * f2 + 1.0 / n;
  return exponent + f * sum * 2.8853900817779268;  // 2 / ln 2
}

// 2^y; 0 under y = -1000, and y over 1000 counts as 1000.
SINQ_HOST_DEVICE inline double Exp2(double y) {
  if (y < -1000.0) return 0.0;
  const double bounded = y > 1000.0 ? 1000.0 : y;
  // Adding and subtracting 1.5 * 2^52 rounds to an integer, ties to even.
  const double whole = (bounded + 6755399441055744.0) - 6755399441055744.0;
  const double z = (bounded - whole) * 0.69314718055994531;  // |z| < 0.3466
  double sum = 1.0;
  for (int n = 14; n >= 1; --n) sum = 1.0 + z * (1.0 / n) * sum;
  const uint64_t bits = static_cast<uint64_t>(static_cast<int64_t>(whole) + 1023) << 52;
  double power;
  memcpy(&power, &bits, sizeof power);
  return sum * power;
}

// x^y rounded to fp32, x >= 0 and finite; 0^0 = 1, 0^y = 0 for y > 0.
SINQ_HOST_DEVICE inline float Power(float x, double y) {
  if (y == 0) return 1.0f;
  if (x == 0) return 0.0f;
  return static_cast<float>(Exp2(y * Log2(x)));
}

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_DETERMINISTIC_MATH_H_
