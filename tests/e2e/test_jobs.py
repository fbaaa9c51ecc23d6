"""The life of a job through sinqctl: happy path, idempotency, cancel, watch, list, delete, download, verify, stream."""

import json
import pathlib
import re
import shutil
import unittest

import harness
from harness import SAMPLE, Server, state, workspace


class JobsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.space = workspace()
        cls.home = cls.space.__enter__()
        cls.addClassCleanup(cls.space.__exit__, None, None, None)
        cls.server = Server(cls.home, "--workers", "2").start()
        cls.addClassCleanup(cls.server.stop)
        cls.output = cls.home / "sample"
        cls.first = cls.server.submit(SAMPLE, cls.output, "--wait", "-o", "json")
        if cls.first.code != 0:
            raise AssertionError(f"the sample job: {cls.first}\n{cls.server.tail()}")
        cls.job_id = re.search(r"job-[a-z0-9]+", cls.first.out).group(0)

    def check(self, result, code):
        self.assertEqual(result.code, code, str(result))
        return result

    def test_happy_path_publishes_a_whole_directory(self):
        names = {p.name for p in self.output.iterdir()}
        for name in (
            "config.json",
            "model.safetensors.index.json",
            "tokenizer.json",
            harness.MANIFEST,
        ):
            self.assertIn(name, names)
        self.assertEqual(harness.staging_left(self.home), [])
        job = self.server.job(self.job_id)
        self.assertEqual(state(job), "SUCCEEDED")
        self.assertGreater(float(job["progress"]["effective_bits"]), 4.0)
        self.assertLess(float(job["progress"]["effective_bits"]), 5.0)
        self.assertEqual(job["progress"]["tensors_done"], job["progress"]["tensors_total"])
        self.assertLess(
            sum(p.stat().st_size for p in self.output.iterdir()), sum(p.stat().st_size for p in SAMPLE.iterdir())
        )

    def test_default_is_what_serving_engines_open(self):
        config = json.loads((self.output / "config.json").read_text())["quantization_config"]
        self.assertEqual((config["quant_method"], config["format"]), ("compressed-tensors", "pack-quantized"))
        self.assertEqual(self.server.ctl("capabilities", "-o", "json").json()["default_format"], "compressed-tensors")

    def test_manifest_says_what_was_done(self):
        manifest = json.loads((self.output / harness.MANIFEST).read_text())
        text = json.dumps(manifest)
        for word in ("sha256", "relative_error", "imbalance_before", "imbalance_after", "rounds", "recipe"):
            self.assertIn(word, text)
        self.assertNotIn(str(self.home / "data"), text)

    def test_progress_goes_to_stderr_and_results_to_stdout(self):
        self.assertEqual(state(documents(self.first.out)[-1]), "SUCCEEDED")
        self.assertIn("tensors", self.first.err)

    def test_same_request_id_returns_the_first_job(self):
        again = [
            self.check(
                self.server.submit(SAMPLE, self.home / "once", "--request-id", "r-1", "--wait", "-o", "name"), 0
            )
            for _ in range(2)
        ]
        ids = {re.search(r"job-[a-z0-9]+", r.out).group(0) for r in again}
        self.assertEqual(len(ids), 1)

    def test_same_request_id_with_another_body_is_refused(self):
        self.check(self.server.submit(SAMPLE, self.home / "reuse", "--request-id", "r-2", "--wait"), 0)
        other = self.server.submit(SAMPLE, self.home / "reuse", "--request-id", "r-2", "--bits", "3")
        self.assertNotEqual(other.code, 0)
        self.assertIn("r-2", other.err + other.out)

    def test_two_runs_give_the_same_bytes(self):
        self.check(self.server.submit(SAMPLE, self.home / "again", "--wait"), 0)
        self.assertEqual(harness.digests(self.home / "again"), harness.digests(self.output))

    def test_plan_writes_nothing_and_is_what_the_job_does(self):
        before = sorted(p.name for p in self.home.iterdir())
        plan = self.check(self.server.ctl("plan", SAMPLE, "--output", self.home / "planned", "-o", "json"), 0).json()
        self.assertEqual(sorted(p.name for p in self.home.iterdir()), before)
        self.assertTrue(plan["tensors"] and all(t["reason"] for t in plan["tensors"]))
        for file in plan["files"]:
            if file["name"] != harness.MANIFEST:
                self.assertEqual((self.output / file["name"]).stat().st_size, int(file["size_bytes"]), file["name"])
        table = self.check(self.server.ctl("plan", SAMPLE), 0).out
        self.assertIn("lm_head.weight", table)

    def test_bits_are_chosen_as_the_plan_says(self):
        flags = [*harness.NATIVE, "--bits", "auto", "--target-bpw", "4.25"]
        plan = self.check(self.server.ctl("plan", SAMPLE, *flags, "-o", "json"), 0).json()
        self.assertEqual(plan["note"], "")
        self.assertLessEqual(plan["effective_bits"], 4.25)
        self.assertGreater(plan["effective_bits"], 4.0)
        bits = {t["name"]: t["bits"] for t in plan["tensors"] if t["action"] == "TENSOR_ACTION_QUANTIZE"}
        self.assertGreater(len(set(bits.values())), 1, bits)
        result = self.check(self.server.submit(SAMPLE, self.home / "chosen", *flags, "--wait"), 0)
        self.assertIn(f"{plan['effective_bits']:.3f}", result.out)
        manifest = json.loads((self.home / "chosen" / harness.MANIFEST).read_text())
        self.assertEqual({t["name"]: t["bits"] for t in manifest["tensors"] if t["action"] == "quantize"}, bits)
        self.check(self.server.ctl("verify", self.home / "chosen"), 0)

    def test_a_size_is_kept(self):
        target = 6_500_000
        flags = [*harness.NATIVE, "--bits", "auto", "--target-size", target]
        result = self.server.submit(SAMPLE, self.home / "sized", *flags, "--wait")
        self.check(result, 0)
        manifest = json.loads((self.home / "sized" / harness.MANIFEST).read_text())
        self.assertLessEqual(manifest["output_bytes"], target)

    def test_a_recipe_file_with_rules(self):
        recipe = self.home / "recipe.json"
        rules = [{"pattern": "down_proj", "bits": 8}, {"pattern": "o_proj", "quantize": False}]
        recipe.write_text(json.dumps({"rules": rules}))
        self.check(self.server.submit(SAMPLE, self.home / "ruled", "--recipe", recipe, "--wait"), 0)
        manifest = json.loads((self.home / "ruled" / harness.MANIFEST).read_text())
        for tensor in manifest["tensors"]:
            if "down_proj" in tensor["name"]:
                self.assertEqual(tensor["bits"], 8)
            if "o_proj" in tensor["name"]:
                self.assertEqual(tensor["action"], "copy")

    def test_list_get_and_delete(self):
        self.check(self.server.submit(SAMPLE, self.home / "gone", "--wait", "--request-id", "to-delete"), 0)
        jobs = self.check(self.server.ctl("list", "-o", "json"), 0).json()["jobs"]
        job_id = next(j["job_id"] for j in jobs if j["request_id"] == "to-delete")
        self.check(self.server.ctl("delete", job_id), 0)
        self.check(self.server.ctl("get", job_id), 3)
        self.assertTrue((self.home / "gone" / "config.json").exists())
        page = self.check(self.server.ctl("list", "--page-size", "1", "-o", "json"), 0).json()
        self.assertEqual(len(page["jobs"]), 1)
        token = page["next_page_token"]
        following = self.check(
            self.server.ctl("list", "--page-size", "1", "--page-token", token, "-o", "json"), 0
        ).json()
        self.assertNotEqual(following["jobs"][0]["job_id"], page["jobs"][0]["job_id"])

    def test_watch_replays_events_in_order(self):
        result = self.check(self.server.ctl("watch", self.job_id, "-o", "json"), 0)
        events = events_of(result.out)
        numbers = [int(e["sequence"]) for e in events]
        self.assertEqual(numbers, sorted(set(numbers)))
        self.assertEqual(state(events[-1]), "SUCCEEDED")
        rest = events_of(
            self.check(self.server.ctl("watch", self.job_id, "--after", numbers[1], "-o", "json"), 0).out
        )
        self.assertEqual([int(e["sequence"]) for e in rest], numbers[2:])

    def test_cancel_a_finished_job_changes_nothing(self):
        self.check(self.server.ctl("cancel", self.job_id), 0)
        self.assertEqual(state(self.server.job(self.job_id)), "SUCCEEDED")

    def test_cancel_a_running_job_removes_its_staging(self):
        source = self.home / "big"
        harness.make_model(source, hidden=2048, inter=5632, layers=6)
        job_id = self.server.submit_detached(source, self.home / "cancelled")
        self.check(self.server.ctl("cancel", job_id), 0)
        self.assertEqual(state(self.server.wait(job_id)), "CANCELLED")
        self.assertFalse((self.home / "cancelled").exists())
        self.assertEqual(harness.staging_left(self.home), [])
        shutil.rmtree(source)

    def test_verify_accepts_the_result_and_names_a_flipped_byte(self):
        self.check(self.server.ctl("verify", self.output), 0)
        copy = self.home / "flipped"
        shutil.copytree(self.output, copy)
        shard = max(copy.glob("*.safetensors"), key=lambda p: p.stat().st_size)
        with open(shard, "r+b") as file:
            file.seek(-1000, 2)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
        result = self.check(self.server.ctl("verify", copy), 7)
        self.assertIn(shard.name, result.out + result.err)

    def test_verify_names_a_missing_file(self):
        copy = self.home / "incomplete"
        shutil.copytree(self.output, copy)
        (copy / "tokenizer.json").unlink()
        result = self.check(self.server.ctl("verify", copy), 7)
        self.assertIn("tokenizer.json", result.out + result.err)

    def test_download_resumes_where_it_stopped(self):
        target = self.home / "downloaded"
        self.check(self.server.ctl("download", self.job_id, "--output", target), 0)
        self.assertEqual(harness.digests(target), harness.digests(self.output))
        shard = max(target.glob("*.safetensors"), key=lambda p: p.stat().st_size)
        whole = shard.read_bytes()
        shard.unlink()
        # What an interrupted download leaves: the first part, under the name that the client uses for it.
        shard.with_name(shard.name + ".part").write_bytes(whole[: len(whole) // 2])
        result = self.check(self.server.ctl("download", self.job_id, "--output", target), 0)
        self.assertIn("Continuing", result.err)
        self.assertEqual(shard.read_bytes(), whole)

    def test_stream_gives_the_same_tensors_as_the_job(self):
        file, native = self.home / "streamed.safetensors", self.home / "native"
        self.check(self.server.ctl("quantize", SAMPLE / "model.safetensors", "--output", file), 0)
        self.check(self.server.submit(SAMPLE, native, "--wait", *harness.NATIVE), 0)
        want, got = {}, tensors_of(file)
        for shard in native.glob("*.safetensors"):
            want |= tensors_of(shard)
        quantized = [n for n in want if ".meta." in n or n.endswith(".W_q")]
        self.assertGreater(len(quantized), 100)
        for name in quantized:
            self.assertEqual(got[name], want[name], name)

    def test_metrics_count_the_job(self):
        text = self.server.metrics()
        for name in (
            "sinq_build_info",
            "sinq_jobs_submitted_total",
            "sinq_jobs",
            "sinq_job_duration_seconds_bucket",
            "sinq_weights_quantized_total",
            "sinq_weight_bytes_in_total",
            "sinq_weight_bytes_out_total",
            "sinq_tensors_total",
            "sinq_relative_error_bucket",
            "sinq_sinkhorn_rounds_bucket",
            "sinq_rpc_duration_seconds_bucket",
            "sinq_storage_free_bytes",
            "sinq_worker_state",
        ):
            self.assertRegex(text, rf"(?m)^{name}[{{ ]", name)
        self.assertNotIn(self.job_id, text)
        self.assertNotIn("q_proj", text)

    def test_capabilities_name_every_limit(self):
        answer = self.check(self.server.ctl("capabilities", "-o", "json"), 0).json()
        self.assertTrue({2, 3, 4, 5, 6, 8} <= set(answer["bits"]))
        self.assertTrue(all(limit["derivation"] for limit in answer["limits"]))
        self.assertGreater(len(answer["limits"]), 10)

    def test_logs_are_json_lines(self):
        lines = [x for x in self.server.log.read_text().splitlines() if x.startswith("{")]
        self.assertTrue(lines)
        for line in lines:
            entry = json.loads(line)
            self.assertIn("level", entry)

    def test_bare_file_is_a_source(self):
        for name, flags, extra in (
            ("bare", (), "quantization_config.json"),
            ("bare-native", harness.NATIVE, "model.safetensors.index.json.meta.json"),
        ):
            self.check(self.server.submit(SAMPLE / "model.safetensors", self.home / name, "--wait", *flags), 0)
            self.assertTrue((self.home / name / extra).exists())

    def test_version_completion_and_help(self):
        self.check(self.server.ctl("version"), 0)
        for shell in ("bash", "zsh"):
            self.assertIn("submit", self.check(self.server.ctl("completion", shell), 0).out)
        self.assertIn("Example", self.check(self.server.ctl("submit", "--help"), 0).out)

    def test_timeout_stops_waiting_only(self):
        source = self.home / "slow"
        harness.make_model(source, hidden=2048, inter=5632, layers=6)
        result = self.server.submit(source, self.home / "late", "--wait", "--timeout", "0.05", "--request-id", "late")
        self.check(result, 6)
        self.check(self.server.submit(source, self.home / "late", "--wait", "--request-id", "late"), 0)
        shutil.rmtree(source)


def documents(text):
    """JSON documents that follow one another."""
    decoder, at, found = json.JSONDecoder(), 0, []
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        value, at = decoder.raw_decode(text, at)
        found.append(value)
    return found


def events_of(text):
    return [e.get("event", e) for e in documents(text)]


def tensors_of(path):
    data = pathlib.Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return {
        name: (e["dtype"], e["shape"], data[8 + length + e["data_offsets"][0] : 8 + length + e["data_offsets"][1]])
        for name, e in header.items()
        if name != "__metadata__"
    }


if __name__ == "__main__":
    unittest.main()
