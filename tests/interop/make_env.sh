#!/usr/bin/env bash
# Makes build/venv (torch, transformers) and build/sinq-package (the authors' code), unless they are there.
# The authors' package brings a sitecustomize that patches transformers at start. It is kept in a directory of its own
# that only the scripts that need it put on their path, after start: so nothing is patched, and one venv serves all.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=$repo/build/venv package=$repo/build/sinq-package stamp=$repo/build/venv/.complete
want="torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 accelerate==1.15 numpy tqdm termcolor sinq==0.2.0"
if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
  exit 0
fi
rm -rf "$venv" "$package"
mkdir -p "$repo/build"
/usr/bin/python3 -m venv "$venv"
quiet=(-q --disable-pip-version-check --no-input)
# torch first and alone: what comes after must not move it.
"$venv/bin/pip" install "${quiet[@]}" torch==2.13.0
"$venv/bin/pip" install "${quiet[@]}" transformers==5.23.0 safetensors==0.8.0 accelerate==1.15 numpy tqdm termcolor
"$venv/bin/pip" install "${quiet[@]}" --no-deps --target "$package" sinq==0.2.0
echo "$want" >"$stamp"
