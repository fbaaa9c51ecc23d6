#!/usr/bin/env python3
"""Rules of the project that are checked, not only written down. Needs nothing but Python 3.

usage: tests/lint/lint.py            checks the tree, then each rule against a sample that it must refuse
Every rule is a function (path, text) -> list of "line: what is wrong and what to do". The last line is
"N passed, N failed": one for each rule on the tree, one for each sample.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
CODE = {".h", ".cc", ".cu", ".cuh"}
COLUMNS = {".h": 100, ".cc": 100, ".cu": 100, ".cuh": 100, ".proto": 100, ".py": 120, ".sh": 120}

# --- what may include what -------------------------------------------------------------------------------------------
# A part may include itself and these. Prefixes; the longest part name that fits a file is its part.
MAY_INCLUDE = {
    "kernels": [],
    "proto": [],
    "server/base": [],
    "server/job": ["server/base"],
    "server/source": ["server/base"],
    "server/sink": ["server/base"],
    "server/export": ["server/base", "server/sink/sink.h"],
    "server/plan": ["server/base", "server/job", "server/source", "server/export", "server/sink"],
    "server/worker": ["server/base", "server/job", "server/source", "server/export", "server/sink", "server/plan"],
    "server/scheduler": [
        "server/base",
        "server/job",
        "server/source",
        "server/export",
        "server/sink",
        "server/plan",
        "server/worker",
    ],
    "server/rpc": [
        "server/base",
        "server/job",
        "server/source",
        "server/export",
        "server/sink",
        "server/plan",
        "server/worker",
        "server/scheduler",
        "proto",
    ],
    "server/main.cc": ["server"],
    "client": ["proto"],
    "tests": [""],
}
NARROW_KERNELS = ["kernels/matrix_view.h", "kernels/layout.h", "kernels/quant_params.h"]
WIDE_KERNELS = ["server/worker", "server/rpc", "server/scheduler", "server/main.cc"]
NO_KERNELS = ["server/base", "client", "proto"]
BACKEND_USERS = ["kernels", "server/worker", "server/main.cc", "tests"]
PROTOBUF_USERS = ["server/rpc", "client", "tests"]
# rpc needs the seam for QuantizeTensors, which quantizes without a job.
BACKEND_EXCEPTIONS = ["server/rpc"]


def part_of(path):
    fitting = [p for p in MAY_INCLUDE if path == p or path.startswith(p + "/")]
    return max(fitting, key=len) if fitting else None


def beneath(path, prefixes):
    return any(p == "" or path == p or path.startswith(p + "/") for p in prefixes)


def includes(text):
    for number, line in enumerate(text.splitlines(), 1):
        found = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
        if found:
            yield number, found.group(1)


def kernel_includes_allowed(part):
    if part == "tests":
        return [""]
    if part in NO_KERNELS:
        return []
    if part == "kernels" or part in WIDE_KERNELS:
        return ["kernels"]
    return NARROW_KERNELS


def rule_include_direction(path, text):
    part = part_of(path)
    if not part or not is_code(path):
        return []
    bad = []
    for number, target in includes(text):
        target = "proto/" + target if target.startswith("sinq/v1/") else target
        if target.startswith("tests/") and part != "tests":
            bad.append(f"{number}: includes {target}; nothing outside tests/ may")
        elif target.startswith("kernels/"):
            if not beneath(target, kernel_includes_allowed(part)):
                bad.append(f"{number}: {part} may not include {target}")
            elif target == "kernels/backend.h" and not beneath(path, BACKEND_USERS + BACKEND_EXCEPTIONS):
                bad.append(f"{number}: only the worker uses {target}")
        elif part_of(target) and not beneath(target, MAY_INCLUDE[part] + [part]):
            bad.append(f'{number}: {part} may not include {target}; see "May include" in server/README.md')
    return bad


def rule_protobuf_only_in_rpc_and_client(path, text):
    if not is_code(path) or beneath(path, PROTOBUF_USERS):
        return []
    bad = []
    for number, line in enumerate(strip_comments(text).splitlines(), 1):
        if re.search(r'#\s*include\s+[<"](google/protobuf/|grpc|[^">]*\.pb\.h)', text.splitlines()[number - 1]):
            bad.append(f"{number}: generated messages and gRPC are for server/rpc and client; use the domain type")
        elif re.search(r"\bgoogle::protobuf\b|\bsinq::v1::|(?<![\w:])v1::", line):
            bad.append(f"{number}: a protobuf type outside server/rpc and client")
    return bad


# --- C++ text --------------------------------------------------------------------------------------------------------
def is_code(path):
    return pathlib.PurePath(path).suffix in CODE


LEXEME = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])+\'', re.S
)


def strip_comments(text, keep_strings=False):
    """Comments (and strings) become blanks; lines stay where they are."""

    def blank(found):
        lexeme = found.group(0)
        if keep_strings and not lexeme.startswith(("//", "/*")):
            return lexeme
        return re.sub(r"[^\n]", " ", lexeme)

    return LEXEME.sub(blank, text)


def rule_no_conditionals_in_functions(path, text):
    """A variant is a file, not an #if: otherwise half of a function is never compiled where it is tested."""
    if not is_code(path):
        return []
    bad, stack, before = [], [], ""
    for number, line in enumerate(strip_comments(text).splitlines(), 1):
        if line.lstrip().startswith("#"):
            if re.match(r"\s*#\s*(if|ifdef|ifndef|elif)\b", line) and "body" in stack:
                bad.append(f"{number}: {line.strip()} inside a function; choose a file instead")
            continue
        for char in line + "\n":
            if char == "{":
                stack.append("scope" if opens_scope(before) else "body")
                before = ""
            elif char == "}":
                if stack:
                    stack.pop()
                before = ""
            elif char == ";":
                before = ""
            else:
                before += char
    return bad


