#include "server/base/checksum.h"

#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "gtest/gtest.h"

namespace sinq {
namespace {

absl::Span<const std::byte> BytesOf(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

TEST(Checksum, PiecesMakeTheSameAndEveryBitCounts) {
  // Of no bytes, as xxhsum -H3 prints it: records in a job store outlive the server's version.
  EXPECT_EQ(Checksum().Value(), 0x2d06800538d394c2u);
  std::string text(5000, 'x');
  Checksum whole, pieces;
  whole.Update(BytesOf(text));
  pieces.Update(BytesOf(text.substr(0, 1)));
  EXPECT_NE(pieces.Value(), whole.Value());
  Checksum moved = std::move(pieces);
  moved.Update(BytesOf(text.substr(1)));
  EXPECT_EQ(moved.Value(), whole.Value());
  text[4321] ^= 1;
  Checksum other;
  other.Update(BytesOf(text));
  EXPECT_NE(other.Value(), whole.Value());
}

}  // namespace
}  // namespace sinq
