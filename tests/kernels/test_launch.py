"""Who computes, and the refusal of what no kernel can."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from harness.settings.config import KERNELS
from methods import kernels
from methods.kernels import launch
from tests.kernels.oracles import draw


def attend(dtype=torch.float32, dim=32):
    queries, keys = draw(1, 2, 3, dim, seed=1), draw(1, 1, 9, dim, seed=2)
    return kernels.window_lse(queries.to(dtype), keys.to(dtype), 0.2)


def test_each_choice_is_heeded(monkeypatch):
    launched = []
    module = sys.modules[kernels.window_lse.__module__]
    original = module.launch
    monkeypatch.setattr(module, "launch", lambda *a, **k: launched.append(1) or original(*a, **k))
    with kernels.using("torch"):
        wanted = attend()
    assert not launched
    for choice in kernels.KERNELS:
        before = len(launched)
        with kernels.using(choice):
            found = attend()
        by_triton = choice == "triton" or (choice == "auto" and torch.cuda.is_available())
        assert (len(launched) > before) == by_triton
        torch.testing.assert_close(found, wanted)
    assert kernels.KERNELS == KERNELS


@pytest.mark.parametrize(
    ("dtype", "dim", "part"),
    [(torch.float64, 32, "float64"), (torch.int32, 32, "int32"), (torch.float32, 257, "257")],
)
def test_what_no_kernel_takes_is_refused_and_plain_torch_takes_it(dtype, dim, part):
    with pytest.raises(ValueError, match=part) as caught:
        attend(dtype, dim)
    assert "kernels=torch" in str(caught.value)
    assert "\n" not in str(caught.value)
    with kernels.using("torch"):
        assert attend(dtype, dim).shape == (1, 2, 3)


def test_devices_that_cannot_are_refused(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    kernels.require("auto", cpu)
    kernels.require("torch", cuda)
    with pytest.raises(ValueError, match="auto, triton, torch"):
        kernels.require("fast", cpu)
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    with pytest.raises(ValueError, match="CUDA device, not on cpu"):
        kernels.require("triton", cpu)
    monkeypatch.setattr(launch, "capability", lambda device: 75)
    with pytest.raises(ValueError, match=r"8\.0, not 7\.5"):
        kernels.require("auto", cuda)
    monkeypatch.setattr(launch, "triton", None)
    with pytest.raises(ValueError, match="install it or use kernels=torch"):
        kernels.require("auto", cuda)
    kernels.require("auto", cpu)


def test_everything_works_without_the_package_triton():
    code = """
import sys
sys.modules["triton"] = None  # as if it were not installed
import torch, methods
from methods import kernels
from tests.methods import matrix
from tests.methods.views import random_view
view = random_view(40)
for name in matrix.NAMES:
    assert methods.build(name).keep(view, 9).shape[-1] in (9, 40)
try:
    with kernels.using("triton"):
        methods.build("snapkv").keep(view, 9)
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "install it" in done.stdout
