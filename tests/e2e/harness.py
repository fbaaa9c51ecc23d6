"""What the end-to-end tests share: a server process, the client, small checkpoints. Only the standard library."""

import array
import contextlib
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("SINQ_BIN", ROOT / "build" / "release" / "bin"))
SAMPLE = ROOT / "tests" / "data" / "tiny-llama"
MANIFEST = "sinq-manifest.json"
# The format that has one phase and stores all that the method knows.
NATIVE = ("--format", "sinq")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Result:
    def __init__(self, code, out, err, seconds):
        self.code, self.out, self.err, self.seconds = code, out, err, seconds

    def json(self):
        return json.loads(self.out)

    def __repr__(self):
        return f"exit code {self.code}\n--- stdout\n{self.out[-2000:]}\n--- stderr\n{self.err[-2000:]}"


def run(*command, timeout=300, env=None, cwd=None):
    start = time.monotonic()
    done = subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        timeout=timeout,
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1", **(env or {})},
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return Result(
        done.returncode,
        done.stdout.decode(errors="replace"),
        done.stderr.decode(errors="replace"),
        time.monotonic() - start,
    )


class Server:
    """sinqd with a data directory of its own under `home`, its allowed root. May be killed and started again."""

    def __init__(self, home, *flags, roots=()):
        self.home = pathlib.Path(home)
        self.flags = list(flags)
        self.roots = [self.home, SAMPLE.parent, *roots]
        self.port, self.metrics_port = free_port(), free_port()
        self.process = None
        self.log = self.home / "sinqd.log"

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def command(self):
        roots = [x for root in self.roots for x in ("--allow-root", str(root))]
        return [
            str(BIN / "sinqd"),
            "--listen",
            self.address,
            "--metrics-listen",
            f"127.0.0.1:{self.metrics_port}",
            "--data-dir",
            str(self.home / "data"),
            *roots,
            *self.flags,
        ]

    def start(self, preexec=None):
        (self.home / "data").mkdir(exist_ok=True)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=preexec
            )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"sinqd ended with {self.process.returncode}:\n{self.tail()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return self
            time.sleep(0.02)
        raise AssertionError(f"sinqd does not listen:\n{self.tail()}")

    def tail(self):
        return self.log.read_text(errors="replace")[-3000:]

    def kill(self):
        """As a power cut would: no handler runs."""
        self.process.kill()
        self.process.wait()

    def terminate(self, timeout=60):
        """(exit code, seconds) of a drain."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout), time.monotonic() - start

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(45)
            except subprocess.TimeoutExpired:
                self.kill()

    def ctl(self, *args, timeout=300, **kw):
        return run(BIN / "sinqctl", "--server", self.address, *args, timeout=timeout, **kw)

    def submit(self, source, output, *flags, timeout=300):
        return self.ctl("submit", source, "--output", output, *flags, timeout=timeout)

    def submit_detached(self, source, output, *flags):
        result = self.submit(source, output, "--detach", "-o", "name", *flags)
        if result.code != 0:
            raise AssertionError(f"submit: {result}")
        return result.out.split()[0]

    def job(self, job_id):
        result = self.ctl("get", job_id, "-o", "json")
        if result.code != 0:
            raise AssertionError(f"get: {result}")
        answer = result.json()
        return answer.get("job", answer)

    def wait(self, job_id, timeout=120):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            job = self.job(job_id)
            if state(job) in ("SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"):
                return job
            time.sleep(0.05)
        raise AssertionError(f"job {job_id} did not end within {timeout} s: {job}\n{self.tail()}")

    def metrics(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
            return answer.read().decode()

    def io(self):
        text = pathlib.Path(f"/proc/{self.process.pid}/io").read_text()
        return {k: int(v) for k, v in (line.split(": ") for line in text.splitlines())}

    def cpu_seconds(self):
        """User and system time of the process so far: hardly moves with what else the machine does."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_memory_bytes(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024


def state(job):
    return job["state"].removeprefix("JOB_STATE_")


@contextlib.contextmanager
def workspace(prefix="sinq-e2e-"):
    path = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=os.environ.get("SINQ_TEST_DIR")))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# --- checkpoints -----------------------------------------------------------------------------------------------------
