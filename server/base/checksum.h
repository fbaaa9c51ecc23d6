// A checksum for bytes that come back to whoever took it: finds damage, not malice. Twenty times as
// fast as SHA-256.
#ifndef SINQ_SERVER_BASE_CHECKSUM_H_
#define SINQ_SERVER_BASE_CHECKSUM_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/types/span.h"

struct XXH3_state_s;  // xxHash's

namespace sinq {

// XXH3, 64 bits, fed piece by piece. Not thread-safe. Movable. Throws std::bad_alloc, like any
// container.
class Checksum {
 public:
  Checksum();
  void Update(absl::Span<const std::byte> data);
  // Of all so far; may be called between updates.
  uint64_t Value() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_CHECKSUM_H_
