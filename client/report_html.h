// The quality report as one page that needs nothing else: no network, no other file.
#ifndef SINQ_CLIENT_REPORT_HTML_H_
#define SINQ_CLIENT_REPORT_HTML_H_

#include <string>

#include "absl/status/statusor.h"
#include "client/report.h"

namespace sinq::client {

// What a page of a very large model is cut to; the page says so. Rows of the table: some MiB of
// HTML, which a phone still opens. Plots: more would be less than a pixel each.
inline constexpr size_t kMostTableRows = 5000;
inline constexpr size_t kMostPlotRows = 40;
inline constexpr size_t kMostPlotColumns = 400;
inline constexpr size_t kMostPlotPoints = 4000;

// HTML in UTF-8. Every text of the manifest is escaped; besides, the page's own policy lets no
// script run but its own, and loads nothing.
absl::StatusOr<std::string> ReportHtml(const QualityReport& report);

}  // namespace sinq::client

#endif  // SINQ_CLIENT_REPORT_HTML_H_