def opens_scope(before):
    before = re.sub(r"\btemplate\s*<[^{]*?>\s*(?=class|struct|requires|$)", "", before.strip())
    if re.search(r"\bnamespace\b|\bextern\b\s*$", before):
        return True
    return bool(re.search(r"\b(class|struct|union|enum)\b", before)) and not re.search(
        r"\)\s*(const|noexcept|override|->.*)*\s*$", before
    )


def rule_line_length(path, text):
    limit = COLUMNS.get(pathlib.PurePath(path).suffix)
    return [
        f"{n}: {len(line)} columns, the limit is {limit}"
        for n, line in enumerate(text.splitlines(), 1)
        if limit and len(line) > limit
    ]


def rule_header_guard(path, text):
    if pathlib.PurePath(path).suffix != ".h":
        return []
    guard = "SINQ_" + re.sub(r"[^A-Z0-9]", "_", path.upper()) + "_"
    if path.endswith("-inl.h") or "foreach_target" in text:
        return []  # Highway includes these once per SIMD target, with a toggle for a guard
    want = [f"#ifndef {guard}", f"#define {guard}"]
    return [f'1: missing "{line}"' for line in want if line not in text.splitlines()]


BANNED = [
    (
        r"(?<![\w.>:])(?:std::)?(abort|exit|_exit|quick_exit|terminate)\s*\(",
        "return a status; one bad tensor must not end another's job",
    ),
    (r"(?<![\w:])assert\s*\(", "return a status for input, static_assert for what the compiler can know"),
    (r"\bstd::regex_error\b.*\babort\b", "return a status"),
    (
        r"(?<![\w:])(sprintf|strcpy|strcat|gets|alloca|system|popen|tmpnam|rand|srand)\s*\(",
        "use std::string, absl and the injected sources",
    ),
    (r"\busing\s+namespace\s+std\b", "name what is used"),
    (r"\.IgnoreError\(\)", "say why in a comment here"),
    (r"\bstd::this_thread::sleep_for\b|(?<![\w:])u?sleep\s*\(", "wait on a condition or the injected clock"),
    (r"\.detach\(\)\s*;", "own the thread and join it"),
    (r"\bconst_cast\s*<", "change the signature"),
]
SERVER_BANNED = [
    (r"\bstd::(cout|cerr|clog)\b|(?<![\w:])(?:std::)?f?printf\s*\(", "log one JSON line through server/base/log.h"),
    (r"\bstd::chrono::(system|steady)_clock::now\b|\babsl::Now\(\)", "take the time from the injected Clock"),
    (r"(?<![\w:])getenv\s*\(|\bstd::getenv\b", "configuration is parsed once, in main"),
]
CLOCK_FILES = ("server/base/clock", "server/main.cc", "server/base/log", "server/base/config")


