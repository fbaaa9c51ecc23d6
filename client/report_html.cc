#include "client/report_html.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/digest.h"
#include "client/format.h"
#include "client/report_style.h"
#include "client/svg_plot.h"

namespace sinq::client {
namespace {

using Figure = std::function<std::optional<double>(const TensorReport&)>;

ValueText Digits(int digits) {
  return [digits](double value) { return FigureText(value, digits); };
}

// ---------------------------------------------------------------- where tensors stand in the plots

// Quantized tensors by projection (rows) and layer (columns). Several tensors of one place are the
// experts of a layer.
struct Grid {
  std::vector<std::string> rows;     // projections, without what all their names begin with
  std::vector<std::string> columns;  // layers
  std::vector<std::pair<size_t, size_t>> places;  // row and column of tensors[i]
  std::vector<const TensorReport*> tensors;
  bool cut = false;  // the model has more rows or columns than a plot
};

size_t CommonParts(const std::vector<std::vector<std::string>>& names) {
  size_t common = names.empty() ? 0 : names[0].size();
  for (const auto& name : names) {
    // One part at least must be left of every name.
    common = std::min(common, name.size() - 1);
    for (size_t i = 0; i < common; ++i) {
      if (name[i] != names[0][i]) common = i;
    }
  }
  return common;
}

std::vector<std::string> ShortNames(const std::vector<std::string>& projections) {
  std::vector<std::vector<std::string>> parts;
  for (const std::string& name : projections) parts.push_back(absl::StrSplit(name, '.'));
  const auto common = static_cast<std::ptrdiff_t>(CommonParts(parts));
  std::vector<std::string> names;
  for (const auto& name : parts)
    names.push_back(absl::StrJoin(name.begin() + common, name.end(), "."));
  return names;
}

Grid MakeGrid(const QualityReport& report) {
  std::map<std::string, size_t> rows;
  std::set<int64_t> layers;
  std::vector<std::string> projections;
  for (const TensorReport& tensor : report.tensors) {
    if (!tensor.quantized() || !tensor.layer) continue;
    layers.insert(*tensor.layer);
    if (rows.emplace(tensor.projection, rows.size()).second)
      projections.push_back(tensor.projection);
  }
  Grid grid;
  grid.cut = projections.size() > kMostPlotRows || layers.size() > kMostPlotColumns;
  projections.resize(std::min(projections.size(), kMostPlotRows));
  grid.rows = ShortNames(projections);
  std::map<int64_t, size_t> columns;
  for (const int64_t layer : layers) {
    if (columns.size() == kMostPlotColumns) break;
    columns.emplace(layer, columns.size());
    grid.columns.push_back(absl::StrCat(layer));
  }
  for (const TensorReport& tensor : report.tensors) {
    if (!tensor.quantized() || !tensor.layer) continue;
    const size_t row = rows[tensor.projection];
    const auto column = columns.find(*tensor.layer);
    if (row >= projections.size() || column == columns.end()) continue;
    grid.places.emplace_back(row, column->second);
    grid.tensors.push_back(&tensor);
  }
  return grid;
}

// The figure of every place; the larger one (or with `smallest` the smaller) of several tensors.
std::vector<std::vector<std::optional<double>>> ValuesOf(const Grid& grid, const Figure& figure,
                                                         bool smallest) {
  std::vector<std::vector<std::optional<double>>> values(
      grid.rows.size(), std::vector<std::optional<double>>(grid.columns.size()));
  for (size_t i = 0; i < grid.tensors.size(); ++i) {
    const std::optional<double> value = figure(*grid.tensors[i]);
    if (!value || !std::isfinite(*value)) continue;
    std::optional<double>& place = values[grid.places[i].first][grid.places[i].second];
    if (!place || (smallest ? *value < *place : *value > *place)) place = value;
  }
  return values;
}

bool HasAny(const std::vector<std::vector<std::optional<double>>>& values) {
  return std::any_of(values.begin(), values.end(), [](const auto& row) {
    return std::any_of(row.begin(), row.end(), [](const auto& value) { return value.has_value(); });
  });
}

// ---------------------------------------------------------------- figures

std::string FigureHtml(absl::string_view title, absl::string_view caption,
                       absl::string_view content) {
  return absl::StrCat("<figure><h2>", title, "</h2><figcaption>", caption,
                      "</figcaption><div class=\"scroll\">", content, "</div></figure>\n");
}

std::string SqnrFigure(const Grid& grid) {
  const auto values =
      ValuesOf(grid, [](const TensorReport& t) { return t.sqnr_db(); }, /*smallest=*/true);
  if (!HasAny(values) || grid.rows.size() > kPlotClasses) return "";
  LineChart chart{grid.columns, "layer", {}, Digits(0)};
  for (size_t row = 0; row < grid.rows.size(); ++row)
    chart.series.push_back({grid.rows[row], values[row]});
  chart.text = Digits(1);
  return FigureHtml("Signal to noise by layer",
                    "SQNR of the weights in dB: higher is better, 6 dB are a bit",
                    absl::StrCat(LineChartSvg(chart), LegendHtml(grid.rows)));
}

std::string ErrorFigure(const Grid& grid) {
  const Figure balanced = [](const TensorReport& t) { return t.balanced_error; };
  const Figure plain = [](const TensorReport& t) { return t.relative_error; };
  auto values = ValuesOf(grid, balanced, /*smallest=*/false);
  const bool has_balanced = HasAny(values);
  if (!has_balanced) values = ValuesOf(grid, plain, /*smallest=*/false);
  if (!HasAny(values)) return "";
  const HeatMap map{grid.rows, grid.columns, std::move(values), "layer", [](double value) {
                      return absl::StrFormat("%.3g %%", 100 * value);
                    }};
  return FigureHtml("Error by layer and projection",
                    has_balanced ? "Relative error in the balanced space, every column divided by "
                                   "its scale: what the quantizer keeps small"
                                 : "Relative error of the weights",
                    HeatMapSvg(map));
}

std::string ImbalanceFigure(const Grid& grid) {
  Scatter scatter{"before balancing", "after", {}, Digits(2)};
  scatter.text = [](double value) { return absl::StrFormat("%.3g", value); };
  for (size_t i = 0; i < grid.tensors.size(); ++i) {
    const TensorReport& t = *grid.tensors[i];
    if (!t.imbalance_before || !t.imbalance_after || *t.imbalance_before <= 0) continue;
    if (scatter.points.size() == kMostPlotPoints) break;
    scatter.points.push_back(
        {*t.imbalance_before, *t.imbalance_after, grid.places[i].first, t.name});
  }
  if (scatter.points.empty()) return "";
  return FigureHtml("Imbalance before and after",
                    "Largest over smallest deviation of rows and columns, worst tile of each "
                    "tensor: the farther beneath the diagonal, the more balancing did",
                    absl::StrCat(ScatterSvg(scatter), LegendHtml(grid.rows)));
}

std::string SizeFigure(const QualityReport& report) {
  if (!report.has_bytes) return "";
  const int64_t total = Sum(report.bytes);
  std::vector<BarPart> parts;
  std::vector<std::string> names;
  for (size_t kind = 0; kind < kPartKinds; ++kind) {
    const int64_t bytes = report.bytes[kind];
    const double share =
        total > 0 ? 100.0 * static_cast<double>(bytes) / static_cast<double>(total) : 0;
    std::string name(PartName(static_cast<PartKind>(kind)));
    std::replace(name.begin(), name.end(), '_', ' ');
    const std::string text = absl::StrFormat("%s, %.1f %%", FormatBytes(bytes), share);
    names.push_back(absl::StrCat(name, ": ", text));
    parts.push_back({std::move(name), static_cast<double>(bytes), text});
  }
  return FigureHtml("Where the bytes are", absl::StrCat(FormatBytes(total), " of tensors"),
                    absl::StrCat(StackedBarSvg(parts), LegendHtml(names)));
}

std::string BitsFigure(const QualityReport& report, const Grid& grid) {
  std::set<int64_t> widths;
  for (const TensorReport& tensor : report.tensors) {
    if (tensor.quantized() && tensor.bits) widths.insert(*tensor.bits);
  }
  if (widths.size() < 2) return "";
  auto values = ValuesOf(
      grid,
      [](const TensorReport& t) {
        return t.bits ? std::optional<double>(static_cast<double>(*t.bits)) : std::nullopt;
      },
      /*smallest=*/false);
  if (!HasAny(values)) return "";
  const HeatMap map{grid.rows, grid.columns, std::move(values), "layer", Digits(0)};
  return FigureHtml("Bits by layer and projection", "Width of the codes", HeatMapSvg(map));
}

// ---------------------------------------------------------------- tables

struct Column {
  absl::string_view title, meaning;
  int digits;
  Figure figure;
};

Figure CountFigure(std::optional<int64_t> TensorReport::* member) {
  return [member](const TensorReport& t) {
    return t.*member ? std::optional<double>(static_cast<double>(*(t.*member))) : std::nullopt;
  };
}

Figure Member(std::optional<double> TensorReport::* member) {
  return [member](const TensorReport& t) { return t.*member; };
}

const std::vector<Column>& Columns() {
  static const auto* const kColumns = new std::vector<Column>{
      {"bits", "bits of a code", 0, CountFigure(&TensorReport::bits)},
      {"group", "weights that share a scale", 0, CountFigure(&TensorReport::group_size)},
      {"SQNR dB", "signal to quantization noise", 2,
       [](const TensorReport& t) { return t.sqnr_db(); }},
      {"balanced error", "relative error with every column divided by its scale", 5,
       Member(&TensorReport::balanced_error)},
      {"cosine", "of the weights before and after", 6, Member(&TensorReport::cosine)},
      {"largest error", "of one weight", 5, Member(&TensorReport::max_abs_error)},
      {"imbalance", "before balancing", 2, Member(&TensorReport::imbalance_before)},
      {"after", "imbalance after balancing", 2, Member(&TensorReport::imbalance_after)},
      {"rounds", "of balancing, mean over tiles", 1, Member(&TensorReport::rounds)},
      {"kurtosis", "of the weights; 3 for a normal distribution", 2,
       Member(&TensorReport::kurtosis)}};
  return *kColumns;
}

std::string HeadCell(absl::string_view title, absl::string_view meaning) {
  return absl::StrCat("<th scope=\"col\" title=\"", meaning, "\"><button type=\"button\">", title,
                      "</button></th>");
}

std::string ValueCell(const std::optional<double>& value, absl::string_view text) {
  if (!value) return "<td>-</td>";
  return absl::StrCat("<td data-v=\"", absl::StrFormat("%.9g", *value), "\">", HtmlText(text),
                      "</td>");
}

std::string RowHtml(const TensorReport& tensor) {
  const std::string name = HtmlText(tensor.name);
  const std::string action = HtmlText(tensor.action);
  std::string row = absl::StrCat("<tr><td data-v=\"", name, "\"><bdi>", name,
                                 "</bdi></td><td data-v=\"", action, "\" title=\"",
                                 HtmlText(tensor.reason), "\">", action, "</td>");
  for (const Column& column : Columns()) {
    const std::optional<double> value = column.figure(tensor);
    row += ValueCell(value, FigureText(value, column.digits));
  }
  const int64_t bytes = Sum(tensor.bytes);
  row += tensor.has_bytes ? ValueCell(static_cast<double>(bytes), FormatBytes(bytes))
                          : ValueCell(std::nullopt, "");
  return row + "</tr>\n";
}

std::string TableHtml(absl::string_view title, absl::string_view caption,
                      const std::vector<const TensorReport*>& tensors) {
  std::string html =
      absl::StrCat("<section class=\"sheet\"><h2>", title, "</h2><p class=\"faint\">", caption,
                   "</p><div class=\"scroll\"><table><thead><tr>",
                   HeadCell("tensor", "name in the source"), HeadCell("action", "what was done"));
  for (const Column& column : Columns()) html += HeadCell(column.title, column.meaning);
  html += absl::StrCat(HeadCell("size", "bytes in the output"), "</tr></thead><tbody>\n");
  for (const TensorReport* tensor : tensors) html += RowHtml(*tensor);
  return html + "</tbody></table></div></section>\n";
}

std::vector<const TensorReport*> Worst(const QualityReport& report, size_t most) {
  std::vector<const TensorReport*> tensors;
  for (size_t i = 0; i < std::min(most, report.worst.size()); ++i)
    tensors.push_back(&report.tensors[report.worst[i]]);
  return tensors;
}

std::string TablesHtml(const QualityReport& report) {
  std::string html;
  if (report.worst.size() > kWorstShown) {
    html += TableHtml(absl::StrCat("The ", kWorstShown, " worst"), "By error, largest first",
                      Worst(report, kWorstShown));
  }
  if (report.tensors.size() > kMostTableRows) {
    return html + TableHtml("Tensors",
                            absl::StrCat("The ", kMostTableRows, " worst of ",
                                         report.tensors.size(),
                                         "; sinqctl report -o json has all of them"),
                            Worst(report, kMostTableRows));
  }
  std::vector<const TensorReport*> all;
  for (const TensorReport& tensor : report.tensors) all.push_back(&tensor);
  return html + TableHtml("All tensors", "Press a heading to sort", all);
}

// ---------------------------------------------------------------- the page

std::string CardHtml(absl::string_view title, absl::string_view value) {
  return absl::StrCat("<div><dt>", title, "</dt><dd>", HtmlText(value), "</dd></div>");
}

std::optional<double> MedianSqnr(const QualityReport& report) {
  std::vector<double> values;
  for (const TensorReport& tensor : report.tensors) {
    if (tensor.quantized() && tensor.sqnr_db()) values.push_back(*tensor.sqnr_db());
  }
  if (values.empty()) return std::nullopt;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::string CardsHtml(const QualityReport& report) {
  std::string html = "<dl class=\"cards\">";
  html += CardHtml("quantized tensors",
                   absl::StrCat(report.quantized_tensors, " of ", report.tensors.size()));
  html += CardHtml("quantized weights",
                   absl::StrFormat("%.4g M", static_cast<double>(report.quantized_weights) / 1e6));
  html += CardHtml("bits per weight", FigureText(report.effective_bits, 3));
  html += CardHtml("output", FormatBytes(report.output_bytes));
  const std::optional<double> median = MedianSqnr(report);
  html += CardHtml("median SQNR", median ? FigureText(median, 1) + " dB" : "-");
  if (!report.worst.empty()) {
    const TensorReport& worst = report.tensors[report.worst[0]];
    html += CardHtml("worst error", absl::StrFormat("%.3g %%", 100 * *worst.rank_error()));
  }
  return html + "</dl>\n";
}

std::string HeaderHtml(const QualityReport& report) {
  const std::vector<std::string> parts = absl::StrSplit(report.source_uri, '/', absl::SkipEmpty());
  const std::string model = parts.empty() ? "a model" : parts.back();
  std::string html = absl::StrCat("<h1>Quality of <bdi>", HtmlText(model), "</bdi></h1>\n");
  for (const std::string& line :
       {report.source_uri, report.recipe,
        absl::StrCat("sinqd ", report.code_version, ", ", report.job_id)}) {
    absl::StrAppend(&html, "<p class=\"faint\"><bdi>", HtmlText(line), "</bdi></p>\n");
  }
  return html;
}

// Nothing is loaded, and only the one script runs, even if a text should escape its escaping.
absl::StatusOr<std::string> Policy() {
  Sha256 digest;
  if (absl::Status status = digest.Update(ReportScript()); !status.ok()) return status;
  const absl::StatusOr<std::string> hex = digest.Finish();
  if (!hex.ok()) return hex.status();
  return absl::StrCat("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-",
                      absl::Base64Escape(absl::HexStringToBytes(*hex)), "'");
}

}  // namespace

absl::StatusOr<std::string> ReportHtml(const QualityReport& report) {
  const absl::StatusOr<std::string> policy = Policy();
  if (!policy.ok()) return policy.status();
  const Grid grid = MakeGrid(report);
  const std::string cut =
      grid.cut ? absl::StrCat("<p class=\"faint\">The plots show the first ", kMostPlotRows,
                              " projections and ", kMostPlotColumns, " layers.</p>\n")
               : "";
  return absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n",
      "<meta http-equiv=\"Content-Security-Policy\" content=\"", *policy, "\">\n",
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
      "<title>Quantization report</title>\n<style>", ReportStyle(), "</style></head><body>\n",
      HeaderHtml(report), CardsHtml(report), cut, "<div class=\"plots\">\n", SqnrFigure(grid),
      ErrorFigure(grid), ImbalanceFigure(grid), SizeFigure(report), BitsFigure(report, grid),
      "</div>\n", TablesHtml(report), "<script>", ReportScript(), "</script>\n</body></html>\n");
}

}  // namespace sinq::client
