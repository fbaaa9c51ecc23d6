#include "server/source/safetensors_header.h"

#include <cerrno>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/base/error.h"
#include "server/base/sha256.h"
#include "server/source/safetensors_dtype.h"
#include "tests/fakes/fault_file_system.h"
#include "tests/fakes/safetensors_file.h"
#include "tests/fakes/temp_dir.h"

namespace sinq {
namespace {

// The complete example of the format's description.
constexpr absl::string_view kExample =
    R"({"__metadata__":{"format":"pt"},"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]},)"
    R"("b":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},)"
    R"("c":{"dtype":"U8","shape":[],"data_offsets":[12,13]}})";

TEST(SafetensorsHeader, ReadsTheExample) {
  const absl::StatusOr<SafetensorsHeader> header = ParseSafetensorsHeader(kExample, 13, "f");
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->tensors.size(), 3u);
  EXPECT_EQ(header->metadata.at("format"), "pt");
  EXPECT_EQ(header->tensors[1].name, "b");
  EXPECT_EQ(header->tensors[1].dtype, "F16");
  EXPECT_EQ(header->tensors[1].begin, 8u);
  EXPECT_TRUE(header->tensors[2].shape.empty());
  EXPECT_EQ(header->tensors[2].end, 13u);
}

TEST(SafetensorsHeader, LegalOddities) {
  const struct {
    const char* why;
    const char* json;
    uint64_t data_bytes;
  } rows[] = {
      {"no tensors", "{}", 0},
      {"trailing spaces", "{}      ", 0},
      {"metadata only", R"({"__metadata__":{}})", 0},
      {"any order of entries",
       R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"a":{"data_offsets":[0,1],"shape":[1],"dtype":"U8"}})",
       2},
      {"empty tensors between others",
       R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"z":{"dtype":"F32","shape":[0,7],"data_offsets":[2,2]},"y":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
       3},
      {"sub-byte elements", R"({"a":{"dtype":"F4","shape":[3,2],"data_offsets":[0,3]}})", 3},
      {"eight dimensions",
       R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})", 1},
  };
  for (const auto& row : rows) {
    EXPECT_TRUE(ParseSafetensorsHeader(row.json, row.data_bytes, "f").ok())
        << row.why << ": " << ParseSafetensorsHeader(row.json, row.data_bytes, "f").status();
  }
}