def rule_banned_calls(path, text):
    if not is_code(path) or not path.startswith(("server/", "kernels/", "client/")):
        return []
    rules = list(BANNED)
    if path.startswith(("server/", "kernels/")) and not path.startswith(CLOCK_FILES):
        rules += SERVER_BANNED
    bad, lines = [], text.splitlines()
    # A condition variable waits until an absl::Time; files that do so may look at the clock for it.
    waits = "WaitWithDeadline" in text
    for number, line in enumerate(strip_comments(text).splitlines(), 1):
        for pattern, instead in rules:
            found = re.search(pattern, line)
            explained = "IgnoreError" in pattern and "//" in "".join(lines[max(0, number - 2) : number])
            if found and not explained and not (waits and "absl::Now" in found.group(0)):
                bad.append(f"{number}: {found.group(0).strip()} is banned; {instead}")
    return bad


# --- every text file -------------------------------------------------------------------------------------------------
# Spelled in pieces, so that this file passes its own rule.
PRIVATE = [
    "/wor" + "k/",
    r"\.\./sha" + "red",
    "/ho" + r"me/\w",
    "/ro" + "ot/",
    "/opt/wh" + "eels",
    r"py" + r"pi\.org",
    r"deb\.deb" + r"ian\.org",
    r"registry\.npm" + "js",
    r"files\.python" + "hosted",
    r"proxy\.go" + "lang",
    "/User" + r"s/\w",
]


def rule_no_machine_paths(path, text):
    pattern = re.compile("|".join(PRIVATE))
    return [
        f"{n}: {m.group(0)} is a place on one machine or a registry's host; leave it out"
        for n, line in enumerate(text.splitlines(), 1)
        for m in [pattern.search(line)]
        if m
    ]


def rule_todo_has_owner(path, text):
    if pathlib.PurePath(path).suffix not in CODE | {".proto", ".py", ".sh", ".txt", ".cmake"}:
        return []
    bad = []
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"\b(FIX" + r"ME|X" + r"XX|HA" + r"CK)\b", line):
            bad.append(f"{number}: leftover marker; do it or write TO" + "DO(owner or condition)")
        elif re.search(r"\bTO" + r"DO\b(?!\([^)]+\))", line):
            bad.append(f"{number}: TO" + "DO without (owner or condition)")
    return bad


def rule_text_is_clean(path, text):
    if pathlib.PurePath(path).suffix not in CODE | {".proto", ".py", ".sh", ".md", ".txt", ".cmake"}:
        return []
    bad = [f"{n}: trailing blanks" for n, line in enumerate(text.splitlines(), 1) if line != line.rstrip()]
    bad += [f"{n}: a tab" for n, line in enumerate(text.splitlines(), 1) if "\t" in line]
    if text and not text.endswith("\n"):
        bad.append("1: no newline at the end")
    return bad


# --- proto -----------------------------------------------------------------------------------------------------------
PASCAL = re.compile(r"[A-Z][A-Za-z0-9]*$")
SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*$")
# Names that say all there is to say wherever they stand.
OBVIOUS = {"job_id", "name", "job", "jobs", "event", "recipe", "version", "bits", "stage", "state", "error"}


