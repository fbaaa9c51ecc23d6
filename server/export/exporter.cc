#include "server/export/exporter.h"

#include "absl/strings/str_cat.h"
#include "server/base/error.h"
#include "server/export/export_sinq.h"

namespace sinq {

std::unique_ptr<Exporter> MakeSinqExporter() { return std::make_unique<SinqExporter>(); }

absl::StatusOr<std::unique_ptr<Exporter>> MakeExporter(absl::string_view format) {
  if (format == "sinq") return MakeSinqExporter();
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                   absl::StrCat("format must be \"sinq\"; got \"", format, "\"."),
                   {{"field", "recipe.format"}});
}

}  // namespace sinq