// Each row passes if its defence is taken out.
TEST(SafetensorsHeader, HostileHeaders) {
  const std::string long_name(kMaxTensorNameBytes + 1, 'n');
  const struct {
    const char* why;
    std::string json;
    uint64_t data_bytes;
    const char* says;  // part of the message
  } rows[] = {
      {"empty", "", 0, "begin"},
      {"not an object", "[]", 0, "begin"},
      {"leading space", " {}", 0, "begin"},
      {"byte order mark", "\xEF\xBB\xBF{}", 0, "begin"},
      {"NUL hides the rest", std::string("{}\0,", 4), 0, "NUL"},
      {"text after the end", "{}x", 0, "not valid JSON"},
      {"duplicate tensor",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2, "twice"},
      {"duplicate field", R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1,
       "twice"},
      {"duplicate metadata key", R"({"__metadata__":{"x":"1","x":"2"}})", 0, "twice"},
      {"duplicate metadata", R"({"__metadata__":{},"__metadata__":{}})", 0, "twice"},
      {"metadata with a number", R"({"__metadata__":{"x":1}})", 0, "strings only"},
      {"metadata nested", R"({"__metadata__":{"x":{"y":"z"}}})", 0, "strings only"},
      {"metadata as a list", R"({"__metadata__":["x"]})", 0, "strings only"},
      {"metadata as a string", R"({"__metadata__":"x"})", 0, "strings only"},
      {"tensor as a list", R"({"a":[]})", 0, "unexpected"},
      {"tensor as a number", R"({"a":1})", 0, "unexpected"},
      {"tensor as a string", R"({"a":"U8"})", 0, "unexpected"},
      {"unknown field",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"path":"/etc"}})", 1, "unknown field"},
      {"no dtype", R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1, "lacks"},
      {"no shape", R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1, "lacks"},
      {"no offsets", R"({"a":{"dtype":"U8","shape":[1]}})", 1, "lacks"},
      {"one offset", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1, "lacks"},
      {"three offsets", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}})", 1, "two"},
      {"shape is no list", R"({"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})", 1,
       "unexpected"},
      {"shape is an object", R"({"a":{"dtype":"U8","shape":{"x":1},"data_offsets":[0,1]}})", 1,
       "unexpected"},
      {"shape of lists", R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1, "deeper"},
      {"dtype is a list", R"({"a":{"dtype":["U8"],"shape":[1],"data_offsets":[0,1]}})", 1,
       "unexpected"},
      {"negative dimension", R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1,
       "whole number"},
      {"fractional dimension", R"({"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})", 1,
       "whole number"},
      {"dimension beyond 64 bits",
       R"({"a":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,0]}})", 0,
       "whole number"},
      {"dimension beyond the sign",
       R"({"a":{"dtype":"U8","shape":[9223372036854775808,0],"data_offsets":[0,0]}})", 0,
       "impossible"},
      {"negative offset", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}})", 1,
       "whole number"},
      {"unknown dtype", R"({"a":{"dtype":"F7","shape":[1],"data_offsets":[0,1]}})", 1,
       "unknown dtype"},
      {"lower-case dtype", R"({"a":{"dtype":"bf16","shape":[1],"data_offsets":[0,2]}})", 2,
       "unknown dtype"},
      {"shape product wraps to 4",
       R"({"a":{"dtype":"F32","shape":[4611686018427387904,4,1],"data_offsets":[0,4]}})", 4,
       "2^64"},
      {"shape product wraps to 0",
       R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0, "2^64"},
      {"bits wrap though elements fit",
       R"({"a":{"dtype":"F64","shape":[2305843009213693953],"data_offsets":[0,8]}})", 8, "2^64"},
      {"wrap hidden behind a zero",
       R"({"a":{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}})", 0, "2^64"},
      {"half a byte", R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", 2, "2^64"},
      {"offsets larger than the shape",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,2]}})", 2, "need 1 bytes"},
      {"offsets smaller than the shape",
       R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,2]}})", 2, "need 4 bytes"},
      {"end before begin", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1, "need"},
      {"end wraps below begin",
       R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[18446744073709551615,1]}})", 1, "need"},
      {"beyond the file", R"({"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}})", 8,
       "holds only 8"},
      {"far beyond the file",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]}})",
       8, "holds only 8"},
      {"overlap",
       R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3, "overlap"},
      {"the same bytes twice",
       R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
       2, "overlap"},
      {"gap",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
       3, "gap"},
      {"does not start at 0", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2, "gap"},
      {"bytes that no tensor claims", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 2,
       "holds 2 bytes"},
      {"data without tensors", "{}", 1, "holds 1 bytes"},
      {"empty name", R"({"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, "empty name"},
      {"control character in a name",
       R"({"a\u0000b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, "control"},
      {"long name",
       absl::StrCat("{\"", long_name, R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})"), 1,
       "max_tensor_name_bytes"},
      {"nine dimensions",
       R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})", 1,
       "max_tensor_rank"},
      {"deep nesting", R"({"a":{"dtype":)" + std::string(100'000, '['), 1, "unexpected"},
      {"cut short", R"({"a":{"dtype":"U8","shape":[1)", 1, "not valid JSON"},
      {"invalid UTF-8", "{\"\xff\":{}}", 1, "not valid JSON"},
  };
  for (const auto& row : rows) {
    const absl::Status status = ParseSafetensorsHeader(row.json, row.data_bytes, "file").status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << row.why << ": " << status;
    EXPECT_NE(status.message().find(row.says), absl::string_view::npos)
        << row.why << " says: " << status.message();
    EXPECT_NE(status.message().find("file"), absl::string_view::npos) << row.why;
    EXPECT_NE(GetErrorDetails(status).reason, Reason::kUnspecified) << row.why;
  }
}

TEST(SafetensorsHeader, TensorsAreCounted) {
  std::string json = "{";
  for (int i = 0; i < 11; ++i) {
    absl::StrAppend(&json, i ? "," : "", "\"t", i,
                    R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})");
  }
  json += "}";
  EXPECT_TRUE(ParseSafetensorsHeader(json, 0, "f", {kMiB, 11}).ok());
  EXPECT_EQ(GetErrorDetails(ParseSafetensorsHeader(json, 0, "f", {kMiB, 10}).status()).reason,
            Reason::kLimitExceeded);
}

