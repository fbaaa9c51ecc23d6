#include "client/svg_plot.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace sinq::client {
namespace {

// User units; the page scales them to its width. Small, so that text stays readable on a phone.
constexpr double kWidth = 480;
constexpr double kTextHeight = 12;
constexpr double kCharWidth = 6.2;  // of the 11-unit font, on the wide side

std::string Number(double value) {
  std::string text = absl::StrFormat("%.2f", value);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text;
}

std::string ClassOf(size_t series) {
  return absl::StrCat("c", std::min(series, kPlotClasses - 1));
}

std::string Open(double width, double height, absl::string_view title) {
  return absl::StrCat("<svg viewBox=\"0 0 ", Number(width), " ", Number(height),
                      "\" role=\"img\" aria-label=\"", HtmlText(title), "\" style=\"min-width:",
                      Number(width > kWidth ? width / 1.3 : 0), "px\">\n");
}

// `anchor`: "start", "middle", "end".
std::string Label(double x, double y, absl::string_view anchor, absl::string_view text) {
  return absl::StrCat("<text x=\"", Number(x), "\" y=\"", Number(y), "\" text-anchor=\"", anchor,
                      "\">", HtmlText(text), "</text>\n");
}

std::string Line(double x1, double y1, double x2, double y2, absl::string_view css_class) {
  return absl::StrCat("<line x1=\"", Number(x1), "\" y1=\"", Number(y1), "\" x2=\"", Number(x2),
                      "\" y2=\"", Number(y2), "\" class=\"", css_class, "\"/>\n");
}

std::string Tooltip(absl::string_view text) {
  return absl::StrCat("<title>", HtmlText(text), "</title>");
}

// Every nth label, so that they do not run into each other.
size_t LabelStep(const std::vector<std::string>& labels, double pitch) {
  size_t longest = 1;
  for (const std::string& label : labels) longest = std::max(longest, label.size());
  return std::max<size_t>(
      1, static_cast<size_t>(std::ceil((static_cast<double>(longest) + 1) * kCharWidth / pitch)));
}

size_t LongestOf(const std::vector<std::string>& labels) {
  size_t longest = 0;
  for (const std::string& label : labels) longest = std::max(longest, label.size());
  return longest;
}

// Long names keep their end, which tells them apart.
std::string Shortened(const std::string& label, size_t most) {
  if (label.size() <= most) return label;
  size_t from = label.size() - (most - 1);
  // Not in the middle of a character.
  while (from < label.size() && (static_cast<unsigned char>(label[from]) & 0xc0) == 0x80) ++from;
  return absl::StrCat("\u2026", label.substr(from));
}

struct Range {
  double low = 0, high = 1;
};

Range RangeOf(const std::vector<std::vector<std::optional<double>>>& values) {
  std::optional<Range> range;
  for (const auto& row : values) {
    for (const std::optional<double>& value : row) {
      if (!value || !std::isfinite(*value)) continue;
      if (!range) range = Range{*value, *value};
      range->low = std::min(range->low, *value);
      range->high = std::max(range->high, *value);
    }
  }
  return range.value_or(Range{});
}

// A straight map of values to user units.
struct Axis {
  double low, high, from, to;
  double At(double value) const {
    return high > low ? from + (value - low) / (high - low) * (to - from) : (from + to) / 2;
  }
};

// Decimal exponents of round values within [low, high], fewer of each decade the more decades.
std::vector<double> LogTicks(double low, double high) {
  const bool narrow = high - low < 1.2, wide = high - low > 3;
  std::vector<double> ticks;
  for (double power = std::floor(low); power <= std::ceil(high); ++power) {
    for (const double step : {1.0, 1.5, 2.0, 3.0, 5.0, 7.0}) {
      const bool coarse = step == 1.0 || (!wide && (step == 2.0 || step == 5.0));
      if (!coarse && !narrow) continue;
      const double exponent = power + std::log10(step);
      if (exponent >= low && exponent <= high) ticks.push_back(exponent);
    }
  }
  return ticks;
}

std::string SeriesPath(const LineChart::Series& series, size_t index, const Axis& x,
                       const Axis& y) {
  std::string path;
  bool pen_down = false;
  for (size_t i = 0; i < series.values.size(); ++i) {
    const std::optional<double>& value = series.values[i];
    if (!value || !std::isfinite(*value)) {
      pen_down = false;
      continue;
    }
    const std::string at =
        absl::StrCat(Number(x.At(static_cast<double>(i))), " ", Number(y.At(*value)));
    absl::StrAppend(&path, pen_down ? "L" : "M", at);
    pen_down = true;
  }
  return absl::StrCat("<path d=\"", path, "\" class=\"line ", ClassOf(index), "\"/>\n");
}

std::string SeriesDots(const LineChart& chart, size_t index, const Axis& x, const Axis& y) {
  const LineChart::Series& series = chart.series[index];
  std::string dots;
  for (size_t i = 0; i < series.values.size() && i < chart.x_labels.size(); ++i) {
    const std::optional<double>& value = series.values[i];
    if (!value || !std::isfinite(*value)) continue;
    absl::StrAppend(&dots, "<circle cx=\"", Number(x.At(static_cast<double>(i))), "\" cy=\"",
                    Number(y.At(*value)), "\" r=\"2.4\" class=\"dot ", ClassOf(index), "\">",
                    Tooltip(absl::StrCat(series.name, ", ", chart.x_title, " ", chart.x_labels[i],
                                         ": ", chart.text(*value))),
                    "</circle>\n");
  }
  return dots;
}

std::string HeatCells(const HeatMap& map, size_t row, const Range& range, double left, double top,
                      double width, double height) {
  std::string cells;
  for (size_t column = 0; column < map.columns.size(); ++column) {
    const std::optional<double>& value = map.values[row][column];
    if (!value || !std::isfinite(*value)) continue;
    const double share =
        range.high > range.low ? (*value - range.low) / (range.high - range.low) : 0.5;
    absl::StrAppend(&cells, "<rect x=\"", Number(left + static_cast<double>(column) * width),
                    "\" y=\"", Number(top), "\" width=\"", Number(width - 0.6), "\" height=\"",
                    Number(height - 0.6), "\" class=\"heat\" fill-opacity=\"",
                    Number(0.06 + 0.94 * share), "\">",
                    Tooltip(absl::StrCat(map.rows[row], ", ", map.column_title, " ",
                                         map.columns[column], ": ", map.text(*value))),
                    "</rect>\n");
  }
  return cells;
}

// The scale beneath a heat map: smallest to largest.
std::string HeatScale(const HeatMap& map, const Range& range, double left, double top) {
  constexpr int kSteps = 24;
  constexpr double kStepWidth = 5;
  std::string scale = Label(left - 4, top + 9, "end", map.text(range.low));
  for (int i = 0; i < kSteps; ++i) {
    absl::StrAppend(&scale, "<rect x=\"", Number(left + i * kStepWidth), "\" y=\"", Number(top),
                    "\" width=\"", Number(kStepWidth), "\" height=\"10\" class=\"heat\" ",
                    "fill-opacity=\"", Number(0.06 + 0.94 * i / (kSteps - 1)), "\"/>\n");
  }
  return absl::StrCat(
      scale, Label(left + kSteps * kStepWidth + 4, top + 9, "start", map.text(range.high)));
}

}  // namespace

