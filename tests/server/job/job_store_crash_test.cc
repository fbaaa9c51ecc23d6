// kill -9 at random moments: whatever the child was doing, the next process finds a sound queue.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "server/base/clock.h"
#include "server/job/job_store.h"
#include "tests/fakes/native_spec.h"
#include "tests/fakes/temp_dir.h"

namespace sinq {
namespace {

constexpr int kDefaultKills = 50;  // SINQ_CRASH_KILLS asks for more
constexpr absl::Duration kLease = absl::Seconds(30);

int Kills() {
  const char* text = std::getenv("SINQ_CRASH_KILLS");
  int kills = kDefaultKills;
  return text != nullptr && absl::SimpleAtoi(text, &kills) ? kills : kDefaultKills;
}

// What the child was promised: a line is written only after the store said OK.
class Journal {
 public:
  explicit Journal(const std::string& path)
      : descriptor_(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)) {}
  ~Journal() { close(descriptor_); }
  void Note(const std::string& line) {
    const std::string text = line + "\n";
    if (write(descriptor_, text.data(), text.size()) < 0) _exit(3);
  }

 private:
  const int descriptor_;
};

void WorkOn(JobStore& store, Journal& journal, const Lease& lease, int dice) {
  for (int unit = 0; unit < 3; ++unit) {
    const std::string name = absl::StrCat("t", dice % 7, "-", unit);
    if (!store.AddFinishedUnits(lease, {{name, "{}"}}).ok()) _exit(4);
    journal.Note(absl::StrCat("unit ", lease.job_id, " ", name));
    JobProgress progress;
    progress.tensors_done = static_cast<uint64_t>(dice % 1000 + unit);
    if (!store.Renew(lease, kLease, progress, name).ok()) _exit(5);
  }
  if (dice % 5 == 0) {
    if (!store.Release(lease).ok()) _exit(6);
    return;
  }
  const JobState end = dice % 3 == 0 ? JobState::kFailed : JobState::kSucceeded;
  if (!store.Finish(lease, end, {}, {"INTERNAL", Reason::kInternal, "x"}).ok()) _exit(7);
  journal.Note(absl::StrCat("end ", lease.job_id, " ", JobStateName(end)));
}

[[noreturn]] void Child(const std::string& path, const std::string& journal_path, int round) {
  Journal journal(journal_path);
  auto store = OpenSqliteJobStore(path, SystemClock());
  if (!store.ok()) _exit(2);
  std::minstd_rand random(static_cast<unsigned>(round + 1));
  for (int step = 0;; ++step) {
    JobSpec spec = NativeSpec();
    spec.source_uri = absl::StrCat("/in/", step);
    const auto created = (*store)->Create(spec, absl::StrCat("req-", round, "-", step));
    if (!created.ok()) _exit(8);
    journal.Note(absl::StrCat("job ", created->job.id, " req-", round, "-", step));
    if (random() % 6 == 0 && !(*store)->RequestCancel(created->job.id).ok()) _exit(9);
    const auto acquired = (*store)->Acquire("child", kLease);
    if (!acquired.ok()) _exit(10);
    if (!acquired->has_value()) continue;
    WorkOn(**store, journal, (*acquired)->second, static_cast<int>(random() % 1000));
  }
}

struct Promises {
  std::map<std::string, std::string> jobs;             // id -> request id
  std::map<std::string, std::set<std::string>> units;  // of a job
  std::map<std::string, std::string> ends;
};

Promises ReadJournal(const std::string& text) {
  Promises promises;
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    if (words.size() != 3) continue;
    if (words[0] == "job") promises.jobs[words[1]] = words[2];
    if (words[0] == "unit") promises.units[words[1]].insert(words[2]);
    if (words[0] == "end") promises.ends[words[1]] = words[2];
  }
  return promises;
}

// Numbers without a gap, legal steps only, and a last event that agrees with the row.
void CheckEvents(JobStore& store, const Job& job) {
  const auto events = store.Events(job.id, 0, 100000);
  ASSERT_TRUE(events.ok()) << events.status();
  ASSERT_EQ(events->size(), job.last_event);
  JobState state = JobState::kQueued;
  for (size_t i = 0; i < events->size(); ++i) {
    const JobEvent& event = (*events)[i];
    EXPECT_EQ(event.sequence, i + 1);
    if (event.state != state) {
      EXPECT_TRUE(IsLegalTransition(state, event.state)) << job.id;
    }
    state = event.state;
  }
  EXPECT_EQ(state, job.state);
}

void CheckJob(JobStore& store, const Promises& promises, const std::string& id) {
  const auto job = store.Get(id);
  ASSERT_TRUE(job.ok()) << "an accepted job is lost: " << id << " " << job.status();
  EXPECT_NE(job->state, JobState::kRunning) << "nobody can hold a lease after a restart";
  CheckEvents(store, *job);
  if (const auto end = promises.ends.find(id); end != promises.ends.end()) {
    EXPECT_EQ(JobStateName(job->state), end->second);
  }
  std::set<std::string> stored;
  const auto finished = store.FinishedUnits(id);
  ASSERT_TRUE(finished.ok()) << finished.status();
  for (const FinishedUnit& unit : *finished) stored.insert(unit.unit);
  if (const auto units = promises.units.find(id); units != promises.units.end()) {
    for (const std::string& unit : units->second) EXPECT_TRUE(stored.count(unit)) << id << unit;
  }
}

void CheckStore(const std::string& path, const Promises& promises, std::set<std::string>* ended) {
  auto store = OpenSqliteJobStore(path, SystemClock());
  ASSERT_TRUE(store.ok()) << store.status();
  for (const auto& [id, request_id] : promises.jobs) {
    // Terminal for good: what was checked once after its end stays as it is.
    if (ended->count(id) == 1) continue;
    CheckJob(**store, promises, id);
    if (IsTerminal((*store)->Get(id)->state)) ended->insert(id);
  }
}

TEST(JobStoreCrashTest, SurvivesKillNineAtRandomMoments) {
  TempDir dir;
  std::minstd_rand random(20261124);
  std::set<std::string> ended;
  size_t jobs = 0;
  for (int round = 0; round < Kills(); ++round) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) Child(dir.Join("jobs.db"), dir.Join("journal"), round);
    absl::SleepFor(absl::Milliseconds(20 + random() % 130));
    kill(child, SIGKILL);
    int result = 0;
    ASSERT_EQ(waitpid(child, &result, 0), child);
    ASSERT_TRUE(WIFSIGNALED(result)) << "the child failed by itself: " << WEXITSTATUS(result);
    const Promises promises = ReadJournal(dir.Read("journal"));
    jobs = promises.jobs.size();
    CheckStore(dir.Join("jobs.db"), promises, &ended);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(jobs, static_cast<size_t>(Kills()));
  EXPECT_FALSE(ended.empty());
  RecordProperty("jobs", static_cast<int>(jobs));
}

}  // namespace
}  // namespace sinq