TEST(SafetensorsHeader, AHundredThousandTensorsAreQuick) {
  std::string json = "{";
  for (int i = 0; i < 100'000; ++i) {
    absl::StrAppend(&json, i ? "," : "", "\"model.layers.", i,
                    R"(.w":{"dtype":"U8","shape":[1],"data_offsets":[)", i, ",", i + 1, "]}");
  }
  json += "}";
  const auto start = std::chrono::steady_clock::now();
  const absl::StatusOr<SafetensorsHeader> header = ParseSafetensorsHeader(json, 100'000, "f");
  EXPECT_TRUE(header.ok()) << header.status();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

class ReadHeader : public testing::Test {
 protected:
  absl::StatusOr<SafetensorsHeader> Read(const std::string& content,
                                         const SafetensorsLimits& limits = {}) {
    temp_.Write("f", content);
    const std::unique_ptr<Directory> dir =
        MakeFaultDirectory(*OpenPosixDirectory(temp_.path(), false), plan_);
    absl::StatusOr<std::unique_ptr<File>> file = dir->OpenForRead("f");
    if (!file.ok()) return file.status();
    return ReadSafetensorsHeader(**file, "f", limits);
  }

  TempDir temp_;
  std::shared_ptr<FaultPlan> plan_ = std::make_shared<FaultPlan>();
};

TEST_F(ReadHeader, ReadsAFile) {
  const std::string data(13, 'x');
  const std::string content = SafetensorsFile(kExample, data);
  const absl::StatusOr<SafetensorsHeader> header = Read(content);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->data_offset, 8 + kExample.size());
  EXPECT_EQ(header->file_bytes, content.size());
  EXPECT_EQ(header->sha256, Sha256Hex(content.substr(0, header->data_offset)));
}

TEST_F(ReadHeader, TheRealLengthDecides) {
  const std::string data(13, 'x');
  const std::string good = SafetensorsFile(kExample, data);
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_TRUE(absl::IsInvalidArgument(Read(good.substr(0, size)).status())) << size;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(Read(good + "x").status()));
}

// A declared length is believed by nobody: no such amount may be allocated or read.
TEST_F(ReadHeader, DeclaredLengths) {
  for (const uint64_t claimed :
       {uint64_t{3}, uint64_t{kMaxSafetensorsHeaderBytes}, uint64_t{1} << 31, uint64_t{1} << 63,
        UINT64_MAX, UINT64_MAX - 7}) {
    const absl::Status status = Read(RawSafetensorsFile(claimed, "{}")).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << claimed << status;
  }
  EXPECT_EQ(plan_->Count(FaultOperation::kRead), 6);  // only the eight bytes, each time
  EXPECT_TRUE(absl::IsInvalidArgument(Read(RawSafetensorsFile(0, "")).status()));
  EXPECT_EQ(GetErrorDetails(Read(SafetensorsFile("{}    ", ""), {5, 10}).status()).reason,
            Reason::kLimitExceeded);
  EXPECT_TRUE(Read(SafetensorsFile("{}    ", ""), {6, 10}).ok());
}

TEST_F(ReadHeader, FaultsAreStatuses) {
  const std::string good = SafetensorsFile("{}", "");
  plan_->Fail(FaultOperation::kRead, 1, EIO);
  EXPECT_EQ(GetErrorDetails(Read(good).status()).reason, Reason::kIoError);
  plan_->ShortRead(3);
  EXPECT_FALSE(Read(good).ok());
  plan_->Fail(FaultOperation::kSize, 3, EIO);
  EXPECT_FALSE(Read(good).ok());
  EXPECT_TRUE(Read(good).ok());
}

TEST(TensorBytes, Checked) {
  EXPECT_EQ(CheckedTensorBytes(16, {3, 5}), 30u);
  EXPECT_EQ(CheckedTensorBytes(8, {}), 1u);
  EXPECT_EQ(CheckedTensorBytes(6, {4}), 3u);
  EXPECT_EQ(CheckedTensorBytes(8, {-1}), std::nullopt);
  EXPECT_EQ(CheckedTensorBytes(8, {INT64_MAX, 2}), UINT64_MAX - 1);
  EXPECT_EQ(CheckedTensorBytes(16, {INT64_MAX, 2}), std::nullopt);
  EXPECT_EQ(DtypeBits("F8_E4M3"), 8);
  EXPECT_EQ(DtypeBits("F8"), std::nullopt);
}

}  // namespace
}  // namespace sinq
