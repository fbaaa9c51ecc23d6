#include "server/base/text.h"

#include <string>

#include "gtest/gtest.h"

namespace sinq {
namespace {

TEST(PrintableText, KeepsGoodTextAndEscapesTheRest) {
  EXPECT_EQ(PrintableText("größe 日本 😀", 100), "größe 日本 😀");
  EXPECT_EQ(PrintableText("a\nb", 100), "a\\x0ab");
  EXPECT_EQ(PrintableText("\xc0\xaf", 100), "\\xc0\\xaf");          // overlong slash
  EXPECT_EQ(PrintableText("\xed\xa0\x80", 100), "\\xed\\xa0\\x80");  // surrogate
  EXPECT_EQ(PrintableText("\xe6\x97", 100), "\\xe6\\x97");          // cut short
}

TEST(PrintableText, IsBoundedAtEverySize) {
  const std::string text = "日本\xff語 text";
  for (size_t limit = 0; limit < 30; ++limit) {
    const std::string out = PrintableText(text, limit);
    EXPECT_LE(out.size(), limit);
    EXPECT_TRUE(IsValidUtf8(out)) << limit;
  }
  EXPECT_EQ(PrintableText("abcdef", 5), "ab...");
  EXPECT_EQ(PrintableText("abcde", 5), "abcde");
}

}  // namespace
}  // namespace sinq
