// Writes past the page cache, as far as the file system of the temporary directory has any.
#include "server/base/direct_writer.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "server/base/aligned_buffer.h"
#include "server/base/direct_blocks.h"
#include "server/base/file_system.h"
#include "tests/fakes/temp_dir.h"

namespace sinq {
namespace {

constexpr size_t kFileBytes = (3 << 20) + 1234;  // ends within a block

class DirectWriterTest : public testing::Test {
 protected:
  DirectWriterTest() : expected_(kFileBytes, '\0'), memory_(*AlignedBuffer::Allocate(4 << 20)) {
    directory_ = *OpenPosixDirectory(temp_.path(), false);
    file_ = *directory_->OpenForWrite("f");
    EXPECT_TRUE(file_->Preallocate(kFileBytes).ok());
    fd_ = UniqueFd(::open(temp_.Join("f").c_str(), O_RDWR));
  }

  // Bytes that were never written before, which lie as `phase` does, so far into a block.
  absl::Span<const std::byte> Fresh(uint64_t phase, size_t size) {
    const absl::Span<std::byte> out = memory_.span().subspan(BytesIntoBlock(phase), size);
    for (std::byte& byte : out) byte = static_cast<std::byte>((state_ = state_ * 5 + 1) >> 16);
    return out;
  }
  void Expect(uint64_t offset, absl::Span<const std::byte> data) {
    std::memcpy(expected_.data() + offset, data.data(), data.size());
  }
  std::string Content() const {
    std::string out(kFileBytes, '\0');
    EXPECT_TRUE(file_->ReadAt(0, {reinterpret_cast<std::byte*>(out.data()), out.size()}).ok());
    return out;
  }
  // Whether the page cache holds the page at `offset`.
  bool IsCached(uint64_t offset) const {
    void* page = ::mmap(nullptr, kDirectBlockBytes, PROT_READ, MAP_SHARED, fd_.get(),
                        static_cast<off_t>(offset));
    unsigned char cached = 0;
    EXPECT_EQ(::mincore(page, kDirectBlockBytes, &cached), 0);
    ::munmap(page, kDirectBlockBytes);
    return (cached & 1) != 0;
  }

  TempDir temp_;
  std::string expected_;
  AlignedBuffer memory_;
  uint32_t state_ = 1;
  std::unique_ptr<Directory> directory_;
  std::unique_ptr<File> file_;
  UniqueFd fd_;
};

TEST_F(DirectWriterTest, EveryRangeIsWrittenBesideItsNeighbours) {
  struct Range {
    uint64_t offset;
    size_t size;
  };
  const Range ranges[] = {{0, kFileBytes},     {0, 4096},  {1, 4095},    {4095, 2},
                          {4095, 4098},        {4096, 0},  {5000, 10},   {5000, 1 << 20},
                          {8192, 8192 + 17},   {100, 1},   {1 << 20, 7}, {(2 << 20) + 8, 1 << 20},
                          {kFileBytes - 1, 1}, {3 << 20, 1234}};
  for (const Range& range : ranges) {
    // From congruent memory, and from one byte beside it.
    for (const uint64_t phase : {range.offset, range.offset + 1}) {
      const absl::Span<const std::byte> data = Fresh(phase, range.size);
      ASSERT_TRUE(file_->WriteOnceAt(range.offset, data).ok());
      Expect(range.offset, data);
      EXPECT_EQ(Content(), expected_) << range.offset << " + " << range.size;
    }
  }
  EXPECT_TRUE(file_->Sync().ok());
  EXPECT_EQ(*file_->Size(), kFileBytes);
}

TEST_F(DirectWriterTest, PassesTheCacheBy) {
  const std::unique_ptr<DirectWriter> writer = DirectWriter::Open(fd_.get());
  if (writer == nullptr) GTEST_SKIP() << "no O_DIRECT in the temporary directory";
  ASSERT_EQ(writer->Write(0, Fresh(0, 1 << 20)), size_t{1} << 20);
  if (IsCached(0)) GTEST_SKIP() << "O_DIRECT writes to memory here";
  const absl::Span<const std::byte> data = Fresh(0, 1 << 20);
  ASSERT_TRUE(file_->WriteOnceAt(100, data).ok());  // not congruent: through the cache
  EXPECT_TRUE(IsCached(8192));
  ASSERT_TRUE(file_->WriteOnceAt(1 << 20, data).ok());
  EXPECT_FALSE(IsCached(1 << 20));
}

TEST_F(DirectWriterTest, ErrorsAreThoseOfTheOrdinaryWay) {
  EXPECT_FALSE(file_->WriteOnceAt(UINT64_MAX - 4095, Fresh(0, 8192)).ok());
  const std::unique_ptr<File> closed = *directory_->OpenForRead("f");
  EXPECT_FALSE(closed->WriteOnceAt(0, Fresh(0, 8192)).ok());
  EXPECT_EQ(DirectWriter::Open(-1), nullptr);
}

}  // namespace
}  // namespace sinq
