#include "client/digest.h"

#include <openssl/evp.h>

#include <array>

#include "absl/strings/escaping.h"
#include "client/local_file.h"

namespace sinq::client {

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  bool usable = context != nullptr && EVP_DigestInit_ex(context, EVP_sha256(), nullptr) == 1;
  ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {}
Sha256::~Sha256() = default;

absl::Status Sha256::Update(absl::string_view bytes) {
  if (state_->usable && EVP_DigestUpdate(state_->context, bytes.data(), bytes.size()) == 1) {
    return absl::OkStatus();
  }
  return absl::InternalError("OpenSSL cannot compute SHA-256.");
}

absl::StatusOr<std::string> Sha256::Finish() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned int size = 0;
  if (!state_->usable || EVP_DigestFinal_ex(state_->context, digest.data(), &size) != 1) {
    return absl::InternalError("OpenSSL cannot compute SHA-256.");
  }
  state_->usable = false;
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest.data()), size));
}

absl::StatusOr<std::string> FileSha256(const std::string& path, const CancelToken& cancel) {
  const auto file = LocalFile::OpenForRead(path);
  if (!file.ok()) return file.status();
  Sha256 sha;
  const absl::Status status =
      file->ForEachChunk(0, file->size_bytes(), [&](absl::string_view bytes) {
        if (cancel.cancelled()) return absl::CancelledError("Interrupted.");
        return sha.Update(bytes);
      });
  if (!status.ok()) return status;
  return sha.Finish();
}

}  // namespace sinq::client