def proto_items(text):
    """(line number, kind, name, extra, documented, enclosing name) for everything that has a name."""
    stack, doc = [], False
    for number, line in enumerate(text.splitlines(), 1):
        bare = re.sub(r"//.*", "", line).strip()
        trailing = "//" in line
        if not bare:
            doc = trailing
            continue
        owner = stack[-1][1] if stack else ""
        opened = re.match(r"(message|enum|service|oneof)\s+(\w+)\s*\{", bare)
        rpc = re.match(
            r"rpc\s+(\w+)\s*\(\s*(?:stream\s+)?([\w.]+)\s*\)\s*returns\s*\(\s*(?:stream\s+)?([\w.]+)\s*\)", bare
        )
        field = re.match(r"(?:repeated\s+|optional\s+)?(map<[^>]+>|[\w.]+)\s+(\w+)\s*=\s*(\d+)", bare)
        if opened:
            yield number, opened.group(1), opened.group(2), "", doc, owner
            if not bare.endswith("}"):
                stack.append(opened.groups())
        elif rpc:
            yield number, "rpc", rpc.group(1), rpc.group(2, 3), doc or trailing, owner
        elif stack and stack[-1][0] == "enum" and re.match(r"\w+\s*=", bare):
            value = re.match(r"(\w+)\s*=\s*(-?\d+)", bare)
            yield number, "value", value.group(1), value.group(2), doc or trailing, owner
        elif stack and field:
            yield number, "field", field.group(2), field.group(1), doc or trailing, owner
        if bare == "}" and stack:
            stack.pop()
        doc = False


def upper_snake(name):
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()


def rule_proto_names(path, text):
    """The names of Buf's STANDARD set."""
    if not path.endswith(".proto"):
        return []
    bad, package = [], re.search(r"^package\s+([\w.]+);", text, re.M)
    where = path.removeprefix("proto/").rpartition("/")[0].replace("/", ".")
    if not package or package.group(1) != where:
        bad.append(f"1: package must be {where}, as its directory")
    elif not re.search(r"\.v\d+((alpha|beta)\d+)?$", package.group(1)):
        bad.append("1: package must end with a version")
    if not SNAKE.match(pathlib.PurePath(path).stem):
        bad.append("1: file name must be lower_snake_case.proto")
    used = {}
    for number, kind, name, extra, _, owner in proto_items(text):
        if kind in ("message", "enum", "service", "rpc") and not PASCAL.match(name):
            bad.append(f"{number}: {kind} {name} must be PascalCase")
        if kind in ("field", "oneof") and not SNAKE.match(name):
            bad.append(f"{number}: {kind} {name} must be lower_snake_case")
        if kind == "service" and not name.endswith("Service"):
            bad.append(f"{number}: service {name} must end with Service")
        if kind == "value":
            if not name.startswith(upper_snake(owner) + "_"):
                bad.append(f"{number}: {name} must start with {upper_snake(owner)}_")
            if extra == "0" and name != upper_snake(owner) + "_UNSPECIFIED":
                bad.append(f"{number}: the zero value must be {upper_snake(owner)}_UNSPECIFIED")
        if kind == "rpc":
            if extra != (name + "Request", name + "Response"):
                bad.append(f"{number}: rpc {name} must take {name}Request and return {name}Response")
            for message in extra:
                if used.setdefault(message, name) != name:
                    bad.append(f"{number}: {message} is used by {used[message]} already")
    return bad


def rule_proto_documented(path, text):
    if not path.endswith(".proto"):
        return []
    bad, previous_documented = [], False
    for number, kind, name, extra, documented, owner in proto_items(text):
        if kind == "rpc" and not documented and not name.startswith(("Get", "List")):
            bad.append(f"{number}: rpc {name} needs a comment: contract, bounds, errors")
        if kind == "field":
            same_as_type = name.rstrip("s") == upper_snake(extra).lower().removeprefix("job_").removeprefix("tensor_")
            obvious = name in OBVIOUS or same_as_type or extra.startswith("google.") or name.endswith("_token")
            # A comment also covers the fields right below it ("done, and all").
            if not documented and not obvious and not previous_documented:
                bad.append(f"{number}: {owner}.{name} needs a comment: unit, bounds, what empty means")
            previous_documented = documented or (previous_documented and not obvious)
        else:
            previous_documented = False
    return bad


