#include "server/worker/checkpointer.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sinq {

Checkpointer::Checkpointer(const Plan& plan, Phase phase, Sink& sink,
                           std::deque<FileDigester>& digesters, JobStore& store, Lease lease,
                           absl::Duration interval)
    : plan_(plan),
      phase_(phase),
      sink_(sink),
      digesters_(digesters),
      store_(store),
      lease_(std::move(lease)),
      interval_(interval) {
  thread_ = std::thread([this] { Loop(); });
}

Checkpointer::~Checkpointer() {
  if (thread_.joinable())
    Finish(false).IgnoreError();  // the job has failed with an error of its own
}

void Checkpointer::AddDurable(const PlannedTensor& tensor, UnitRecord record) {
  MutexLock lock(&mutex_);
  pending_.push_back({&tensor, std::move(record), true});
}

void Checkpointer::Add(const PlannedTensor& tensor, UnitRecord record) {
  MutexLock lock(&mutex_);
  pending_.push_back({&tensor, std::move(record), false});
}

bool Checkpointer::Failed() const {
  MutexLock lock(&mutex_);
  return !status_.ok();
}

void Checkpointer::Loop() {
  using Clock = std::chrono::steady_clock;
  const auto interval = absl::ToChronoNanoseconds(interval_);
  std::vector<Item> items;  // not durable yet, or not known to be
  absl::StatusOr<bool> behind = false;
  Time next = Clock::now() + interval;
  for (Turn turn = Turn::kGoOn; turn == Turn::kGoOn && behind.ok();) {
    const size_t known = items.size();
    turn = TakePending(*behind ? Clock::now() : next, items);
    absl::Status status;
    for (size_t i = known; i < items.size() && status.ok(); ++i) status = MarkWritten(items[i]);
    // A job that stops must not wait for digests that nobody will see.
    if (status.ok() && turn != Turn::kLast)
      behind = DigestUntil(turn == Turn::kGoOn ? next : Time::max());
    if (status.ok()) status = behind.status();
    if (status.ok() && (turn != Turn::kGoOn || Clock::now() >= next)) {
      status = Commit(items);
      next = Clock::now() + interval;
    }
    if (!status.ok()) behind = std::move(status);
  }
  MutexLock lock(&mutex_);
  status_ = behind.status();
}

Checkpointer::Turn Checkpointer::TakePending(Time deadline, std::vector<Item>& items) {
  const auto patience = deadline - std::chrono::steady_clock::now();
  MutexLock lock(&mutex_);
  mutex_.AwaitWithTimeout(absl::Condition(this, &Checkpointer::HasWorkOrDone),
                          absl::FromChrono(patience));
  std::move(pending_.begin(), pending_.end(), std::back_inserter(items));
  pending_.clear();
  if (!finishing_) return Turn::kGoOn;
  return digest_files_ ? Turn::kLastWithDigests : Turn::kLast;
}

absl::Status Checkpointer::MarkWritten(const Item& item) {
  const absl::Span<const OutputRange> outputs = OutputsOf(*item.tensor);
  const std::vector<std::string>& digests = item.record.output_sha256;
  if (!outputs.empty() && digests.size() != outputs.size()) {
    return absl::DataLossError(
        absl::StrCat("the record of ", item.tensor->source.name,
                     " in the job store is of another output; delete the job and submit again"));
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    const OutputRange& output = outputs[i];
    FileDigester& digester = digesters_[static_cast<size_t>(output.file_index)];
    if (!item.durable)
      sink_.WillSync(digester.file_name(), output.offset, output.tensor.size_bytes);
    digester.MarkWritten(
        {output.offset, output.tensor.size_bytes, output.tensor.name, digests[i]});
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> Checkpointer::DigestUntil(Time deadline) {
  if (phase_ == Phase::kMeasure) return false;
  for (FileDigester& digester : digesters_) {
    absl::StatusOr<bool> more = true;
    while (more.ok() && *more) {
      if (std::chrono::steady_clock::now() >= deadline) return true;
      more = digester.Advance(sink_);
    }
    if (!more.ok()) return more;
  }
  return false;
}

absl::Status Checkpointer::Commit(std::vector<Item>& items) {
  std::set<int> touched;
  std::vector<FinishedUnit> units;
  for (const Item& item : items) {
    if (item.durable) continue;
    for (const OutputRange& range : OutputsOf(*item.tensor)) touched.insert(range.file_index);
    units.push_back({UnitName(phase_, *item.tensor), UnitRecordToJson(item.record)});
  }
  for (const int file : touched) {
    if (absl::Status status = sink_.SyncFile(plan_.files[static_cast<size_t>(file)].name);
        !status.ok())
      return status;
  }
  if (!units.empty()) {
    if (absl::Status status = store_.AddFinishedUnits(lease_, units); !status.ok()) return status;
  }
  if (phase_ == Phase::kQuantize) {
    for (Item& item : items) all_records_[item.tensor->source.name] = std::move(item.record);
  }
  items.clear();
  return absl::OkStatus();
}

absl::Status Checkpointer::Finish(bool digest_files) {
  {
    MutexLock lock(&mutex_);
    finishing_ = true;
    digest_files_ = digest_files;
  }
  if (thread_.joinable()) thread_.join();
  {
    MutexLock lock(&mutex_);
    if (!status_.ok()) return status_;
  }
  return digest_files ? DigestFiles() : absl::OkStatus();
}

absl::Status Checkpointer::DigestFiles() {
  for (size_t i = 0; i < digesters_.size(); ++i) {
    absl::StatusOr<std::string> digest = digesters_[i].Finish(sink_);
    if (!digest.ok()) return digest.status();
    files_.push_back({plan_.files[i].name, plan_.files[i].size_bytes, *std::move(digest)});
  }
  return absl::OkStatus();
}

}  // namespace sinq
