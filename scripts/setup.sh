#!/usr/bin/env bash
# Create a virtual environment and install evictbench in it: scripts/setup.sh FOLDER
# A machine with an NVIDIA driver gets the CUDA build of torch with torchvision, any other the CPU
# build without it: the registry's torchvision does not load beside a CPU torch, and transformers
# falls back to its own image processors.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
torch=2.13.0

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $("$python" --version) is too old: set PYTHON to Python 3.11 or later" >&2
  exit 2
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check install --quiet "$@"; }

if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
  echo "NVIDIA driver found: installing CUDA torch $torch and torchvision"
  pip "torch==$torch" torchvision
elif [ "$(uname -s)" = Linux ]; then
  echo "no NVIDIA driver: installing CPU torch $torch"
  pip "torch==$torch+cpu" 2>/dev/null ||
    pip "torch==$torch" --index-url https://download.pytorch.org/whl/cpu
else
  pip "torch==$torch"
fi
pip -r requirements/base.txt
pip --no-deps lmms-eval==0.7.3 lm-eval==0.4.13
pip --no-deps --editable .
