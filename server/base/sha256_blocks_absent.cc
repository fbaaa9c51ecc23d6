// Where there is no code for the processor's instructions: OpenSSL does it all.
#include "server/base/sha256_blocks.h"

namespace sinq {

bool HasSha256Instructions() { return false; }

void Sha256Blocks(Sha256Words&, const std::byte*, size_t) {}

void Sha256BlocksOfTwo(Sha256Words&, const std::byte*, Sha256Words&, const std::byte*, size_t) {}

}  // namespace sinq
