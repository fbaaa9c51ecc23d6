#include "tests/fakes/fault_file_system.h"

#include <utility>

#include "server/base/error.h"

namespace sinq {
namespace {

class FaultFile final : public File {
 public:
  FaultFile(std::unique_ptr<File> inner, std::shared_ptr<FaultPlan> plan)
      : inner_(std::move(inner)), plan_(std::move(plan)) {}

  absl::StatusOr<uint64_t> Size() const override {
    if (absl::Status fault = plan_->Next(FaultOperation::kSize); !fault.ok()) return fault;
    return inner_->Size();
  }
  void WillRead(uint64_t offset, uint64_t size_bytes) const override {
    inner_->WillRead(offset, size_bytes);
  }
  absl::Status ReadAt(uint64_t offset, absl::Span<std::byte> out) const override {
    if (absl::Status fault = plan_->Next(FaultOperation::kRead); !fault.ok()) {
      inner_->ReadAt(offset, out.first(out.size() / 2)).IgnoreError();
      return fault;
    }
    return inner_->ReadAt(offset, out);
  }
  absl::Status ReadOnceAt(uint64_t offset, absl::Span<std::byte> out) const override {
    if (absl::Status fault = plan_->Next(FaultOperation::kRead); !fault.ok()) {
      inner_->ReadOnceAt(offset, out.first(out.size() / 2)).IgnoreError();
      return fault;
    }
    return inner_->ReadOnceAt(offset, out);
  }
  absl::Status WriteAt(uint64_t offset, absl::Span<const std::byte> data) override {
    if (absl::Status fault = plan_->Next(FaultOperation::kWrite); !fault.ok()) {
      inner_->WriteAt(offset, data.first(data.size() / 2)).IgnoreError();
      return fault;
    }
    return inner_->WriteAt(offset, data);
  }
  absl::Status WriteOnceAt(uint64_t offset, absl::Span<const std::byte> data) override {
    if (absl::Status fault = plan_->Next(FaultOperation::kWrite); !fault.ok()) {
      inner_->WriteOnceAt(offset, data.first(data.size() / 2)).IgnoreError();
      return fault;
    }
    return inner_->WriteOnceAt(offset, data);
  }
  void WillSync(uint64_t offset, uint64_t size_bytes) override {
    inner_->WillSync(offset, size_bytes);
  }
  absl::Status Preallocate(uint64_t size_bytes) override {
    if (absl::Status fault = plan_->Next(FaultOperation::kPreallocate); !fault.ok()) return fault;
    return inner_->Preallocate(size_bytes);
  }
  absl::Status Sync() override {
    if (absl::Status fault = plan_->Next(FaultOperation::kSyncFile); !fault.ok()) return fault;
    return inner_->Sync();
  }

 private:
  const std::unique_ptr<File> inner_;
  const std::shared_ptr<FaultPlan> plan_;
};

class FaultDirectory final : public Directory {
 public:
  FaultDirectory(std::shared_ptr<Directory> inner, std::shared_ptr<FaultPlan> plan)
      : inner_(std::move(inner)), plan_(std::move(plan)) {}

