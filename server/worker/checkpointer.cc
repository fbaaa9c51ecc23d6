#include "server/worker/checkpointer.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sinq {

Checkpointer::Checkpointer(const Plan& plan, Phase phase, Sink& sink, JobStore& store, Lease lease,
                           absl::Duration interval)
    : plan_(plan),
      phase_(phase),
      sink_(sink),
      store_(store),
      lease_(std::move(lease)),
      interval_(interval) {
  if (phase == Phase::kQuantize) StartDigests();
  thread_ = std::thread([this] { Loop(); });
}

void Checkpointer::StartDigests() {
  for (const PlannedFile& file : plan_.files) {
    FileDigester& digester = digesters_.emplace_back(file.name, file.size_bytes);
    digester.MarkWritten({0, file.header.size()});
    for (const PlannedPadding& zeros : file.padding)
      digester.MarkWritten({zeros.offset, zeros.size_bytes});
  }
  for (const PlannedExtra& extra : plan_.extras) {
    digesters_[static_cast<size_t>(extra.range.file_index)].MarkWritten(
        {extra.range.offset, extra.range.tensor.size_bytes});
  }
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
  const UnitRecord& record = item.record;
  const bool has_checksums = record.output_checksums.size() == outputs.size();
  const bool has_digests = record.output_sha256.size() == outputs.size();
  if (!has_checksums && !has_digests) {
    return absl::DataLossError(
        absl::StrCat("the record of ", item.tensor->source.name,
                     " in the job store is of another output; delete the job and submit again"));
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    const OutputRange& output = outputs[i];
    WrittenRange range{output.offset, output.tensor.size_bytes, output.tensor.name};
    if (has_checksums) range.checksum = record.output_checksums[i];
    if (has_digests) range.sha256 = record.output_sha256[i];
    const auto file = static_cast<size_t>(output.file_index);
    if (!item.durable) sink_.WillSync(plan_.files[file].name, range.offset, range.size_bytes);
    digesters_[file].MarkWritten(std::move(range));
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> Checkpointer::DigestUntil(Time deadline) {
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
  return FillInDigests();
}

absl::Status Checkpointer::FillInDigests() {
  for (const PlannedTensor& tensor : plan_.tensors) {
    const auto found = all_records_.find(tensor.source.name);
    if (found == all_records_.end()) continue;
    UnitRecord& record = found->second;
    record.output_sha256.clear();
    for (const OutputRange& output : OutputsOf(tensor)) {
      absl::StatusOr<std::string> digest =
          digesters_[static_cast<size_t>(output.file_index)].TensorDigest(output.tensor.name);
      if (!digest.ok()) return digest.status();
      record.output_sha256.push_back(*std::move(digest));
    }
    // Of a copy, both are of the same bytes.
    if (record.source_sha256.empty()) record.source_sha256 = record.output_sha256.front();
  }
  return absl::OkStatus();
}

}  // namespace sinq
