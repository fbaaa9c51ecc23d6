#include "server/base/sha256.h"

#include <openssl/evp.h>

#include <new>

#include "absl/strings/escaping.h"

namespace sinq {
namespace {

// OpenSSL's digest calls fail only when memory runs out.
void RequireMemory(int openssl_result) {
  if (openssl_result != 1) throw std::bad_alloc();
}

}  // namespace

void Sha256::Free::operator()(evp_md_ctx_st* context) const { EVP_MD_CTX_free(context); }

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  RequireMemory(context_ != nullptr);
  RequireMemory(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr));
}
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;
Sha256::~Sha256() = default;

void Sha256::Update(absl::Span<const std::byte> data) {
  RequireMemory(EVP_DigestUpdate(context_.get(), data.data(), data.size()));
}

void Sha256::Update(absl::string_view data) {
  RequireMemory(EVP_DigestUpdate(context_.get(), data.data(), data.size()));
}

Sha256 Sha256::Copy() const {
  Sha256 copy;
  RequireMemory(EVP_MD_CTX_copy_ex(copy.context_.get(), context_.get()));
  return copy;
}

std::string Sha256::HexDigest() const {
  Sha256 last = Copy();
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  RequireMemory(EVP_DigestFinal_ex(last.context_.get(), digest, &size));
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), size));
}

std::string Sha256Hex(absl::string_view data) {
  Sha256 sha;
  sha.Update(data);
  return sha.HexDigest();
}

}  // namespace sinq
