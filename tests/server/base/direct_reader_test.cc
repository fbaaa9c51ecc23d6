// Reads past the page cache, as far as the file system of the temporary directory has any.
#include "server/base/direct_reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "server/base/aligned_buffer.h"
#include "server/base/direct_blocks.h"
#include "server/base/error.h"
#include "server/base/file_system.h"
#include "tests/fakes/temp_dir.h"

namespace sinq {
namespace {

constexpr size_t kFileBytes = (3 << 20) + 1234;  // ends within a block

std::string Noise(size_t size) {
  std::string out(size, '\0');
  uint32_t state = 1;
  for (char& c : out) c = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
  return out;
}

class DirectReaderTest : public testing::Test {
 protected:
  DirectReaderTest() : content_(Noise(kFileBytes)), memory_(*AlignedBuffer::Allocate(4 << 20)) {
    temp_.Write("f", content_);
    directory_ = *OpenPosixDirectory(temp_.path(), false);
    file_ = *directory_->OpenForRead("f");
    fd_ = UniqueFd(::open(temp_.Join("f").c_str(), O_RDONLY));
  }

  // From now on only the disk holds the file.
  void Evict() {
    ::fsync(fd_.get());
    ::posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED);
  }

  // Memory that lies as `offset` does, so far into a block.
  absl::Span<std::byte> MemoryFor(uint64_t offset, size_t size) {
    std::memset(memory_.data(), 0x5A, memory_.SizeBytes());
    return memory_.span().subspan(BytesIntoBlock(offset), size);
  }

  absl::string_view Text(absl::Span<const std::byte> bytes) const {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  TempDir temp_;
  const std::string content_;
  AlignedBuffer memory_;
  std::unique_ptr<Directory> directory_;
  std::unique_ptr<File> file_;
  UniqueFd fd_;
};

TEST_F(DirectReaderTest, EveryRangeIsReadWhetherCachedOrNot) {
  struct Range {
    uint64_t offset;
    size_t size;
  };
  const Range ranges[] = {{0, kFileBytes},      {0, 4096},  {1, 4095},     {4095, 2},
                          {4095, 4098},         {4096, 0},  {5000, 10},    {5000, 1 << 20},
                          {8192, 8192 + 17},    {100, 1},   {1 << 20, 7},  {(2 << 20) + 8, 1 << 20},
                          {kFileBytes - 1, 1},  {3 << 20, 1234}};
  for (const bool evicted : {true, false}) {
    for (const Range& range : ranges) {
      if (evicted) Evict();
      // In congruent memory, and one byte beside it.
      for (const uint64_t phase : {range.offset, range.offset + 1}) {
        const absl::Span<std::byte> out = MemoryFor(phase, range.size);
        ASSERT_TRUE(file_->ReadOnceAt(range.offset, out).ok());
        EXPECT_EQ(Text(out), absl::string_view(content_).substr(range.offset, range.size))
            << range.offset << " + " << range.size;
        EXPECT_EQ(out.data()[range.size], std::byte{0x5A}) << "a byte behind was touched";
      }
    }
  }
}

TEST_F(DirectReaderTest, PassesTheCacheBy) {
  const std::unique_ptr<DirectReader> reader = DirectReader::Open(fd_.get());
  if (reader == nullptr) GTEST_SKIP() << "no O_DIRECT in the temporary directory";
  Evict();
  // Twice: had the first read gone through the cache, the second would leave it to the cache.
  for (int i = 0; i < 2; ++i) EXPECT_EQ(reader->Read(0, MemoryFor(0, 1 << 20)), size_t{1} << 20);
  ASSERT_TRUE(file_->ReadAt(0, MemoryFor(0, 4096)).ok());
  EXPECT_EQ(reader->Read(0, MemoryFor(0, 4096)), 0u) << "cached by now";
  EXPECT_EQ(reader->Read(0, MemoryFor(0, 3 << 20)), size_t{3} << 20) << "mostly not cached";
}

TEST_F(DirectReaderTest, TheEndOfTheFile) {
  const std::unique_ptr<DirectReader> reader = DirectReader::Open(fd_.get());
  if (reader == nullptr) GTEST_SKIP() << "no O_DIRECT in the temporary directory";
  Evict();
  EXPECT_EQ(reader->Read(3 << 20, MemoryFor(0, 8192)), 1234u);
  Evict();
  EXPECT_EQ(reader->Read(4 << 20, MemoryFor(0, 8192)), 0u);
  EXPECT_EQ(reader->Read(0, {}), 0u);
}

TEST_F(DirectReaderTest, AFileThatEndsTooEarlyIsNamed) {
  Evict();
  const absl::Status status = file_->ReadOnceAt(2 << 20, MemoryFor(0, 2 << 20));
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange) << status;
  EXPECT_EQ(GetErrorDetails(status).metadata.at("byte_offset"), std::to_string(kFileBytes));
  EXPECT_FALSE(file_->ReadOnceAt(UINT64_MAX - 4095, MemoryFor(0, 8192)).ok());
}

TEST_F(DirectReaderTest, NothingForWhatIsNoFile) {
  EXPECT_EQ(DirectReader::Open(-1), nullptr);
  int pipe_fds[2];
  ASSERT_EQ(::pipe(pipe_fds), 0);
  const UniqueFd in(pipe_fds[0]), out(pipe_fds[1]);
  const std::unique_ptr<DirectReader> reader = DirectReader::Open(in.get());
  if (reader == nullptr) return;
  EXPECT_EQ(reader->Read(0, MemoryFor(0, 4096)), 0u);
}

TEST(DirectBlocks, PiecesEndOnBlocks) {
  constexpr size_t kMost = 1 << 20;
  static_assert(BytesIntoBlock(4096) == 0 && BytesToNextBlock(4096) == 0);
  static_assert(BytesIntoBlock(4097) == 1 && BytesToNextBlock(4097) == 4095);
  EXPECT_EQ(BytesOfPiece(0, 100, kMost), 100u);
  EXPECT_EQ(BytesOfPiece(0, 2 << 20, kMost), kMost);
  EXPECT_EQ(BytesOfPiece(1, 2 << 20, kMost), kMost - 1);
  EXPECT_EQ(BytesOfPiece(4095, 2 << 20, kMost), kMost - 4095);
  // Every piece but the last ends on a block, and none is empty.
  for (uint64_t begin : {0, 1, 8, 4095, 4096, 5000}) {
    uint64_t offset = begin;
    const uint64_t end = begin + (5 << 20) + 77;
    while (offset < end) {
      const size_t size = BytesOfPiece(offset, end - offset, kMost);
      ASSERT_GT(size, 0u);
      offset += size;
      EXPECT_TRUE(offset == end || BytesIntoBlock(offset) == 0);
    }
    EXPECT_EQ(offset, end);
  }
}

}  // namespace
}  // namespace sinq