std::string HtmlText(absl::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == '\x7f') {
          out += "\ufffd";
        } else {
          out += c;
        }
    }
  }
  return out;
}

std::vector<double> AxisTicks(double low, double high, int count) {
  if (!(high > low)) return {low};
  const double raw = (high - low) / std::max(count, 1);
  if (!std::isfinite(raw) || raw < std::numeric_limits<double>::min()) return {low};
  const double power = std::pow(10, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double nice : {1.0, 2.0, 5.0}) {
    if (nice * power >= raw) {
      step = nice * power;
      break;
    }
  }
  std::vector<double> ticks;
  const auto first = static_cast<int64_t>(std::floor(low / step));
  const auto last = static_cast<int64_t>(std::ceil(high / step));
  for (int64_t i = first; i <= last; ++i) ticks.push_back(static_cast<double>(i) * step);
  return ticks;
}

std::string HeatMapSvg(const HeatMap& map) {
  constexpr size_t kLongestName = 26;
  constexpr double kRowHeight = 18, kSmallestCell = 7, kLargestCell = 80;
  const size_t name_size = std::min(LongestOf(map.rows), kLongestName);
  const double left = 8 + static_cast<double>(name_size) * kCharWidth;
  const auto columns = static_cast<double>(std::max<size_t>(map.columns.size(), 1));
  const double cell = std::clamp((kWidth - left - 4) / columns, kSmallestCell, kLargestCell);
  const double grid_height = kRowHeight * static_cast<double>(map.rows.size());
  const double width = std::max(kWidth, left + cell * columns + 4);
  const Range range = RangeOf(map.values);
  std::string svg = Open(width, grid_height + 52, map.column_title);
  for (size_t row = 0; row < map.rows.size(); ++row) {
    const double top = kRowHeight * static_cast<double>(row);
    svg += Label(left - 6, top + 13, "end", Shortened(map.rows[row], kLongestName));
    svg += HeatCells(map, row, range, left, top, cell, kRowHeight);
  }
  for (size_t i = 0; i < map.columns.size(); i += LabelStep(map.columns, cell)) {
    svg += Label(left + (static_cast<double>(i) + 0.5) * cell, grid_height + kTextHeight, "middle",
                 map.columns[i]);
  }
  svg += Label(left - 6, grid_height + kTextHeight, "end", map.column_title);
  svg += HeatScale(map, range, std::max(left, 60.0), grid_height + 30);
  return svg + "</svg>\n";
}

