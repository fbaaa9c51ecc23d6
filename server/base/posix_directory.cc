#include "server/base/posix_directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "server/base/error.h"
#include "server/base/posix_file.h"
#include "server/base/posix_path.h"

namespace sinq {
namespace {

// Staging directories are flat; this only bounds the recursion.
constexpr int kMaxTreeDepth = 64;
// The kernel answers EAGAIN when a rename races with the walk; a few repeats are enough.
constexpr int kMaxRaceRetries = 16;

std::string Quoted(absl::string_view name) { return absl::StrCat("\"", name, "\""); }

absl::Status NoOpenat2() {
  return MakeError(absl::StatusCode::kFailedPrecondition, Reason::kIoError,
                   "The kernel does not offer openat2, without which names cannot be confined to a "
                   "directory. Linux 5.6 or newer is needed, and no sandbox that blocks the call.");
}

// A descriptor, or -1 with errno set.
int OpenBeneath(int directory, const std::string& name, uint64_t flags, uint64_t mode) {
  struct open_how how = {};
  how.flags = flags | O_CLOEXEC;
  how.mode = mode;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  long fd = -1;
  for (int attempt = 0; attempt < kMaxRaceRetries; ++attempt) {
    fd = ::syscall(SYS_openat2, directory, name.c_str(), &how, sizeof(how));
    if (fd >= 0 || (errno != EAGAIN && errno != EINTR)) break;
  }
  return static_cast<int>(fd);
}

absl::Status OpenError(int error_number, absl::string_view name) {
  switch (error_number) {
    case ENOSYS:
      return NoOpenat2();
    case EXDEV:
      return MakeError(absl::StatusCode::kPermissionDenied, Reason::kPathOutsideRoots,
                       absl::StrCat(Quoted(name), " leads outside the directory it must stay in."),
                       {{"path", std::string(name)}});
    case ELOOP:
      return MakeError(absl::StatusCode::kPermissionDenied, Reason::kPathOutsideRoots,
                       absl::StrCat(Quoted(name),
                                    " goes through a symbolic link that must not be "
                                    "followed."),
                       {{"path", std::string(name)}});
    default:
      return ErrnoToStatus(error_number, absl::StrCat("Cannot open ", Quoted(name)));
  }
}

absl::StatusOr<UniqueFd> OpenChecked(int directory, absl::string_view name, uint64_t flags,
                                     uint64_t mode) {
  if (absl::Status status = CheckRelativeName(name); !status.ok()) return status;
  const int fd = OpenBeneath(directory, std::string(name), flags, mode);
  if (fd < 0) return OpenError(errno, name);
  return UniqueFd(fd);
}

absl::StatusOr<std::unique_ptr<File>> OpenRegular(int directory, absl::string_view name,
                                                  uint64_t flags, uint64_t mode) {
  // O_NONBLOCK: opening a FIFO must not wait for its other end.
  absl::StatusOr<UniqueFd> fd = OpenChecked(directory, name, flags | O_NONBLOCK | O_NOCTTY, mode);
  if (!fd.ok()) return fd.status();
  struct stat info = {};
  if (::fstat(fd->get(), &info) != 0) {
    return ErrnoToStatus(errno, absl::StrCat("Cannot examine ", Quoted(name)));
  }
  if (!S_ISREG(info.st_mode)) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                     absl::StrCat(Quoted(name), " is not a regular file."),
                     {{"path", std::string(name)}});
  }
  return std::make_unique<PosixFile>(*std::move(fd), std::string(name));
}

struct CloseDir {
  void operator()(DIR* dir) const { ::closedir(dir); }
};
using DirHandle = std::unique_ptr<DIR, CloseDir>;

// A stream of its own, because a directory descriptor's read position is shared between threads.
absl::StatusOr<DirHandle> OpenStream(int directory) {
  UniqueFd fd(::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0) return ErrnoToStatus(errno, "Cannot list a directory");
  DIR* dir = ::fdopendir(fd.get());
  if (dir == nullptr) return ErrnoToStatus(errno, "Cannot list a directory");
  fd.Release();
  return DirHandle(dir);
}

// The next name that is neither "." nor ".."; empty at the end.
absl::StatusOr<std::string> NextName(DIR* dir) {
  while (true) {
    errno = 0;
    const struct dirent* entry = ::readdir(dir);
    if (entry == nullptr) {
      if (errno != 0) return ErrnoToStatus(errno, "Cannot list a directory");
      return std::string();
    }
    std::string name = entry->d_name;
    if (name != "." && name != "..") return name;
  }
}

