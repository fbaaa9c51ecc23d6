#include "server/base/config.h"

#include <map>
#include <string>

#include "gtest/gtest.h"
#include "tests/fakes/temp_dir.h"

namespace sinq {
namespace {

ServerConfig Valid() {
  ServerConfig config;
  config.data_dir = "data";
  return config;
}

absl::Status FromVariables(const std::map<std::string, std::string>& variables,
                           ServerConfig& config) {
  return ApplyEnvironment(
      [&variables](const std::string& name) -> std::optional<std::string> {
        const auto found = variables.find(name);
        if (found == variables.end()) return std::nullopt;
        return found->second;
      },
      config);
}

TEST(Config, WhatItPrintsItReads) {
  ServerConfig config = Valid();
  config.allow_roots = {"a", "b"};
  config.memory_budget_bytes = 1 << 30;
  config.devices = {2, 0};
  config.cuda_streams = 5;
  config.device_memory_budget_bytes = 1 << 28;
  ServerConfig again;
  ASSERT_TRUE(ApplyConfigJson(config.ToJson(), again).ok());
  EXPECT_EQ(again.ToJson(), config.ToJson());
}

TEST(Config, RefusesWhatItDoesNotKnow) {
  const ServerConfig before = Valid();
  for (const char* text :
       {R"({"listne": "x"})", R"({"workers": "2"})", R"({"workers": 1.5})", R"({"workers": 1e99})",
        R"({"workers": 99999999999})", R"({"insecure": 1})", R"({"allow_roots": "/a"})",
        R"({"allow_roots": [1]})", R"({"memory_budget_bytes": -1})",
        R"({"memory_budget_bytes": "2 GiB"})", R"({"listen": "a", "listen": "b"})", R"([])", R"({)",
        R"({"devices": "0"})", R"({"devices": ["0"]})", R"({"devices": [1.5]})",
        R"({"devices": [99999999999]})", R"({"workers": 1, "unknown": 2})"}) {
    ServerConfig config = before;
    EXPECT_EQ(ApplyConfigJson(text, config).code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_EQ(config.ToJson(), before.ToJson()) << "changed by " << text;
  }
}

TEST(Config, VariablesReplaceTheFile) {
  TempDir dir;
  const std::string file =
      dir.Write("sinqd.json", R"({"workers": 2, "memory_budget_bytes": "64MiB"})");
  ServerConfig config = Valid();
  ASSERT_TRUE(ApplyConfigFile(file, config).ok());
  EXPECT_EQ(config.workers, 2);
  EXPECT_EQ(config.memory_budget_bytes, 64u << 20);
  ASSERT_TRUE(FromVariables({{"SINQ_WORKERS", "3"},
                             {"SINQ_ALLOW_ROOTS", "/a:/b"},
                             {"SINQ_MEMORY_BUDGET", "1GiB"},
                             {"SINQ_DEVICES", "0,2"},
                             {"SINQ_CUDA_STREAMS", "2"},
                             {"SINQ_DEVICE_MEMORY_BUDGET", "3GiB"},
                             {"SINQ_INSECURE", "true"}},
                            config)
                  .ok());
  EXPECT_EQ(config.workers, 3);
  EXPECT_EQ(config.allow_roots, (std::vector<std::string>{"/a", "/b"}));
  EXPECT_EQ(config.memory_budget_bytes, 1u << 30);
  EXPECT_EQ(config.devices, (std::vector<int>{0, 2}));
  EXPECT_EQ(config.cuda_streams, 2);
  EXPECT_EQ(config.device_memory_budget_bytes, uint64_t{3} << 30);
  EXPECT_TRUE(config.insecure);
  EXPECT_FALSE(FromVariables({{"SINQ_WORKERS", "many"}}, config).ok());
  EXPECT_FALSE(FromVariables({{"SINQ_DEVICES", "all"}}, config).ok());
  EXPECT_FALSE(ApplyConfigFile(dir.Join("absent.json"), config).ok());
}

TEST(Config, AReachableAddressNeedsInsecure) {
  ServerConfig config = Valid();
  EXPECT_TRUE(ValidateConfig(config).ok());
  for (const char* loopback : {"127.0.0.2:0", "[::1]:7461", "localhost:1"}) {
    config.listen = loopback;
    EXPECT_TRUE(ValidateConfig(config).ok()) << loopback;
  }
  for (const char* reachable :
       {"0.0.0.0:7461", "[::]:7461", "10.0.0.1:1", "[::ffff:127.0.0.1]:1"}) {
    config.listen = reachable;
    config.insecure = false;
    EXPECT_FALSE(ValidateConfig(config).ok()) << reachable;
    config.insecure = true;
    EXPECT_TRUE(ValidateConfig(config).ok()) << reachable;
  }
  for (const char* wrong : {"", "127.0.0.1", "host:1", ":1", "1.2.3.4:", "1.2.3.4:65536",
                            "1.2.3.4:+1", "::1:5", "[1.2.3.4]:1", "127.0.0.1:80,0.0.0.0:80"}) {
    config.listen = wrong;
    EXPECT_FALSE(ValidateConfig(config).ok()) << wrong;
  }
}

TEST(Config, SaysAllThatIsWrongAtOnce) {
  ServerConfig config;
  config.workers = -1;
  config.backend = "tpu";
  config.memory_budget_bytes = 1;
  config.lease_duration_seconds = 0;
  config.devices = {1, -1, 1};
  config.cuda_streams = 17;
  config.device_memory_budget_bytes = 1;
  const std::string message(ValidateConfig(config).message());
  for (const char* field :
       {"data_dir", "workers", "backend", "memory_budget_bytes", "lease_duration_seconds",
        "devices: -1", "devices: 1 is given twice", "cuda_streams", "device_memory_budget_bytes"}) {
    EXPECT_NE(message.find(field), std::string::npos) << field << " is not in: " << message;
  }
}

TEST(Config, DevicesAndTheCpuAloneExcludeEachOther) {
  ServerConfig config = Valid();
  config.devices = {0};
  for (const char* backend : {"auto", "cuda"}) {
    config.backend = backend;
    EXPECT_TRUE(ValidateConfig(config).ok()) << backend;
  }
  config.backend = "cpu";
  EXPECT_FALSE(ValidateConfig(config).ok());
  config.devices.clear();
  EXPECT_TRUE(ValidateConfig(config).ok());
}

TEST(ParseDevices, TakesNumbersAndCommasOnly) {
  EXPECT_EQ(*ParseDevices("0"), (std::vector<int>{0}));
  EXPECT_EQ(*ParseDevices("3,0,12"), (std::vector<int>{3, 0, 12}));
  for (const char* wrong : {"", ",", "0,", ",0", "0,,1", "0, 1", " 0", "-1", "+1", "a", "0x1",
                            "1.0", "99999999999", "0;1"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseDevices(wrong).status())) << wrong;
  }
}

TEST(ParseSize, TakesWholeNumbersWithUnits) {
  EXPECT_EQ(*ParseSize("0"), 0u);
  EXPECT_EQ(*ParseSize("17B"), 17u);
  EXPECT_EQ(*ParseSize("2GiB"), uint64_t{2} << 30);
  EXPECT_EQ(*ParseSize("3MB"), 3'000'000u);
  for (const char* wrong : {"", "GiB", "-1", "1.5GiB", "1 GiB", "1gib", "99999999999999999999",
                            "18446744073709551615KiB", "+1"}) {
    EXPECT_FALSE(ParseSize(wrong).ok()) << wrong;
  }
}

}  // namespace
}  // namespace sinq
