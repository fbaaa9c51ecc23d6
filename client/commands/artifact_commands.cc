#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "client/commands/commands.h"
#include "client/format.h"
#include "client/manifest.h"

namespace sinq::client {
namespace {

absl::Status PrintReport(CommandContext& context, const std::string& directory,
                         const VerifyReport& report) {
  if (context.output.format() == OutputFormat::kJson) {
    nlohmann::json findings = nlohmann::json::array();
    for (const auto& f : report.findings) {
      findings.push_back({{"file", f.file}, {"problem", f.problem}, {"detail", f.detail}});
    }
    const nlohmann::json json = {{"directory", directory},
                                 {"files_checked", report.files_checked},
                                 {"bytes_checked", report.bytes_checked},
                                 {"findings", findings}};
    return context.output.PrintText(
        json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
  }
  if (context.output.format() == OutputFormat::kName) {
    std::string names;
    for (const auto& f : report.findings) absl::StrAppend(&names, Printable(f.file), "\n");
    return context.output.PrintText(names);
  }
  if (report.findings.empty()) {
    return context.output.PrintText(absl::StrCat("OK: ", report.files_checked, " files, ",
                                                 FormatBytes(report.bytes_checked),
                                                 " match the manifest."));
  }
  Table table({"PROBLEM", "FILE", "DETAIL"});
  for (const auto& f : report.findings) table.Add({f.problem, f.file, f.detail});
  return context.output.PrintText(table.Render());
}

}  // namespace

absl::Status RunArtifacts(CommandContext& context, const std::string& job_id) {
  const auto list = context.client.ListArtifacts(job_id);
  if (!list.ok()) return list.status();
  std::string names;
  for (const v1::Artifact& artifact : list->artifacts())
    absl::StrAppend(&names, artifact.file(), "\n");
  return context.output.Print(*list, ArtifactsText(*list), names);
}

absl::Status RunVerify(CommandContext& context, const std::string& directory) {
  const auto report = VerifyDirectory(
      directory, context.cancel,
      [&](int64_t files, int64_t bytes, int64_t all_files, int64_t all_bytes) {
        context.progress.Update({"verify", bytes, all_bytes, files, all_files}, absl::Now());
      });
  context.progress.Finish();
  if (!report.ok()) return report.status();
  if (absl::Status status = PrintReport(context, directory, *report); !status.ok()) return status;
  if (report->findings.empty()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      directory, " does not match its manifest: ", report->findings.size(),
      " problems, the first is ", report->findings[0].file, ": ", report->findings[0].detail, "."));
}

}  // namespace sinq::client