RULES = [f for n, f in sorted(globals().items()) if n.startswith("rule_")]

# --- samples that each rule must refuse (True) or accept (False) ---
OK_HEADER = "#ifndef SINQ_KERNELS_A_H_\n#define SINQ_KERNELS_A_H_\n#endif\n"
PROTO = 'syntax = "proto3";\npackage sinq.v1;\n'
SAMPLES = [
    (rule_include_direction, "kernels/a.cc", '#include "server/base/error.h"\n', True),
    (rule_include_direction, "server/source/a.cc", '#include "server/sink/sink.h"\n', True),
    (rule_include_direction, "server/source/a.cc", '#include "kernels/backend.h"\n', True),
    (rule_include_direction, "server/plan/a.cc", '#include "server/worker/job_runner.h"\n', True),
    (rule_include_direction, "server/job/a.cc", '#include "sinq/v1/job.pb.h"\n', True),
    (rule_include_direction, "client/a.cc", '#include "server/base/error.h"\n', True),
    (rule_include_direction, "server/base/a.cc", '#include "tests/fakes/fake_clock.h"\n', True),
    (
        rule_include_direction,
        "server/export/a.cc",
        '#include "server/sink/sink.h"\n#include "kernels/layout.h"\n',
        False,
    ),
    (rule_include_direction, "server/export/a.cc", '#include "server/sink/local_sink.h"\n', True),
    (rule_include_direction, "server/worker/a.cc", '#include "kernels/backend.h"\n', False),
    (rule_include_direction, "server/rpc/a.cc", '#include "proto/sinq/v1/job.pb.h"\n', False),
    (rule_protobuf_only_in_rpc_and_client, "server/job/a.cc", "#include <google/protobuf/message.h>\n", True),
    (rule_protobuf_only_in_rpc_and_client, "server/job/a.cc", "void F(const v1::Job& job);\n", True),
    (rule_protobuf_only_in_rpc_and_client, "server/rpc/a.cc", "#include <grpcpp/grpcpp.h>\n", False),
    (
        rule_no_conditionals_in_functions,
        "kernels/a.cc",
        "void F() {\n#if defined(SINQ_CUDA)\n  G();\n#endif\n}\n",
        True,
    ),
    (
        rule_no_conditionals_in_functions,
        "kernels/a.cc",
        "struct A {\n  void F() {\n#ifdef X\n#endif\n  }\n};\n",
        True,
    ),
    (
        rule_no_conditionals_in_functions,
        "kernels/a.cc",
        "#if HWY_ONCE\nnamespace a {\nclass B final : public C {\n#if X\n#endif\n};\n}\n#endif\n",
        False,
    ),
    (rule_line_length, "kernels/a.cc", "x" * 101 + "\n", True),
    (rule_line_length, "kernels/a.cc", "x" * 100 + "\n", False),
    (rule_header_guard, "kernels/a.h", "#pragma once\n", True),
    (rule_header_guard, "kernels/a.h", OK_HEADER, False),
    (rule_banned_calls, "kernels/a.cc", "void F() { abort(); }\n", True),
    (rule_banned_calls, "kernels/a.cc", "void F() { std::exit(1); }\n", True),
    (rule_banned_calls, "server/plan/a.cc", "void F() { assert(x > 0); }\n", True),
    (rule_banned_calls, "server/plan/a.cc", "void F() { std::cout << 1; }\n", True),
    (rule_banned_calls, "server/plan/a.cc", "auto t = absl::Now();\n", True),
    (
        rule_banned_calls,
        "server/plan/a.cc",
        '// abort() is banned\nstatic_assert(1);\nsink->Abort();\nauto s = "exit(";\n',
        False,
    ),
    (rule_banned_calls, "server/plan/a.cc", "Close().IgnoreError();\n", True),
    (rule_banned_calls, "server/plan/a.cc", "// Nothing is lost.\nClose().IgnoreError();\n", False),
    (rule_banned_calls, "client/sinqctl.cc", "std::cout << table;\n", False),
    (rule_no_machine_paths, "a.md", "see /wor" + "k/main\n", True),
    (rule_no_machine_paths, "a.md", "from py" + "pi.org\n", True),
    (rule_no_machine_paths, "a.md", "tests/run.sh, workers, homework/2\n", False),
    (rule_todo_has_owner, "kernels/a.cc", "// TO" + "DO: later\n", True),
    (rule_todo_has_owner, "kernels/a.cc", "// FIX" + "ME\n", True),
    (rule_todo_has_owner, "kernels/a.cc", "// TO" + "DO(when gRPC has it): later\n", False),
    (rule_text_is_clean, "kernels/a.cc", "int a; \n", True),
    (rule_text_is_clean, "kernels/a.cc", "int a;", True),
    (rule_proto_names, "proto/sinq/v1/a.proto", PROTO + "message bad {\n}\n", True),
    (rule_proto_names, "proto/sinq/v1/a.proto", PROTO + "message A {\n  int32 badName = 1;\n}\n", True),
    (rule_proto_names, "proto/sinq/v1/a.proto", PROTO + "enum JobState {\n  NONE = 0;\n}\n", True),
    (rule_proto_names, "proto/sinq/v1/a.proto", PROTO + "service A {\n}\n", True),
    (
        rule_proto_names,
        "proto/sinq/v1/a.proto",
        PROTO + "service AService {\n  rpc Do(Job) returns (DoResponse);\n}\n",
        True,
    ),
    (rule_proto_names, "proto/sinq/v1/a.proto", PROTO.replace("v1", "v2"), True),
    (
        rule_proto_names,
        "proto/sinq/v1/a.proto",
        PROTO + "service AService {\n  rpc Do(DoRequest) returns (stream DoResponse);\n}\nmessage DoRequest {}\n",
        False,
    ),
    (rule_proto_documented, "proto/sinq/v1/a.proto", PROTO + "message A {\n  int64 size = 1;\n}\n", True),
    (
        rule_proto_documented,
        "proto/sinq/v1/a.proto",
        PROTO + "message A {\n  // In bytes.\n  int64 size = 1;\n}\n",
        False,
    ),
    (
        rule_proto_documented,
        "proto/sinq/v1/a.proto",
        PROTO + "service AService {\n  rpc Do(DoRequest) returns (DoResponse);\n}\n",
        True,
    ),
]


