#include "server/base/sha256.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "absl/strings/escaping.h"

namespace sinq {
namespace {

constexpr Sha256Words kFirstWords = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                     0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

// OpenSSL's digest calls fail only when memory runs out.
void RequireMemory(int openssl_result) {
  if (openssl_result != 1) throw std::bad_alloc();
}

absl::Span<const std::byte> BytesOf(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// A message ends with a bit, zeros and its length in bits, which fill its last block or two.
std::string Padding(uint64_t size_bytes) {
  constexpr size_t kLengthBytes = 8;
  const size_t begun = size_bytes % kSha256BlockBytes;
  const bool fits = begun < kSha256BlockBytes - kLengthBytes;
  std::string padding((fits ? 1 : 2) * kSha256BlockBytes - begun, '\0');
  padding[0] = static_cast<char>(0x80);
  uint64_t bits = size_bytes * 8;
  for (size_t i = 1; i <= kLengthBytes; ++i, bits >>= 8)
    padding[padding.size() - i] = static_cast<char>(bits & 0xFF);
  return padding;
}

}  // namespace

void Sha256::Free::operator()(evp_md_ctx_st* context) const { EVP_MD_CTX_free(context); }

Sha256::Sha256(Engine engine) : words_(kFirstWords) {
  if (engine == Engine::kBest && HasSha256Instructions()) return;
  context_.reset(EVP_MD_CTX_new());
  RequireMemory(context_ != nullptr);
  RequireMemory(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr));
}
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;
Sha256::~Sha256() = default;

void Sha256::Update(absl::Span<const std::byte> data) {
  if (context_ != nullptr) {
    RequireMemory(EVP_DigestUpdate(context_.get(), data.data(), data.size()));
  } else {
    UpdateBlocks(CompleteBlock(data));
  }
}

void Sha256::Update(absl::string_view data) { Update(BytesOf(data)); }

void Sha256::UpdateBoth(Sha256& first, absl::Span<const std::byte> first_data, Sha256& second,
                        absl::Span<const std::byte> second_data) {
  if (first.context_ == nullptr && second.context_ == nullptr) {
    first_data = first.CompleteBlock(first_data);
    second_data = second.CompleteBlock(second_data);
    const size_t blocks = std::min(first_data.size(), second_data.size()) / kSha256BlockBytes;
    const size_t size_bytes = blocks * kSha256BlockBytes;
    Sha256BlocksOfTwo(first.words_, first_data.data(), second.words_, second_data.data(), blocks);
    first.size_bytes_ += size_bytes;
    second.size_bytes_ += size_bytes;
    first_data.remove_prefix(size_bytes);
    second_data.remove_prefix(size_bytes);
  }
  first.Update(first_data);
  second.Update(second_data);
}

absl::Span<const std::byte> Sha256::CompleteBlock(absl::Span<const std::byte> data) {
  const size_t begun = size_bytes_ % kSha256BlockBytes;
  if (begun == 0) return data;
  const size_t taken = std::min(data.size(), kSha256BlockBytes - begun);
  std::copy_n(data.begin(), taken, tail_.begin() + begun);
  size_bytes_ += taken;
  if (begun + taken == kSha256BlockBytes) Sha256Blocks(words_, tail_.data(), 1);
  return data.subspan(taken);
}

// Between blocks, or with no data left.
void Sha256::UpdateBlocks(absl::Span<const std::byte> data) {
  if (data.empty()) return;
  const size_t blocks = data.size() / kSha256BlockBytes;
  Sha256Blocks(words_, data.data(), blocks);
  const absl::Span<const std::byte> rest = data.subspan(blocks * kSha256BlockBytes);
  std::copy(rest.begin(), rest.end(), tail_.begin());
  size_bytes_ += data.size();
}

std::string Sha256::FinishBlocks() {
  Update(Padding(size_bytes_));
  std::string digest;
  for (const uint32_t word : words_) {
    for (int shift = 24; shift >= 0; shift -= 8)
      digest.push_back(static_cast<char>((word >> shift) & 0xFF));
  }
  return digest;
}

Sha256 Sha256::Copy() const {
  Sha256 copy(context_ == nullptr ? Engine::kBest : Engine::kOpenSsl);
  if (context_ != nullptr) {
    RequireMemory(EVP_MD_CTX_copy_ex(copy.context_.get(), context_.get()));
  } else {
    copy.words_ = words_;
    copy.size_bytes_ = size_bytes_;
    copy.tail_ = tail_;
  }
  return copy;
}

std::string Sha256::HexDigest() const {
  Sha256 last = Copy();
  if (last.context_ == nullptr) return absl::BytesToHexString(last.FinishBlocks());
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
