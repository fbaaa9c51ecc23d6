#include "server/base/checksum.h"

#include <xxhash.h>

#include <new>

namespace sinq {

void Checksum::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

Checksum::Checksum() : state_(XXH3_createState()) {
  if (state_ == nullptr) throw std::bad_alloc();
  XXH3_64bits_reset(state_.get());
}

void Checksum::Update(absl::Span<const std::byte> data) {
  XXH3_64bits_update(state_.get(), data.data(), data.size());
}

uint64_t Checksum::Value() const { return XXH3_64bits_digest(state_.get()); }

}  // namespace sinq