def bf16(value):
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF


def gaussian_pool(count, sigma=0.02, seed=1):
    rng = random.Random(seed)
    return array.array("H", (bf16(rng.gauss(0, sigma)) for _ in range(count))).tobytes()


def safetensors_header(entries, metadata=True):
    """[(name, dtype, shape, size_bytes)] -> header bytes; data in this order."""
    header, offset = ({"__metadata__": {"format": "pt"}} if metadata else {}), 0
    for name, dtype, shape, size in entries:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_safetensors(path, tensors):
    """[(name, dtype, shape, bytes)]"""
    with open(path, "wb") as file:
        file.write(safetensors_header([(n, d, s, len(b)) for n, d, s, b in tensors]))
        for *_, data in tensors:
            file.write(data)


def random_weight(pool, rows, cols, rng):
    """Rows are slices of the pool: different, and quick to make."""
    width = 2 * cols
    starts = [2 * rng.randrange(len(pool) // 2 - cols) for _ in range(rows)]
    return b"".join(pool[s : s + width] for s in starts)


def llama_config(hidden, inter, layers, vocab):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": max(1, hidden // 256),
        "head_dim": 64,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
    }


def llama_tensors(hidden, inter, layers, vocab):
    """(name, shape) in file order."""
    kv = max(1, hidden // 256) * 64
    yield "model.embed_tokens.weight", (vocab, hidden)
    for i in range(layers):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", (hidden,)
        yield p + "mlp.down_proj.weight", (hidden, inter)
        yield p + "mlp.gate_proj.weight", (inter, hidden)
        yield p + "mlp.up_proj.weight", (inter, hidden)
        yield p + "post_attention_layernorm.weight", (hidden,)
        yield p + "self_attn.k_proj.weight", (kv, hidden)
        yield p + "self_attn.o_proj.weight", (hidden, hidden)
        yield p + "self_attn.q_proj.weight", (hidden, hidden)
        yield p + "self_attn.v_proj.weight", (kv, hidden)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def make_model(path, hidden=1024, inter=2816, layers=4, vocab=1024, seed=3, shards=2):
    """A sharded random Llama checkpoint; returns its tensor bytes."""
    path = pathlib.Path(path)
    path.mkdir(parents=True)
    rng, pool = random.Random(seed), gaussian_pool(1 << 18, seed=seed)
    names = list(llama_tensors(hidden, inter, layers, vocab))
    per_shard = -(-len(names) // shards)
    weight_map, total = {}, 0
    for k in range(shards):
        part = names[k * per_shard : (k + 1) * per_shard]
        file = f"model-{k + 1:05}-of-{shards:05}.safetensors"
        with open(path / file, "wb") as out:
            out.write(safetensors_header([(n, "BF16", s, 2 * size_of(s)) for n, s in part]))
            for name, shape in part:
                out.write(random_weight(pool, shape[0], shape[1], rng) if len(shape) == 2 else b"\x80\x3f" * shape[0])
                weight_map[name] = file
                total += 2 * size_of(shape)
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    )
    (path / "config.json").write_text(json.dumps(llama_config(hidden, inter, layers, vocab)))
    return total


def size_of(shape):
    count = 1
    for n in shape:
        count *= n
    return count


# --- comparing outputs ---
def evict(directory):
    """Leaves the files of a directory to the disk alone, as far as their file system has one."""
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def digests(directory):
    """{file: SHA-256}; of the manifest without what may differ: the job's id and the place of the output."""
    found = {}
    for path in sorted(p for p in pathlib.Path(directory).rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.name == MANIFEST:
            data = json.dumps(without_job(json.loads(data)), sort_keys=True).encode()
        found[str(path.relative_to(directory))] = hashlib.sha256(data).hexdigest()
    return found


def without_job(value):
    if isinstance(value, dict):
        return {k: without_job(v) for k, v in value.items() if k not in ("job_id", "output_uri")}
    if isinstance(value, list):
        return [without_job(v) for v in value]
    return value


def staging_left(directory):
    return [p.name for p in pathlib.Path(directory).iterdir() if p.name.endswith(".partial")]
