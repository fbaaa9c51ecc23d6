#include "server/base/sha256.h"

#include <string>
#include <utility>

#include "gtest/gtest.h"

namespace sinq {
namespace {

// FIPS 180-4 examples.
constexpr absl::string_view kEmpty =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
constexpr absl::string_view kAbc =
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

using Engine = Sha256::Engine;

// By another road than the one under test: OpenSSL's.
std::string Reference(absl::string_view data) {
  Sha256 sha(Engine::kOpenSsl);
  sha.Update(data);
  return sha.HexDigest();
}

std::string Noise(size_t size_bytes) {
  std::string noise(size_bytes, '\0');
  uint32_t state = 1;
  for (char& byte : noise) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<char>(state >> 24);
  }
  return noise;
}

absl::Span<const std::byte> BytesOf(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

TEST(Sha256, KnownDigests) {
  EXPECT_EQ(Sha256Hex(""), kEmpty);
  EXPECT_EQ(Sha256Hex("abc"), kAbc);
  EXPECT_EQ(Reference(""), kEmpty);
  EXPECT_EQ(Reference("abc"), kAbc);
}

TEST(Sha256, PiecesMakeTheSameDigestAndReadingItChangesNothing) {
  for (const Engine engine : {Engine::kBest, Engine::kOpenSsl}) {
    Sha256 sha(engine);
    EXPECT_EQ(sha.HexDigest(), kEmpty);
    sha.Update("a");
    const Sha256 fork = sha.Copy();
    sha.HexDigest();
    sha.Update("bc");
    Sha256 moved = std::move(sha);
    EXPECT_EQ(moved.HexDigest(), kAbc);
    EXPECT_EQ(fork.HexDigest(), Sha256Hex("a"));
  }
}

// Two blocks and a bit: every place where a piece or the padding can meet a block's edge.
constexpr size_t kLengths = 2 * kSha256BlockBytes + 5;

TEST(Sha256, EveryLengthAndSplitAgreesWithOpenSsl) {
  const std::string noise = Noise(kLengths);
  for (size_t length = 0; length <= kLengths; ++length) {
    const absl::string_view text = absl::string_view(noise).substr(0, length);
    const std::string want = Reference(text);
    for (size_t split = 0; split <= length; ++split) {
      Sha256 sha;
      sha.Update(text.substr(0, split));
      sha.Update(text.substr(split));
      ASSERT_EQ(sha.HexDigest(), want) << length << " bytes, split at " << split;
    }
  }
}

TEST(Sha256, BothAtOnceAreWhatEachIsAloneAtAnyLengthAndPhase) {
  const std::string noise = Noise(3 * kLengths);
  const absl::string_view text = noise;
  for (size_t begun = 0; begun <= kSha256BlockBytes; begun += 3) {
    for (size_t first = 0; first <= kLengths; first += 7) {
      for (size_t second = 0; second <= kLengths; second += 11) {
        Sha256 one, two;
        one.Update(text.substr(0, begun));
        Sha256::UpdateBoth(one, BytesOf(text.substr(begun, first)), two,
                           BytesOf(text.substr(1, second)));
        Sha256::UpdateBoth(two, BytesOf(text.substr(1 + second, begun)), one, {});
        ASSERT_EQ(one.HexDigest(), Reference(text.substr(0, begun + first)));
        ASSERT_EQ(two.HexDigest(), Reference(text.substr(1, second + begun)));
      }
    }
  }
}

TEST(Sha256, BothAtOnceWorkWithEveryPairOfEngines) {
  const std::string noise = Noise(10'000);
  const absl::string_view text = noise;
  for (const Engine first : {Engine::kBest, Engine::kOpenSsl}) {
    for (const Engine second : {Engine::kBest, Engine::kOpenSsl}) {
      Sha256 one(first), two(second);
      Sha256::UpdateBoth(one, BytesOf(text), two, BytesOf(text));
      Sha256::UpdateBoth(one, BytesOf(text.substr(0, 77)), two, BytesOf(text.substr(5)));
      EXPECT_EQ(one.HexDigest(), Reference(noise + noise.substr(0, 77)));
      EXPECT_EQ(two.HexDigest(), Reference(noise + noise.substr(5)));
    }
  }
}

}  // namespace
}  // namespace sinq