std::string LineChartSvg(const LineChart& chart) {
  constexpr double kHeight = 250, kLeft = 44, kRight = 10, kTop = 10, kBottom = 34;
  constexpr double kNarrowestPitch = 6;
  std::vector<std::vector<std::optional<double>>> values;
  for (const LineChart::Series& series : chart.series) values.push_back(series.values);
  const Range range = RangeOf(values);
  const std::vector<double> ticks = AxisTicks(range.low, range.high, 5);
  const double last = std::max<double>(1, static_cast<double>(chart.x_labels.size()) - 1);
  const double width = std::max(kWidth, kLeft + kRight + last * kNarrowestPitch);
  const Axis x{0, last, kLeft + 6, width - kRight};
  const Axis y{ticks.front(), ticks.back(), kHeight - kBottom, kTop};
  std::string svg = Open(width, kHeight, chart.x_title);
  for (const double tick : ticks) {
    svg += Line(kLeft, y.At(tick), width - kRight, y.At(tick), "grid");
    svg += Label(kLeft - 5, y.At(tick) + 4, "end", chart.text(tick));
  }
  const size_t step = LabelStep(chart.x_labels, (width - kLeft - kRight) / last);
  for (size_t i = 0; i < chart.x_labels.size(); i += step) {
    svg += Label(x.At(static_cast<double>(i)), kHeight - kBottom + 15, "middle", chart.x_labels[i]);
  }
  svg += Label((kLeft + width) / 2, kHeight - 4, "middle", chart.x_title);
  for (size_t i = 0; i < chart.series.size(); ++i) svg += SeriesPath(chart.series[i], i, x, y);
  for (size_t i = 0; i < chart.series.size(); ++i) svg += SeriesDots(chart, i, x, y);
  return svg + "</svg>\n";
}

