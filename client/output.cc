#include "client/output.h"

#include <google/protobuf/util/json_util.h>

#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "client/format.h"

namespace sinq::client {
namespace {

absl::Time ToTime(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

std::string TimeText(bool set, const google::protobuf::Timestamp& time) {
  if (!set) return "-";
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", ToTime(time), absl::UTCTimeZone());
}

std::string Percent(const v1::JobProgress& progress) {
  if (progress.bytes_total() <= 0) return "-";
  return absl::StrCat(static_cast<int>(100.0 * static_cast<double>(progress.bytes_done()) /
                                       static_cast<double>(progress.bytes_total())),
                      "%");
}

std::string WidthText(const v1::Recipe& recipe) {
  if (recipe.target_bits_per_weight() > 0) {
    return absl::StrFormat("bits chosen for %g bits per weight", recipe.target_bits_per_weight());
  }
  if (recipe.target_size_bytes() > 0)
    return absl::StrCat("bits chosen for ", FormatBytes(recipe.target_size_bytes()));
  return absl::StrCat(recipe.bits(), " bits");
}

std::string RecipeText(const v1::Recipe& recipe) {
  std::string text = absl::StrCat(recipe.method(), ", ", WidthText(recipe), ", group ",
                                  recipe.group_size(), recipe.symmetric() ? ", symmetric" : "",
                                  ", profile ", recipe.profile(), ", format ", recipe.format());
  if (!recipe.aux().empty()) absl::StrAppend(&text, ", aux ", recipe.aux());
  if (recipe.tiling() == "2D") absl::StrAppend(&text, ", tiling 2D");
  if (recipe.fold() == "off") absl::StrAppend(&text, ", no folding");
  if (recipe.rules_size() > 0) absl::StrAppend(&text, ", ", recipe.rules_size(), " rules");
  return text;
}

std::string BitsText(double bits) { return bits > 0 ? absl::StrFormat("%.3f", bits) : "-"; }

template <typename List>
std::string Joined(const List& list) {
  return absl::StrJoin(list, ", ");
}

}  // namespace

absl::StatusOr<std::string> MessageJson(const google::protobuf::Message& message, bool pretty) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  options.add_whitespace = pretty;
  std::string text;
  const auto status = google::protobuf::util::MessageToJsonString(message, &text, options);
  if (!status.ok()) return absl::InternalError("The server's answer cannot be written as JSON.");
  return text;
}

std::string StateName(v1::JobState state) {
  return std::string(absl::StripPrefix(v1::JobState_Name(state), "JOB_STATE_"));
}

std::string StageName(v1::JobStage stage) {
  return absl::AsciiStrToLower(absl::StripPrefix(v1::JobStage_Name(stage), "JOB_STAGE_"));
}

std::string ActionName(v1::TensorAction action) {
  return absl::AsciiStrToLower(absl::StripPrefix(v1::TensorAction_Name(action), "TENSOR_ACTION_"));
}

std::string JobText(const v1::Job& job) {
  const v1::JobProgress& p = job.progress();
  Table table({"JOB", job.job_id()});
  table.Add(
      {"state", StateName(job.state()) + (job.cancel_requested() ? " (cancel requested)" : "")});
  table.Add({"source", job.source_uri()});
  table.Add({"output", job.output_uri()});
  table.Add({"recipe", RecipeText(job.recipe())});
  table.Add({"stage", StageName(p.stage())});
  table.Add({"progress", absl::StrCat(Percent(p), "  ", FormatBytes(p.bytes_done()), "/",
                                      FormatBytes(p.bytes_total()), "  tensors ", p.tensors_done(),
                                      "/", p.tensors_total())});
  table.Add({"output size", p.output_bytes() > 0 ? FormatBytes(p.output_bytes()) : "-"});
  table.Add({"bits per weight", BitsText(p.effective_bits())});
  table.Add({"attempt", absl::StrCat(job.attempt())});
  table.Add({"request id", job.request_id()});
  table.Add({"created", TimeText(job.has_create_time(), job.create_time())});
  table.Add({"started", TimeText(job.has_start_time(), job.start_time())});
  table.Add({"ended", TimeText(job.has_end_time(), job.end_time())});
  if (job.has_error()) {
    table.Add({"error", absl::StrCat(job.error().code(), " ", job.error().reason())});
    table.Add({"", job.error().message()});
  }
  return table.Render();
}

std::string JobListText(const v1::ListJobsResponse& list) {
  Table table({"JOB", "STATE", "PROGRESS", "CREATED", "SOURCE", "OUTPUT"});
  for (const v1::Job& job : list.jobs()) {
    table.Add({job.job_id(), StateName(job.state()), Percent(job.progress()),
               TimeText(job.has_create_time(), job.create_time()), job.source_uri(),
               job.output_uri()});
  }
  return table.Render();
}

std::string PlanText(const v1::PlanJobResponse& plan) {
  Table tensors({"ACTION", "TENSOR", "DTYPE", "SHAPE", "BITS", "GROUP", "AUX", "REASON"});
  for (const v1::PlannedTensor& t : plan.tensors()) {
    const bool quantized = t.action() == v1::TENSOR_ACTION_QUANTIZE;
    tensors.Add({ActionName(t.action()), t.name(), t.dtype(),
                 FormatShape(std::vector<int64_t>(t.shape().begin(), t.shape().end())),
                 quantized ? absl::StrCat(t.bits()) : "-",
                 quantized ? absl::StrCat(t.group_size()) : "-", quantized ? t.aux() : "-",
                 t.reason()});
  }
  Table files({"FILE", "SIZE"});
  for (const v1::PlannedFile& f : plan.files()) files.Add({f.name(), FormatBytes(f.size_bytes())});
  Table sums({"SUMMARY", ""});
  sums.Add({"source", FormatBytes(plan.source_bytes())});
  sums.Add({"output", FormatBytes(plan.output_bytes())});
  sums.Add({"peak memory", FormatBytes(plan.peak_memory_bytes())});
  sums.Add({"disk", FormatBytes(plan.disk_bytes())});
  sums.Add({"quantized weights", absl::StrCat(plan.quantized_weights())});
  sums.Add({"bits per weight", BitsText(plan.effective_bits())});
  sums.Add({"digest", plan.digest()});
  if (!plan.note().empty()) sums.Add({"note", plan.note()});
  Table folds({"FOLDING"});
  for (const std::string& note : plan.fold_notes()) folds.Add({note});
  return absl::StrCat(tensors.Render(), "\n", files.Render(), "\n",
                      plan.fold_notes().empty() ? "" : absl::StrCat(folds.Render(), "\n"),
                      sums.Render());
}

std::string ArtifactsText(const v1::ListArtifactsResponse& list) {
  Table table({"FILE", "SIZE", "SHA256"});
  for (const v1::Artifact& a : list.artifacts()) {
    table.Add({a.file(), FormatBytes(a.size_bytes()), a.sha256().empty() ? "-" : a.sha256()});
  }
  return table.Render();
}

std::string CapabilitiesText(const v1::GetCapabilitiesResponse& c) {
  Table table({"CAPABILITY", "VALUE"});
  table.Add({"version", c.version()});
  for (const v1::Device& d : c.devices()) {
    std::string text = absl::StrCat(d.name().empty() ? d.backend() : d.name(), " ",
                                    d.architecture(), ", workers ", d.workers());
    if (d.memory_bytes() > 0) absl::StrAppend(&text, ", ", FormatBytes(d.memory_bytes()));
    if (!d.name().empty() && !d.healthy()) absl::StrAppend(&text, ", lost");
    table.Add({"device", text});
  }
  table.Add({"methods", Joined(c.methods())});
  table.Add({"profiles", Joined(c.profiles())});
  table.Add({"formats", Joined(c.formats())});
  table.Add({"default format", c.default_format()});
  table.Add({"tilings", Joined(c.tilings())});
  table.Add({"bits", Joined(c.bits())});
  table.Add({"group sizes", Joined(c.group_sizes())});
  table.Add({"input dtypes", Joined(c.input_dtypes())});
  table.Add({"aux", Joined(c.aux())});
  table.Add({"source schemes", Joined(c.source_schemes())});
  table.Add({"memory budget", FormatBytes(c.memory_budget_bytes())});
  Table limits({"LIMIT", "VALUE", "WHY"});
  for (const v1::Limit& l : c.limits())
    limits.Add({l.name(), absl::StrCat(l.value()), l.derivation()});
  return absl::StrCat(table.Render(), "\n", limits.Render());
}

std::string EventText(const v1::JobEvent& event) {
  const v1::JobProgress& p = event.progress();
  std::string text =
      absl::StrCat(event.sequence(), "  ", TimeText(event.has_event_time(), event.event_time()),
                   "  ", StateName(event.state()), "  ", StageName(p.stage()), "  ", Percent(p),
                   "  tensors ", p.tensors_done(), "/", p.tensors_total());
  if (!p.tensor().empty()) absl::StrAppend(&text, "  ", p.tensor());
  if (event.has_error()) absl::StrAppend(&text, "  ", event.error().message());
  return Printable(text);
}

absl::Status Output::Print(const google::protobuf::Message& message, absl::string_view table,
                           absl::string_view name, bool pretty) {
  if (format_ == OutputFormat::kTable) return PrintText(table);
  if (format_ == OutputFormat::kName) return PrintText(name);
  const auto json = MessageJson(message, pretty);
  return json.ok() ? PrintText(*json) : json.status();
}

absl::Status Output::PrintText(absl::string_view text) {
  if (text.empty()) return absl::OkStatus();
  out_ << text;
  if (!absl::EndsWith(text, "\n")) out_ << '\n';
  out_ << std::flush;
  return out_.good() ? absl::OkStatus() : absl::UnknownError("Standard output cannot be written.");
}

}  // namespace sinq::client
