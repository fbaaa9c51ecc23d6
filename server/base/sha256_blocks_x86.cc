// With the SHA extensions of x86 (Intel since Ice Lake and Goldmont, AMD since Zen). This file is
// compiled for any x86-64; the functions that use the extensions say so themselves.
#include <cpuid.h>
#include <immintrin.h>

#include "server/base/sha256_blocks.h"

namespace sinq {
namespace {

#define SINQ_SHA_TARGET __attribute__((target("sha,sse4.1,ssse3")))
#define SINQ_SHA_INLINE SINQ_SHA_TARGET __attribute__((always_inline)) inline

alignas(64) constexpr uint32_t kRoundConstants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

// One message. The instructions want the words a .. h as (a, b, e, f) and (c, d, g, h), highest
// first.
struct Lane {
  __m128i abef, cdgh;
  __m128i schedule[4];  // the last 16 words of the message schedule
  const std::byte* data;
};

SINQ_SHA_INLINE Lane Open(const Sha256Words& words, const std::byte* data) {
  const auto* from = reinterpret_cast<const __m128i*>(words.data());
  const __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128(from), 0xB1);
  const __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128(from + 1), 0x1B);
  return {_mm_alignr_epi8(badc, efgh, 8), _mm_blend_epi16(efgh, badc, 0xF0), {}, data};
}

SINQ_SHA_INLINE void Close(const Lane& lane, Sha256Words& words) {
  const __m128i feba = _mm_shuffle_epi32(lane.abef, 0x1B);
  const __m128i dchg = _mm_shuffle_epi32(lane.cdgh, 0xB1);
  auto* to = reinterpret_cast<__m128i*>(words.data());
  _mm_storeu_si128(to, _mm_blend_epi16(feba, dchg, 0xF0));
  _mm_storeu_si128(to + 1, _mm_alignr_epi8(dchg, feba, 8));
}

// Words 4 * step .. 4 * step + 3 of the message schedule.
SINQ_SHA_INLINE __m128i NextWords(const Lane& lane, int step) {
  if (step < 4) {
    const __m128i big_endian = _mm_set_epi64x(0x0C0D0E0F08090A0B, 0x0405060700010203);
    const auto* from = reinterpret_cast<const __m128i*>(lane.data) + step;
    return _mm_shuffle_epi8(_mm_loadu_si128(from), big_endian);
  }
  const __m128i& last = lane.schedule[(step + 3) & 3];
  const __m128i seven_back = _mm_alignr_epi8(last, lane.schedule[(step + 2) & 3], 4);
  const __m128i sigma0 =
      _mm_sha256msg1_epu32(lane.schedule[step & 3], lane.schedule[(step + 1) & 3]);
  return _mm_sha256msg2_epu32(_mm_add_epi32(sigma0, seven_back), last);
}

// Four rounds.
SINQ_SHA_INLINE void Step(Lane& lane, int step) {
  const __m128i words = NextWords(lane, step);
  lane.schedule[step & 3] = words;
  const auto* constants = reinterpret_cast<const __m128i*>(kRoundConstants) + step;
  const __m128i sums = _mm_add_epi32(words, _mm_load_si128(constants));
  lane.cdgh = _mm_sha256rnds2_epu32(lane.cdgh, lane.abef, sums);
  lane.abef = _mm_sha256rnds2_epu32(lane.abef, lane.cdgh, _mm_shuffle_epi32(sums, 0x0E));
}

// What the compiler has to unroll, so that the schedule stays in registers.
template <int kLanes>
SINQ_SHA_INLINE void Block(Lane (&lanes)[kLanes]) {
  __m128i abef[kLanes], cdgh[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    abef[i] = lanes[i].abef;
    cdgh[i] = lanes[i].cdgh;
  }
#pragma GCC unroll 16
  for (int step = 0; step < 16; ++step) {
#pragma GCC unroll 2
    for (int i = 0; i < kLanes; ++i) Step(lanes[i], step);
  }
  for (int i = 0; i < kLanes; ++i) {
    lanes[i].abef = _mm_add_epi32(lanes[i].abef, abef[i]);
    lanes[i].cdgh = _mm_add_epi32(lanes[i].cdgh, cdgh[i]);
    lanes[i].data += kSha256BlockBytes;
  }
}

bool Detect() {
  constexpr unsigned kSsse3 = 1u << 9, kSse41 = 1u << 19, kSha = 1u << 29;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return false;
  const bool has_sse = (c & kSsse3) != 0 && (c & kSse41) != 0;
  return has_sse && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & kSha) != 0;
}

}  // namespace

bool HasSha256Instructions() {
  static const bool has = Detect();  // asking traps to the hypervisor in a virtual machine
  return has;
}

SINQ_SHA_TARGET void Sha256Blocks(Sha256Words& words, const std::byte* data, size_t blocks) {
  Lane lanes[1] = {Open(words, data)};
  for (size_t i = 0; i < blocks; ++i) Block(lanes);
  Close(lanes[0], words);
}

SINQ_SHA_TARGET void Sha256BlocksOfTwo(Sha256Words& first, const std::byte* first_data,
                                       Sha256Words& second, const std::byte* second_data,
                                       size_t blocks) {
  Lane lanes[2] = {Open(first, first_data), Open(second, second_data)};
  for (size_t i = 0; i < blocks; ++i) Block(lanes);
  Close(lanes[0], first);
  Close(lanes[1], second);
}

}  // namespace sinq
