// Style and script of the report's page: no colour, font or code comes from anywhere else.
#ifndef SINQ_CLIENT_REPORT_STYLE_H_
#define SINQ_CLIENT_REPORT_STYLE_H_

#include "absl/strings/string_view.h"

namespace sinq::client {

// CSS: light and dark by the reader's preference, one column on a phone. Defines the classes that
// svg_plot.h uses.
absl::string_view ReportStyle();
// Sorts a table by the column whose heading is pressed; the page is complete without it.
absl::string_view ReportScript();

}  // namespace sinq::client

#endif  // SINQ_CLIENT_REPORT_STYLE_H_
