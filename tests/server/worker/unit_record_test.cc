#include "server/worker/unit_record.h"

#include "gtest/gtest.h"

namespace sinq {
namespace {

TEST(UnitRecordTest, NumbersSurviveTheRoundTripExactly) {
  const UnitRecord record{"ab", {"c", "d"}, true, 0.1, 1e-300, 12345.678901234567, 4.0625};
  const auto back = UnitRecordFromJson(UnitRecordToJson(record));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->source_sha256, "ab");
  EXPECT_EQ(back->output_sha256, record.output_sha256);
  EXPECT_TRUE(back->quantized);
  EXPECT_EQ(back->relative_error, record.relative_error);
  EXPECT_EQ(back->imbalance_before, record.imbalance_before);
  EXPECT_EQ(back->imbalance_after, record.imbalance_after);
  EXPECT_EQ(back->mean_rounds, record.mean_rounds);
}

TEST(UnitRecordTest, FiguresThatABackendDoesNotTakeStayAbsent) {
  UnitRecord record{"ab", {"c"}, true, 0.1, 2, 1, 4};
  record.cosine = 0.99612345678901234;
  record.kurtosis = 3.5;
  const auto back = UnitRecordFromJson(UnitRecordToJson(record));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->cosine, record.cosine);
  EXPECT_EQ(back->kurtosis, 3.5);
  EXPECT_FALSE(back->balanced_error);
  EXPECT_FALSE(back->max_abs_error);
}

TEST(UnitRecordTest, ACopiedTensorHasNoFigures) {
  const auto back = UnitRecordFromJson(UnitRecordToJson({"ab", {"ab"}, false, 0, 0, 0, 0}));
  ASSERT_TRUE(back.ok());
  EXPECT_FALSE(back->quantized);
}

TEST(UnitRecordTest, DamagedTextIsDataLoss) {
  for (const char* text :
       {"", "null", "[]", "{}", "{\"source_sha256\": 1, \"output_sha256\": []}",
        "{\"source_sha256\": \"a\", \"output_sha256\": \"b\"}", "{\"source_sha256\": \"a\"",
        R"({"source_sha256": "a"})", R"({"source_sha256": "a", "output_sha256": []})",
        R"({"source_sha256": "a", "output_sha256": 1})",
        R"({"source_sha256": "a", "output_sha256": ["b", 1]})"}) {
    EXPECT_TRUE(absl::IsDataLoss(UnitRecordFromJson(text).status())) << text;
  }
}

TEST(UnitRecord, CodesOfAMeasurementSurviveTheRoundTrip) {
  UnitRecord record;
  for (int code = -127; code <= 127; ++code)
    record.column_codes.push_back(static_cast<int8_t>(code));
  const std::string text = UnitRecordToJson(record);
  EXPECT_LT(text.size(), 255u * 4 / 3 + 30);
  const auto back = UnitRecordFromJson(text);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->column_codes, record.column_codes);
  for (const char* damaged : {R"({"column_codes": 3})", R"({"column_codes": "?"})",
                              R"({"column_codes": ""})"})
    EXPECT_TRUE(absl::IsDataLoss(UnitRecordFromJson(damaged).status())) << damaged;
}

}  // namespace
}  // namespace sinq