  absl::StatusOr<std::unique_ptr<File>> OpenForRead(absl::string_view name) const override {
    return Wrap(FaultOperation::kOpenForRead, [&] { return inner_->OpenForRead(name); });
  }
  absl::StatusOr<std::unique_ptr<File>> OpenForWrite(absl::string_view name) override {
    return Wrap(FaultOperation::kOpenForWrite, [&] { return inner_->OpenForWrite(name); });
  }
  absl::StatusOr<std::unique_ptr<Directory>> OpenDirectory(absl::string_view name) const override {
    if (absl::Status fault = plan_->Next(FaultOperation::kOpenDirectory); !fault.ok()) return fault;
    absl::StatusOr<std::unique_ptr<Directory>> opened = inner_->OpenDirectory(name);
    if (!opened.ok()) return opened.status();
    return MakeFaultDirectory(*std::move(opened), plan_);
  }
  absl::Status MakeDirectory(absl::string_view name) override {
    if (absl::Status fault = plan_->Next(FaultOperation::kMakeDirectory); !fault.ok()) return fault;
    return inner_->MakeDirectory(name);
  }
  absl::StatusOr<std::vector<DirEntry>> List(size_t max_entries) const override {
    if (absl::Status fault = plan_->Next(FaultOperation::kList); !fault.ok()) return fault;
    return inner_->List(max_entries);
  }
  bool Exists(absl::string_view name) const override { return inner_->Exists(name); }
  absl::Status Rename(absl::string_view from, absl::string_view to) override {
    if (absl::Status fault = plan_->Next(FaultOperation::kRename); !fault.ok()) return fault;
    return inner_->Rename(from, to);
  }
  absl::Status RemoveFile(absl::string_view name) override {
    if (absl::Status fault = plan_->Next(FaultOperation::kRemoveFile); !fault.ok()) return fault;
    return inner_->RemoveFile(name);
  }
  absl::Status RemoveTree(absl::string_view name) override {
    if (absl::Status fault = plan_->Next(FaultOperation::kRemoveTree); !fault.ok()) return fault;
    return inner_->RemoveTree(name);
  }
  absl::Status Sync() override {
    if (absl::Status fault = plan_->Next(FaultOperation::kSyncDirectory); !fault.ok()) return fault;
    return inner_->Sync();
  }
  absl::StatusOr<uint64_t> FreeBytes() const override {
    if (absl::Status fault = plan_->Next(FaultOperation::kFreeBytes); !fault.ok()) return fault;
    return inner_->FreeBytes();
  }

 private:
  template <typename Open>
  absl::StatusOr<std::unique_ptr<File>> Wrap(FaultOperation operation, Open open) const {
    if (absl::Status fault = plan_->Next(operation); !fault.ok()) return fault;
    absl::StatusOr<std::unique_ptr<File>> file = open();
    if (!file.ok()) return file.status();
    return std::make_unique<FaultFile>(*std::move(file), plan_);
  }

  const std::shared_ptr<Directory> inner_;
  const std::shared_ptr<FaultPlan> plan_;
};

class FaultFileSystem final : public FileSystem {
 public:
  FaultFileSystem(std::shared_ptr<FileSystem> inner, std::shared_ptr<FaultPlan> plan)
      : inner_(std::move(inner)), plan_(std::move(plan)) {}

  absl::StatusOr<ResolvedPath> Resolve(absl::string_view uri) const override {
    absl::StatusOr<ResolvedPath> path = inner_->Resolve(uri);
    if (path.ok()) path->root = MakeFaultDirectory(path->root, plan_);
    return path;
  }

 private:
  const std::shared_ptr<FileSystem> inner_;
  const std::shared_ptr<FaultPlan> plan_;
};

}  // namespace

void FaultPlan::Fail(FaultOperation operation, int nth, int error_number, bool onwards) {
  MutexLock lock(&mutex_);
  faults_.push_back({operation, nth, error_number, onwards});
}

void FaultPlan::ShortRead(int nth) { Fail(FaultOperation::kRead, nth, 0); }

int FaultPlan::Count(FaultOperation operation) const {
  MutexLock lock(&mutex_);
  const auto found = counts_.find(operation);
  return found == counts_.end() ? 0 : found->second;
}

absl::Status FaultPlan::Next(FaultOperation operation) {
  MutexLock lock(&mutex_);
  const int call = ++counts_[operation];
  for (const Fault& fault : faults_) {
    if (fault.operation != operation) continue;
    if (call != fault.nth && !(fault.onwards && call > fault.nth)) continue;
    if (fault.error_number != 0) return ErrnoToStatus(fault.error_number, "Injected fault");
    return MakeError(absl::StatusCode::kOutOfRange, Reason::kIoError,
                     "Injected fault: the file ends early.");
  }
  return absl::OkStatus();
}

std::unique_ptr<Directory> MakeFaultDirectory(std::shared_ptr<Directory> inner,
                                              std::shared_ptr<FaultPlan> plan) {
  return std::make_unique<FaultDirectory>(std::move(inner), std::move(plan));
}

std::unique_ptr<FileSystem> MakeFaultFileSystem(std::shared_ptr<FileSystem> inner,
                                                std::shared_ptr<FaultPlan> plan) {
  return std::make_unique<FaultFileSystem>(std::move(inner), std::move(plan));
}

}  // namespace sinq
