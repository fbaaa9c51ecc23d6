// SHA-256 as `sha256sum` prints it, fed piece by piece.
#ifndef SINQ_SERVER_BASE_SHA256_H_
#define SINQ_SERVER_BASE_SHA256_H_

#include <cstddef>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

struct evp_md_ctx_st;  // OpenSSL's EVP_MD_CTX

namespace sinq {

// Not thread-safe. Movable. Copy() forks the state, e.g. to publish a digest so far and go on.
class Sha256 {
 public:
  Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  ~Sha256();

  void Update(absl::Span<const std::byte> data);
  void Update(absl::string_view data);
  Sha256 Copy() const;
  // 64 lower-case hex digits. May be called repeatedly and between updates. Throws std::bad_alloc,
  // like any container, if OpenSSL cannot get memory; it has no other way to fail.
  std::string HexDigest() const;

 private:
  struct Free {
    void operator()(evp_md_ctx_st* context) const;
  };
  std::unique_ptr<evp_md_ctx_st, Free> context_;
};

// Digest of one piece.
std::string Sha256Hex(absl::string_view data);

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_SHA256_H_
