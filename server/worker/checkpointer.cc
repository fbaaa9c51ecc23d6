#include "server/worker/checkpointer.h"

#include <set>
#include <utility>

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
    digesters_.emplace_back(file.name, file.size_bytes).MarkWritten(0, file.header.size());
  }
  for (const PlannedExtra& extra : plan_.extras) {
    digesters_[static_cast<size_t>(extra.range.file_index)].MarkWritten(
        extra.range.offset, extra.range.tensor.size_bytes);
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
  for (bool last = false; !last;) {
    std::vector<Item> items;
    {
      MutexLock lock(&mutex_);
      mutex_.AwaitWithTimeout(absl::Condition(this, &Checkpointer::HasWorkOrDone), interval_);
      last = finishing_;
      items.swap(pending_);
      if (!status_.ok()) return;
    }
    absl::Status status = Commit(std::move(items));
    MutexLock lock(&mutex_);
    if (!status.ok()) status_ = std::move(status);
  }
}

absl::Status Checkpointer::Commit(std::vector<Item> items) {
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
  for (Item& item : items) {
    for (const OutputRange& range : OutputsOf(*item.tensor)) {
      digesters_[static_cast<size_t>(range.file_index)].MarkWritten(range.offset,
                                                                    range.tensor.size_bytes);
    }
    all_records_[item.tensor->source.name] = std::move(item.record);
  }
  for (FileDigester& digester : digesters_) {
    if (absl::Status status = digester.Advance(sink_); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Checkpointer::Finish(bool digest_files) {
  {
    MutexLock lock(&mutex_);
    finishing_ = true;
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
