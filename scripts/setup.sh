#!/usr/bin/env bash
# Create a virtual environment and install evictbench in it: scripts/setup.sh FOLDER
# A machine with an NVIDIA driver gets the CUDA builds of torch and torchvision, any other, and one
# whose CUDA_VISIBLE_DEVICES is empty, the CPU builds. Where there is no CPU build of torchvision the
# registry's serves (harness/process/vision.py).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
torch=2.13.0
torchvision=0.28.0

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $("$python" --version) is too old: set PYTHON to Python 3.11 or later" >&2
  exit 2
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# What is never imported need not be compiled: Python does it at the first import.
pip() { "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-compile "$@"; }

gpu=
if [ -n "${CUDA_VISIBLE_DEVICES-all}" ] && command -v nvidia-smi >/dev/null &&
  nvidia-smi >/dev/null 2>&1; then
  gpu=1
  command -v "${CC:-gcc}" >/dev/null || command -v clang >/dev/null || {
    echo "error: Triton needs a C compiler to start kernels: install gcc, or set CC to one" >&2
    exit 2
  }
  echo "NVIDIA driver found: installing CUDA torch $torch"
  pip "torch==$torch" "torchvision==$torchvision"
elif [ "$(uname -s)" = Linux ]; then
  echo "no NVIDIA driver: installing CPU torch $torch"
  pip "torch==$torch+cpu" 2>/dev/null ||
    pip "torch==$torch" --index-url https://download.pytorch.org/whl/cpu
  # Compiled while the rest is installed: tests begin with several processes, which would do it each.
  "$venv/bin/python" -c 'import torch._dynamo, torch.distributed.tensor' >/dev/null 2>&1 &
  pip --no-deps "torchvision==$torchvision+cpu" 2>/dev/null ||
    pip --no-deps "torchvision==$torchvision" --index-url https://download.pytorch.org/whl/cpu \
      2>/dev/null ||
    pip --no-deps "torchvision==$torchvision"
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  cp harness/process/vision.py "$site/_evictbench_torchvision.py"
  echo 'import _evictbench_torchvision; _evictbench_torchvision.watch()' >"$site/torchvision_cpu.pth"
else
  pip "torch==$torch" "torchvision==$torchvision"
fi
pip -r requirements/base.txt
pip --no-deps lmms-eval==0.7.3 lm-eval==0.4.13
pip --no-deps --editable .
wait
[ -z "$gpu" ] || "$venv/bin/python" - <<'EOF'
import sys

import torch

from harness.models.devices import unusable

if not torch.cuda.is_available():
    why = unusable() or "torch finds no CUDA device, though there is a driver; make it visible"
    sys.exit(f"error: {why}, or set CUDA_VISIBLE_DEVICES= for a run on the CPU")
EOF
