#include <unistd.h>

#include <cstdio>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "client/commands/commands.h"
#include "client/format.h"
#include "client/local_file.h"
#include "client/report.h"
#include "client/report_html.h"

namespace sinq::client {
namespace {

// A reader sees the old page or the new one.
absl::Status WriteFile(const std::string& path, const std::string& text) {
  const std::string temporary = absl::StrCat(path, ".", getpid(), ".tmp");
  absl::StatusOr<LocalFile> file = LocalFile::Create(temporary);
  if (!file.ok()) return file.status();
  absl::Cleanup remove = [&] { std::remove(temporary.c_str()); };
  if (absl::Status status = file->Append(text); !status.ok()) return status;
  if (absl::Status status = file->Sync(); !status.ok()) return status;
  if (absl::Status status = PublishFile(temporary, path, /*replace=*/true); !status.ok())
    return status;
  std::move(remove).Cancel();
  return absl::OkStatus();
}

std::string Names(const QualityReport& report) {
  std::string names;
  for (const size_t index : report.worst)
    absl::StrAppend(&names, Printable(report.tensors[index].name), "\n");
  return names;
}

}  // namespace

absl::Status RunReport(CommandContext& context, const ReportFlags& flags) {
  const absl::StatusOr<QualityReport> report = ReadReport(flags.directory);
  if (!report.ok()) return report.status();
  if (!flags.html.empty()) {
    const absl::StatusOr<std::string> page = ReportHtml(*report);
    if (!page.ok()) return page.status();
    if (absl::Status status = WriteFile(flags.html, *page); !status.ok()) return status;
    context.Note(absl::StrCat("Wrote ", flags.html, ", ",
                              FormatBytes(static_cast<int64_t>(page->size())), "."));
  }
  switch (context.output.format()) {
    case OutputFormat::kJson:
      return context.output.PrintText(ReportJson(*report, flags.directory));
    case OutputFormat::kName:
      return context.output.PrintText(Names(*report));
    case OutputFormat::kTable:
      return context.output.PrintText(ReportText(*report));
  }
  return absl::InternalError("There is no such output format.");
}

}  // namespace sinq::client
