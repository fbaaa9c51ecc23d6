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

TEST(Sha256, KnownDigests) {
  EXPECT_EQ(Sha256Hex(""), kEmpty);
  EXPECT_EQ(Sha256Hex("abc"), kAbc);
}

TEST(Sha256, PiecesMakeTheSameDigestAndReadingItChangesNothing) {
  Sha256 sha;
  EXPECT_EQ(sha.HexDigest(), kEmpty);
  sha.Update("a");
  const Sha256 fork = sha.Copy();
  sha.HexDigest();
  sha.Update("bc");
  Sha256 moved = std::move(sha);
  EXPECT_EQ(moved.HexDigest(), kAbc);
  EXPECT_EQ(fork.HexDigest(), Sha256Hex("a"));
}

}  // namespace
}  // namespace sinq
