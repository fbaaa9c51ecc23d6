// SHA-256 as `sha256sum` prints it, fed piece by piece.
#ifndef SINQ_SERVER_BASE_SHA256_H_
#define SINQ_SERVER_BASE_SHA256_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/base/sha256_blocks.h"

struct evp_md_ctx_st;  // OpenSSL's EVP_MD_CTX

namespace sinq {

// Not thread-safe. Movable. Copy() forks the state, e.g. to publish a digest so far and go on.
class Sha256 {
 public:
  // kBest: the processor's instructions where sha256_blocks.h knows them, else OpenSSL.
  enum class Engine : uint8_t { kBest, kOpenSsl };
  explicit Sha256(Engine engine = Engine::kBest);
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  ~Sha256();

  void Update(absl::Span<const std::byte> data);
  void Update(absl::string_view data);
  // What the two updates do, in little more time than one of them takes if both are alike long.
  // `first` and `second` must be different objects; their data may be the same bytes.
  static void UpdateBoth(Sha256& first, absl::Span<const std::byte> first_data, Sha256& second,
                         absl::Span<const std::byte> second_data);
  Sha256 Copy() const;
  // 64 lower-case hex digits. May be called repeatedly and between updates. Throws std::bad_alloc,
  // like any container, if OpenSSL cannot get memory; it has no other way to fail.
  std::string HexDigest() const;

 private:
  struct Free {
    void operator()(evp_md_ctx_st* context) const;
  };
  // The bytes of `data` that complete a block begun earlier; without one, none. Returns the rest.
  absl::Span<const std::byte> CompleteBlock(absl::Span<const std::byte> data);
  void UpdateBlocks(absl::Span<const std::byte> data);
  std::string FinishBlocks();

  std::unique_ptr<evp_md_ctx_st, Free> context_;  // null: with the members below
  Sha256Words words_;
  uint64_t size_bytes_ = 0;                         // so far; the last % 64 of them are in tail_
  std::array<std::byte, kSha256BlockBytes> tail_ = {};
};

// Digest of one piece.
std::string Sha256Hex(absl::string_view data);

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_SHA256_H_
