#include "client/svg_plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_format.h"

namespace sinq::client {
namespace {

using testing::DoubleNear;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

std::string Plain(double value) { return absl::StrFormat("%g", value); }

TEST(SvgPlot, TextIsEscaped) {
  EXPECT_EQ(HtmlText("a<b>&\"'c\n"), "a&lt;b&gt;&amp;&quot;&#39;c\ufffd");
  EXPECT_EQ(HtmlText("\u00e9\u202e"), "\u00e9\u202e");
}

TEST(SvgPlot, TicksAreRoundAndCover) {
  EXPECT_THAT(AxisTicks(21.17, 22.15, 5),
              ElementsAre(DoubleNear(21.0, 1e-9), DoubleNear(21.2, 1e-9), DoubleNear(21.4, 1e-9),
                          DoubleNear(21.6, 1e-9), DoubleNear(21.8, 1e-9), DoubleNear(22.0, 1e-9),
                          DoubleNear(22.2, 1e-9)));
  EXPECT_THAT(AxisTicks(0, 10, 5), ElementsAre(0, 2, 4, 6, 8, 10));
}

TEST(SvgPlot, TicksOfAbsurdRanges) {
  EXPECT_THAT(AxisTicks(3, 3, 5), ElementsAre(3));
  EXPECT_THAT(AxisTicks(0, 5e-324, 5), ElementsAre(0));
  EXPECT_THAT(AxisTicks(-1.7e308, 1.7e308, 5), ElementsAre(-1.7e308));
  EXPECT_LE(AxisTicks(1e300, 1.0000000000000002e300, 5).size(), 12u);
}

TEST(SvgPlot, HeatGrowsWithTheValue) {
  const HeatMap map{{"a"}, {"0", "1", "2"}, {{1.0, 3.0, std::nullopt}}, "layer", Plain};
  const std::string svg = HeatMapSvg(map);
  EXPECT_THAT(svg, HasSubstr("fill-opacity=\"0.06\"><title>a, layer 0: 1</title>"));
  EXPECT_THAT(svg, HasSubstr("fill-opacity=\"1\"><title>a, layer 1: 3</title>"));
  EXPECT_THAT(svg, Not(HasSubstr("layer 2")));
}

TEST(SvgPlot, LineBreaksWhereAValueIsAbsent) {
  const LineChart chart{
      {"0", "1", "2", "3"}, "layer", {{"a", {1.0, 2.0, std::nullopt, 4.0}}}, Plain};
  const std::string svg = LineChartSvg(chart);
  const size_t path = svg.find("<path d=\"");
  ASSERT_NE(path, std::string::npos);
  const std::string drawn = svg.substr(path, svg.find("class", path) - path);
  EXPECT_EQ(std::count(drawn.begin(), drawn.end(), 'M'), 2);
  EXPECT_EQ(std::count(drawn.begin(), drawn.end(), 'L'), 1);
}

TEST(SvgPlot, ScatterLeavesOutWhatHasNoLogarithm) {
  const Scatter scatter{
      "x", "y", {{10, 1, 0, "kept"}, {0, 1, 0, "zero"}, {-1, 1, 0, "less"}}, Plain};
  const std::string svg = ScatterSvg(scatter);
  EXPECT_THAT(svg, HasSubstr("kept: 10"));
  EXPECT_THAT(svg, Not(HasSubstr("zero")));
  EXPECT_THAT(svg, Not(HasSubstr("less")));
}

TEST(SvgPlot, BarPartsFillTheWidth) {
  const std::string svg = StackedBarSvg({{"a", 3, "three"}, {"none", 0, "0"}, {"b", 1, "one"}});
  EXPECT_THAT(svg, HasSubstr("x=\"0\" y=\"2\" width=\"360\""));
  EXPECT_THAT(svg, HasSubstr("x=\"360\" y=\"2\" width=\"120\""));
  EXPECT_THAT(svg, Not(HasSubstr("none")));
}

TEST(SvgPlot, LabelsAreEscaped) {
  const HeatMap map{{"<r>"}, {"<c>"}, {{1.0}}, "<t>", Plain};
  for (const std::string& svg :
       {HeatMapSvg(map), LineChartSvg({{"<x>"}, "<t>", {{"<s>", {1.0}}}, Plain}),
        ScatterSvg({"<x>", "<y>", {{1, 1, 0, "<l>"}}, Plain}), StackedBarSvg({{"<n>", 1, "<v>"}}),
        LegendHtml({"<n>"})}) {
    for (const char* raw : {"<r>", "<c>", "<t>", "<x>", "<y>", "<s>", "<l>", "<n>", "<v>"})
      EXPECT_THAT(svg, Not(HasSubstr(raw)));
  }
}

}  // namespace
}  // namespace sinq::client
