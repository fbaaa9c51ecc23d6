#include "client/report_html.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>

#include "absl/strings/str_cat.h"
#include "client/report_style.h"

namespace sinq::client {
namespace {

using testing::HasSubstr;
using testing::Not;

TensorReport Quantized(const std::string& projection, int64_t layer) {
  TensorReport tensor;
  tensor.name = absl::StrCat("model.layers.", layer, ".", projection, ".weight");
  tensor.projection = absl::StrCat("model.layers.", projection);
  tensor.action = "quantize";
  tensor.layer = layer;
  tensor.bits = 4;
  tensor.relative_error = 0.1;
  tensor.imbalance_before = 4;
  tensor.imbalance_after = 2;
  return tensor;
}

QualityReport Model(int64_t layers) {
  QualityReport report;
  for (int64_t layer = 0; layer < layers; ++layer) {
    for (const char* projection : {"mlp.up_proj", "self_attn.q_proj"}) {
      report.worst.push_back(report.tensors.size());
      report.tensors.push_back(Quantized(projection, layer));
      ++report.quantized_tensors;
    }
  }
  return report;
}

std::string Page(const QualityReport& report) {
  const auto page = ReportHtml(report);
  EXPECT_TRUE(page.ok()) << page.status();
  return page.ok() ? *page : "";
}

size_t CountOf(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(ReportHtml, HasPlotsAndTables) {
  const std::string page = Page(Model(12));
  for (const char* part : {"Signal to noise by layer", "Error by layer and projection",
                           "Imbalance before and after", "The 10 worst", "All tensors"}) {
    EXPECT_THAT(page, HasSubstr(part));
  }
  EXPECT_EQ(CountOf(page, "<tr><td"), 24u + 10u);
  // What all projections begin with is not repeated.
  EXPECT_THAT(page, HasSubstr(">mlp.up_proj</text>"));
}

TEST(ReportHtml, OpensElementsAsOftenAsItClosesThem) {
  const std::string page = Page(Model(3));
  for (const char* element : {"svg", "text", "table", "tr", "td", "figure", "div", "ul", "li",
                              "bdi", "section", "button"}) {
    const std::regex open(absl::StrCat("<", element, "[ >]"));
    const auto opened = std::distance(std::sregex_iterator(page.begin(), page.end(), open), {});
    EXPECT_EQ(static_cast<size_t>(opened), CountOf(page, absl::StrCat("</", element, ">")))
        << element;
  }
}

TEST(ReportHtml, NeedsNothingElse) {
  const std::string page = Page(Model(3));
  for (const char* outside : {"http:", "https:", "src=", "href=", "@import", "url("})
    EXPECT_THAT(page, Not(HasSubstr(outside)));
}

TEST(ReportHtml, HostileTextStaysText) {
  constexpr char kAttack[] = "\"><script>alert(1)</script><img src=x onerror='x'>&\x01";
  QualityReport report = Model(2);
  report.source_uri = report.recipe = report.job_id = report.code_version = kAttack;
  for (TensorReport& tensor : report.tensors)
    tensor.name = tensor.projection = tensor.action = tensor.reason = kAttack;
  for (TensorReport& tensor : report.tensors) tensor.action = "quantize";
  report.tensors.push_back(report.tensors[0]);
  report.tensors.back().action = kAttack;
  const std::string page = Page(report);
  EXPECT_EQ(CountOf(page, "<script"), 1u);
  EXPECT_EQ(CountOf(page, "<img"), 0u);
  EXPECT_THAT(page, Not(HasSubstr("'x'")));
  EXPECT_THAT(page, Not(HasSubstr("\x01")));
  EXPECT_THAT(page, HasSubstr("&quot;&gt;&lt;script&gt;alert(1)"));
}

TEST(ReportHtml, PolicyNamesTheOnlyScript) {
  // printf %s "$script" | openssl dgst -sha256 -binary | base64 has 44 characters.
  const std::string page = Page(Model(1));
  const std::regex digest("script-src 'sha256-([A-Za-z0-9+/]{43}=)'");
  EXPECT_TRUE(std::regex_search(page, digest));
  EXPECT_THAT(page, HasSubstr(absl::StrCat("<script>", ReportScript(), "</script>")));
}

TEST(ReportHtml, WidthsAreShownWhenMixed) {
  QualityReport report = Model(2);
  EXPECT_THAT(Page(report), Not(HasSubstr("Bits by layer")));
  report.tensors[1].bits = 3;
  EXPECT_THAT(Page(report), HasSubstr("Bits by layer"));
}

TEST(ReportHtml, SizesAreShownWhereTheManifestHasThem) {
  QualityReport report = Model(2);
  EXPECT_THAT(Page(report), Not(HasSubstr("Where the bytes are")));
  report.has_bytes = true;
  report.bytes = {750, 200, 50, 0, 0};
  EXPECT_THAT(Page(report), HasSubstr("codes: 750 B, 75.0 %"));
}

TEST(ReportHtml, LargeModelIsCut) {
  const std::string page = Page(Model(3000));
  EXPECT_EQ(CountOf(page, "<tr><td"), kMostTableRows + kWorstShown);
  EXPECT_THAT(page, HasSubstr("The 5000 worst of 6000"));
  EXPECT_THAT(page, HasSubstr("400 layers"));
  EXPECT_LT(page.size(), size_t{8} << 20);
}

TEST(ReportHtml, EmptyReport) {
  EXPECT_THAT(Page(QualityReport()), HasSubstr("All tensors"));
}

TEST(ReportHtml, AbsurdFigures) {
  QualityReport report = Model(2);
  report.tensors[0].relative_error = 1e308;
  report.tensors[1].relative_error = 5e-324;
  report.tensors[2].imbalance_before = 1e308;
  report.tensors[3].imbalance_after = 1e-308;
  const std::string page = Page(report);
  EXPECT_THAT(page, Not(HasSubstr("nan")));
  EXPECT_LT(page.size(), size_t{1} << 20);
}

}  // namespace
}  // namespace sinq::client
