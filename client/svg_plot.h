// Plots as inline SVG for a page that brings its own colours: series i is painted by the CSS class
// "c<i>" (stroke or fill), text and lines take the page's. All labels are taken as plain text.
#ifndef SINQ_CLIENT_SVG_PLOT_H_
#define SINQ_CLIENT_SVG_PLOT_H_

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace sinq::client {

// Plain text as the content of an HTML element or of a quoted attribute. Control characters, which
// no page may have, become U+FFFD.
std::string HtmlText(absl::string_view text);

// Series and parts beyond this number share the last class.
inline constexpr size_t kPlotClasses = 8;

// What a value looks like in an axis, a tooltip, a cell.
using ValueText = std::function<std::string(double)>;

// Round values that cover [low, high], about `count` of them, ascending; `low` alone if they are
// equal. Values must be finite.
std::vector<double> AxisTicks(double low, double high, int count);

// values[row][column]; absent cells stay empty. The fuller the colour, the larger the value.
struct HeatMap {
  std::vector<std::string> rows, columns;
  std::vector<std::vector<std::optional<double>>> values;
  std::string column_title;
  ValueText text;
};
std::string HeatMapSvg(const HeatMap& map);

// One line per series over the same x axis; absent values interrupt it.
struct LineChart {
  std::vector<std::string> x_labels;
  std::string x_title;
  struct Series {
    std::string name;
    std::vector<std::optional<double>> values;
  };
  std::vector<Series> series;
  ValueText text;
};
std::string LineChartSvg(const LineChart& chart);

// Points with both coordinates on logarithmic axes of the same range, with the diagonal. Points
// that are not positive and finite are left out.
struct Scatter {
  std::string x_title, y_title;
  struct Point {
    double x = 0, y = 0;
    size_t series = 0;
    std::string label;
  };
  std::vector<Point> points;
  ValueText text;
};
std::string ScatterSvg(const Scatter& scatter);

// One horizontal bar cut into parts; parts of 0 are left out.
struct BarPart {
  std::string name;
  double value = 0;
  std::string text;
};
std::string StackedBarSvg(const std::vector<BarPart>& parts);

// Names of series beside their colours, as an HTML list.
std::string LegendHtml(const std::vector<std::string>& names);

}  // namespace sinq::client

#endif  // SINQ_CLIENT_SVG_PLOT_H_