def tracked_files():
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"], capture_output=True, check=False
    )
    if listed.returncode == 0:
        return [n for n in listed.stdout.decode().split("\0") if n]
    return [
        str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file() and "build" not in p.relative_to(ROOT).parts
    ]


def read_tree():
    tree = {}
    for name in tracked_files():
        path = ROOT / name
        if name.startswith("tests/data/") or not path.is_file():
            continue
        data = path.read_bytes()
        if b"\0" not in data[:4096]:
            tree[name] = data.decode("utf-8", "replace")
    return tree


def main():
    tree, passed, failed = read_tree(), 0, 0
    for rule in RULES:
        bad = [f"{path}:{what}" for path, text in sorted(tree.items()) for what in rule(path, text)]
        passed, failed = passed + (not bad), failed + bool(bad)
        for line in bad:
            print(f"{line}  [{rule.__name__.removeprefix('rule_')}]")
    untested = set(RULES) - {rule for rule, _, _, refuse in SAMPLES if refuse}
    for rule in untested:
        print(f"lint.py: no sample that {rule.__name__} must refuse")
        failed += 1
    for rule, path, text, refuse in SAMPLES:
        right = bool(rule(path, text)) == refuse
        passed, failed = passed + right, failed + (not right)
        if not right:
            print(f"lint.py: {rule.__name__} should {'refuse' if refuse else 'accept'} {text!r} as {path}")
    print(f"{len(tree)} files")
    print(f"{passed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
