#include "server/source/activation_file.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "tests/fakes/temp_dir.h"
#include "tests/fakes/tiny_checkpoint.h"

namespace sinq {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

template <typename Element>
std::string Bytes(const std::vector<Element>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(Element)};
}

TestTensor F32(const std::string& name, std::vector<int64_t> shape,
               const std::vector<float>& values) {
  return {name, "F32", std::move(shape), Bytes(values)};
}

class ActivationFileTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<ActivationFile>> Open(const std::vector<TestTensor>& tensors) {
    temp_.Write("a.safetensors", SafetensorsOf(tensors));
    const auto files = MakePosixFileSystem({temp_.path()});
    return ActivationFile::Open(*(*files)->Resolve(temp_.Join("a.safetensors")));
  }
  void ExpectRefused(const std::vector<TestTensor>& tensors, const std::string& what) {
    const absl::Status status = Open(tensors).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
  }
  static bool Never() { return false; }

  TempDir temp_;
};

TEST_F(ActivationFileTest, FindsAndReadsEachDtype) {
  // 1.5, -2, the smallest F16 and its largest.
  const std::vector<uint16_t> f16 = {0x3e00, 0xc000, 0x0001, 0x7bff};
  const std::vector<uint16_t> bf16 = {0x3fc0, 0xc000};  // 1.5, -2
  const auto file = Open({F32("a.samples", {1, 3}, {1, 2, 3}),
                          {"b.second_moments", "F16", {2, 2}, Bytes(f16)},
                          {"c.d.samples", "BF16", {2, 1}, Bytes(bf16)}});
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<float> values(3);
  auto found = (*file)->Find("a", 3);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->rows, 1);
  EXPECT_FALSE(found->is_second_moments);
  EXPECT_EQ(found->FloatBytes(), 12u);
  ASSERT_TRUE((*file)->Read(*found, absl::MakeSpan(values), Never).ok());
  EXPECT_THAT(values, ElementsAre(1, 2, 3));
  found = (*file)->Find("b", 2);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_TRUE(found->is_second_moments);
  values.resize(4);
  ASSERT_TRUE((*file)->Read(*found, absl::MakeSpan(values), Never).ok());
  EXPECT_THAT(values, ElementsAre(1.5f, -2.0f, std::ldexp(1.0f, -24), 65504.0f));
  found = (*file)->Find("c.d", 1);
  ASSERT_TRUE(found.ok()) << found.status();
  values.resize(2);
  ASSERT_TRUE((*file)->Read(*found, absl::MakeSpan(values), Never).ok());
  EXPECT_THAT(values, ElementsAre(1.5f, -2.0f));
}

TEST_F(ActivationFileTest, LongTensorsAreReadInPieces) {
  std::vector<float> values(600'000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const auto file = Open({F32("a.samples", {2000, 300}, values)});
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<float> read(values.size());
  ASSERT_TRUE((*file)->Read(*(*file)->Find("a", 300), absl::MakeSpan(read), Never).ok());
  EXPECT_EQ(read, values);
  EXPECT_TRUE(absl::IsCancelled(
      (*file)->Read(*(*file)->Find("a", 300), absl::MakeSpan(read), [] { return true; })));
}

TEST_F(ActivationFileTest, WrongNamesShapesAndDtypesNameTheTensor) {
  ExpectRefused({F32("a.mean", {1, 1}, {1})}, "a.mean is neither");
  ExpectRefused({F32("a.samples", {2}, {1, 1})}, "a.samples has the shape [2]");
  ExpectRefused({F32("a.samples", {0, 2}, {})}, "[0, 2]");
  ExpectRefused({F32("a.second_moments", {1, 2}, {1, 2})}, "[in_features, in_features]");
  ExpectRefused({{"a.samples", "I32", {1, 1}, "1234"}}, "dtype I32");
  ExpectRefused({F32("a.samples", {1, 1}, {1}), F32("a.second_moments", {1, 1}, {1})},
                "give one of the two");
  ExpectRefused({F32("a.samples", {kMaxActivationTokens + 1, 1},
                     std::vector<float>(kMaxActivationTokens + 1))},
                "more than the 32768");
}

TEST_F(ActivationFileTest, WhatALayerNeedsIsCheckedWhenItIsAskedFor) {
  const auto file = Open({F32("a.samples", {1, 2}, {1, 2})});
  ASSERT_TRUE(file.ok()) << file.status();
  const absl::Status missing = (*file)->Find("b", 2).status();
  EXPECT_TRUE(absl::IsInvalidArgument(missing));
  EXPECT_THAT(std::string(missing.message()), HasSubstr("b.samples is missing"));
  const absl::Status wrong = (*file)->Find("a", 3).status();
  EXPECT_TRUE(absl::IsInvalidArgument(wrong));
  EXPECT_THAT(std::string(wrong.message()), HasSubstr("in_features = 3"));
  EXPECT_EQ(GetErrorDetails(wrong).metadata["tensor"], "a.samples");
  EXPECT_TRUE((*file)->CheckLayers([](const std::string& layer) { return layer == "a"; }).ok());
  const absl::Status stranger = (*file)->CheckLayers([](const std::string&) { return false; });
  EXPECT_THAT(std::string(stranger.message()), HasSubstr("a.samples belongs to no layer"));
}

TEST_F(ActivationFileTest, ANaNNamesItsPlace) {
  const auto file = Open({F32("a.samples", {2, 2}, {1, 2, 3, std::nanf("")})});
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<float> values(4);
  const absl::Status status = (*file)->Read(*(*file)->Find("a", 2), absl::MakeSpan(values), Never);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("a.samples holds a NaN or infinity at [1, 1]"));
}

TEST_F(ActivationFileTest, WhatCannotBeSecondMomentsIsRefused) {
  const auto read = [this](std::vector<float> moments) {
    const auto file = Open({F32("a.second_moments", {2, 2}, moments)});
    EXPECT_TRUE(file.ok()) << file.status();
    std::vector<float> values(4);
    return (*file)->Read(*(*file)->Find("a", 2), absl::MakeSpan(values), Never);
  };
  EXPECT_TRUE(read({4, 2, 2, 1}).ok());
  EXPECT_TRUE(read({0, 0, 0, 1}).ok());
  EXPECT_TRUE(read({4, 1.01f, 1, 1}).ok());  // rounded
  EXPECT_THAT(std::string(read({4, 1, 1, -1}).message()), HasSubstr("negative second moment"));
  EXPECT_THAT(std::string(read({4, 1, 0, 1}).message()), HasSubstr("a.second_moments"));
  EXPECT_THAT(std::string(read({4, 3, 3, 1}).message()), HasSubstr("[1, 0]"));
}

TEST_F(ActivationFileTest, WhatIsNoSafetensorsFileIsRefused) {
  temp_.Write("a.safetensors", "this is no header");
  const auto files = MakePosixFileSystem({temp_.path()});
  const auto path = (*files)->Resolve(temp_.Join("a.safetensors"));
  EXPECT_FALSE(ActivationFile::Open(*path).ok());
  EXPECT_FALSE(ActivationFile::Open(*(*files)->Resolve(temp_.Join("none"))).ok());
}

}  // namespace
}  // namespace sinq