std::string ScatterSvg(const Scatter& scatter) {
  constexpr double kHeight = 330, kLeft = 48, kRight = 12, kTop = 10, kBottom = 36;
  std::vector<std::vector<std::optional<double>>> exponents(1);
  const auto usable = [](const Scatter::Point& p) {
    return p.x > 0 && p.y > 0 && std::isfinite(p.x) && std::isfinite(p.y);
  };
  for (const Scatter::Point& point : scatter.points) {
    if (!usable(point)) continue;
    exponents[0].push_back(std::log10(point.x));
    exponents[0].push_back(std::log10(point.y));
  }
  Range range = RangeOf(exponents);
  const double margin = 0.04 * (range.high - range.low) + 0.01;
  range = {range.low - margin, range.high + margin};
  const Axis x{range.low, range.high, kLeft, kWidth - kRight};
  const Axis y{range.low, range.high, kHeight - kBottom, kTop};
  std::string svg = Open(kWidth, kHeight, scatter.y_title);
  for (const double tick : LogTicks(range.low, range.high)) {
    const std::string text = scatter.text(std::pow(10, tick));
    svg += Line(kLeft, y.At(tick), kWidth - kRight, y.At(tick), "grid");
    svg += Line(x.At(tick), kTop, x.At(tick), kHeight - kBottom, "grid");
    svg += Label(kLeft - 5, y.At(tick) + 4, "end", text);
    svg += Label(x.At(tick), kHeight - kBottom + 15, "middle", text);
  }
  svg += Line(x.At(range.low), y.At(range.low), x.At(range.high), y.At(range.high), "diagonal");
  svg += Label((kLeft + kWidth) / 2, kHeight - 5, "middle", scatter.x_title);
  svg += absl::StrCat("<text transform=\"translate(11 ", Number(kHeight / 2),
                      ") rotate(-90)\" text-anchor=\"middle\">", HtmlText(scatter.y_title),
                      "</text>\n");
  for (const Scatter::Point& point : scatter.points) {
    if (!usable(point)) continue;
    absl::StrAppend(&svg, "<circle cx=\"", Number(x.At(std::log10(point.x))), "\" cy=\"",
                    Number(y.At(std::log10(point.y))), "\" r=\"3.4\" class=\"dot ",
                    ClassOf(point.series), "\">",
                    Tooltip(absl::StrCat(point.label, ": ", scatter.text(point.x), " \u2192 ",
                                         scatter.text(point.y))),
                    "</circle>\n");
  }
  return svg + "</svg>\n";
}

std::string StackedBarSvg(const std::vector<BarPart>& parts) {
  constexpr double kBarHeight = 34;
  double total = 0;
  for (const BarPart& part : parts) total += std::max(part.value, 0.0);
  std::string svg = Open(kWidth, kBarHeight + 4, "size");
  double left = 0;
  for (size_t i = 0; i < parts.size() && total > 0; ++i) {
    if (!(parts[i].value > 0)) continue;
    const double width = parts[i].value / total * kWidth;
    absl::StrAppend(&svg, "<rect x=\"", Number(left), "\" y=\"2\" width=\"", Number(width),
                    "\" height=\"", Number(kBarHeight), "\" class=\"part ", ClassOf(i), "\">",
                    Tooltip(absl::StrCat(parts[i].name, ": ", parts[i].text)), "</rect>\n");
    left += width;
  }
  return svg + "</svg>\n";
}

std::string LegendHtml(const std::vector<std::string>& names) {
  std::string html = "<ul class=\"legend\">";
  for (size_t i = 0; i < names.size(); ++i) {
    absl::StrAppend(&html, "<li><svg viewBox=\"0 0 10 10\"><circle cx=\"5\" cy=\"5\" r=\"4.5\" ",
                    "class=\"dot ", ClassOf(i), "\"/></svg><bdi>", HtmlText(names[i]),
                    "</bdi></li>");
  }
  return html + "</ul>\n";
}

}  // namespace sinq::client