// Removes what lies in `directory`, never following a symlink. A name that vanishes meanwhile is
// fine.
absl::Status RemoveContents(int directory, int depth) {
  if (depth > kMaxTreeDepth) {
    return MakeError(
        absl::StatusCode::kFailedPrecondition, Reason::kLimitExceeded,
        absl::StrCat("A directory tree deeper than ", kMaxTreeDepth, " levels is not removed."));
  }
  absl::StatusOr<DirHandle> dir = OpenStream(directory);
  if (!dir.ok()) return dir.status();
  while (true) {
    absl::StatusOr<std::string> name = NextName(dir->get());
    if (!name.ok()) return name.status();
    if (name->empty()) return absl::OkStatus();
    if (::unlinkat(directory, name->c_str(), 0) == 0 || errno == ENOENT) continue;
    if (errno != EISDIR && errno != EPERM) {
      return ErrnoToStatus(errno, absl::StrCat("Cannot remove ", Quoted(*name)));
    }
    const UniqueFd child(
        ::openat(directory, name->c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (child.get() < 0) return ErrnoToStatus(errno, absl::StrCat("Cannot open ", Quoted(*name)));
    if (absl::Status status = RemoveContents(child.get(), depth + 1); !status.ok()) return status;
    if (::unlinkat(directory, name->c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT) {
      return ErrnoToStatus(errno, absl::StrCat("Cannot remove ", Quoted(*name)));
    }
  }
}

absl::StatusOr<DirEntry> Describe(int directory, const std::string& name) {
  struct stat info = {};
  if (::fstatat(directory, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
    return ErrnoToStatus(errno, absl::StrCat("Cannot examine ", Quoted(name)));
  }
  DirEntry entry;
  entry.name = name;
  entry.is_directory = S_ISDIR(info.st_mode);
  entry.is_regular_file = S_ISREG(info.st_mode);
  entry.is_symlink = S_ISLNK(info.st_mode);
  if (entry.is_regular_file) entry.size_bytes = static_cast<uint64_t>(info.st_size);
  return entry;
}

// As rename(2), but EEXIST where there is something of that name. Where the file system does not
// know how (NFS, some of FUSE), a look before the rename is as near as one gets.
int RenameWithoutReplacing(int from_parent, const char* from, int to_parent, const char* to) {
  if (::renameat2(from_parent, from, to_parent, to, RENAME_NOREPLACE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return -1;
  struct stat present;
  if (::fstatat(to_parent, to, &present, AT_SYMLINK_NOFOLLOW) == 0) {
    errno = EEXIST;
    return -1;
  }
  return ::renameat(from_parent, from, to_parent, to);
}

}  // namespace

absl::StatusOr<std::unique_ptr<PosixDirectory>> PosixDirectory::Open(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0)
    return ErrnoToStatus(errno, absl::StrCat("Cannot open directory ", Quoted(path)));
  const UniqueFd probe(OpenBeneath(fd.get(), ".", O_PATH | O_DIRECTORY, 0));
  if (probe.get() < 0) return NoOpenat2();
  return std::make_unique<PosixDirectory>(std::move(fd));
}

absl::StatusOr<PosixDirectory::Place> PosixDirectory::FindPlace(absl::string_view name) const {
  if (absl::Status status = CheckRelativeName(name); !status.ok()) return status;
  auto [parent, leaf] = SplitParent(name);
  if (leaf.empty() || leaf == ".") {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                     absl::StrCat(Quoted(name), " names the directory itself."));
  }
  absl::StatusOr<UniqueFd> fd =
      OpenChecked(fd_.get(), parent.empty() ? "." : parent, O_PATH | O_DIRECTORY, 0);
  if (!fd.ok()) return fd.status();
  return Place{*std::move(fd), std::move(leaf)};
}

absl::StatusOr<std::unique_ptr<File>> PosixDirectory::OpenForRead(absl::string_view name) const {
  return OpenRegular(fd_.get(), name, O_RDONLY, 0);
}

absl::StatusOr<std::unique_ptr<File>> PosixDirectory::OpenForWrite(absl::string_view name) {
  return OpenRegular(fd_.get(), name, O_RDWR | O_CREAT | O_NOFOLLOW, 0644);
}

absl::StatusOr<std::unique_ptr<Directory>> PosixDirectory::OpenDirectory(
    absl::string_view name) const {
  absl::StatusOr<UniqueFd> fd =
      OpenChecked(fd_.get(), name.empty() ? "." : name, O_RDONLY | O_DIRECTORY, 0);
  if (!fd.ok()) return fd.status();
  return std::make_unique<PosixDirectory>(*std::move(fd));
}

absl::Status PosixDirectory::MakeDirectory(absl::string_view name) {
  absl::StatusOr<Place> place = FindPlace(name);
  if (!place.ok()) return place.status();
  if (::mkdirat(place->parent.get(), place->leaf.c_str(), 0755) != 0) {
    return ErrnoToStatus(errno, absl::StrCat("Cannot make directory ", Quoted(name)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<DirEntry>> PosixDirectory::List(size_t max_entries) const {
  absl::StatusOr<DirHandle> dir = OpenStream(fd_.get());
  if (!dir.ok()) return dir.status();
  std::vector<DirEntry> entries;
  while (true) {
    absl::StatusOr<std::string> name = NextName(dir->get());
    if (!name.ok()) return name.status();
    if (name->empty()) break;
    if (entries.size() >= max_entries) {
      return MakeError(absl::StatusCode::kResourceExhausted, Reason::kLimitExceeded,
                       absl::StrCat("The directory has more than ", max_entries, " entries."));
    }
    absl::StatusOr<DirEntry> entry = Describe(fd_.get(), *name);
    if (absl::IsNotFound(entry.status())) continue;  // removed since it was listed
    if (!entry.ok()) return entry.status();
    entries.push_back(*std::move(entry));
  }
  std::sort(entries.begin(), entries.end(),
            [](const DirEntry& a, const DirEntry& b) { return a.name < b.name; });
  return entries;
}

bool PosixDirectory::Exists(absl::string_view name) const {
  return OpenChecked(fd_.get(), name.empty() ? "." : name, O_PATH | O_NOFOLLOW, 0).ok();
}

absl::Status PosixDirectory::Rename(absl::string_view from, absl::string_view to) {
  absl::StatusOr<Place> source = FindPlace(from);
  if (!source.ok()) return source.status();
  absl::StatusOr<Place> target = FindPlace(to);
  if (!target.ok()) return target.status();
  if (RenameWithoutReplacing(source->parent.get(), source->leaf.c_str(), target->parent.get(),
                             target->leaf.c_str()) == 0) {
    return absl::OkStatus();
  }
  return ErrnoToStatus(errno, absl::StrCat("Cannot rename ", Quoted(from), " to ", Quoted(to)));
}

absl::Status PosixDirectory::RemoveFile(absl::string_view name) {
  absl::StatusOr<Place> place = FindPlace(name);
  if (!place.ok()) return place.status();
  if (::unlinkat(place->parent.get(), place->leaf.c_str(), 0) != 0) {
    return ErrnoToStatus(errno, absl::StrCat("Cannot remove ", Quoted(name)));
  }
  return absl::OkStatus();
}

absl::Status PosixDirectory::RemoveTree(absl::string_view name) {
  absl::StatusOr<Place> place = FindPlace(name);
  if (absl::IsNotFound(place.status())) return absl::OkStatus();
  if (!place.ok()) return place.status();
  const int parent = place->parent.get();
  const char* leaf = place->leaf.c_str();
  const UniqueFd tree(::openat(parent, leaf, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (tree.get() < 0) {
    // A file or a symlink of that name goes away as such.
    if (errno == ENOENT) return absl::OkStatus();
    if ((errno == ENOTDIR || errno == ELOOP) && ::unlinkat(parent, leaf, 0) == 0) {
      return absl::OkStatus();
    }
    return ErrnoToStatus(errno, absl::StrCat("Cannot remove ", Quoted(name)));
  }
  if (absl::Status status = RemoveContents(tree.get(), 0); !status.ok()) return status;
  if (::unlinkat(parent, leaf, AT_REMOVEDIR) != 0 && errno != ENOENT) {
    return ErrnoToStatus(errno, absl::StrCat("Cannot remove ", Quoted(name)));
  }
  return absl::OkStatus();
}

absl::Status PosixDirectory::Sync() {
  if (::fsync(fd_.get()) != 0) return ErrnoToStatus(errno, "Cannot sync a directory");
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> PosixDirectory::FreeBytes() const {
  struct statvfs info = {};
  if (::fstatvfs(fd_.get(), &info) != 0) return ErrnoToStatus(errno, "Cannot ask for free space");
  return static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
}

}  // namespace sinq
