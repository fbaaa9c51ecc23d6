// SHA-256 over whole blocks with the processor's own instructions, of one message or of two at
// once. Each round waits for the one before it, so one message leaves the unit idle half the time:
// two take little more than one. OpenSSL has such code for TLS records only, and what does it for
// any stream (isa-l_crypto) is not in Debian 12.
#ifndef SINQ_SERVER_BASE_SHA256_BLOCKS_H_
#define SINQ_SERVER_BASE_SHA256_BLOCKS_H_

#include <array>
#include <cstddef>
#include <cstdint>

namespace sinq {

inline constexpr size_t kSha256BlockBytes = 64;

// The eight words of FIPS 180-4, section 5.3.3, and what they become.
using Sha256Words = std::array<uint32_t, 8>;

// Whether this machine has the instructions; else the functions below must not be called.
bool HasSha256Instructions();
// `blocks` blocks from `data` on, which needs no alignment. Thread-safe for different words.
void Sha256Blocks(Sha256Words& words, const std::byte* data, size_t blocks);
// The same for two messages, whose blocks may be the same bytes; the words must be different ones.
void Sha256BlocksOfTwo(Sha256Words& first, const std::byte* first_data, Sha256Words& second,
                       const std::byte* second_data, size_t blocks);

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_SHA256_BLOCKS_H_
