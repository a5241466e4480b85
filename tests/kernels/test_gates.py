"""Ahead-of-time compilation of every kernel, and both gates seen red on kernels that are broken."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton

from methods import kernels
from methods.kernels import window_lse
from tests.kernels import OPERATIONS, ahead_of_time
from tests.kernels.ahead_of_time import HEADS, RECORD, SHARED, Compiled, digest, jobs, recorded
from tests.kernels.oracles import assert_close, causal, draw, logits

ROOT = Path(__file__).parents[2]


def compile_apart(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, where kernels are not interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, text=True, capture_output=True
    )


def test_every_kernel_compiles_for_every_architecture(compiled):
    status, said = compiled
    assert status == 0, "\n".join(row for row in said.splitlines() if not row.endswith(" ok"))
    assert {90, 89, 80} == set(SHARED)
    assert set(HEADS) == {torch.float32, torch.float16, torch.bfloat16}
    assert said.count(" ok\n") > 3 * len(OPERATIONS)  # a launch an operation and architecture


def test_the_record_is_of_these_kernels():
    """Make it anew with `python -m tests.kernels.ahead_of_time --record`, and read what changed."""
    if why := ahead_of_time.unrecorded():
        warnings.warn(why, stacklevel=1)  # a reason to skip is not printed
        pytest.skip(why)
    assert recorded()[0] == digest(), f"{RECORD.name} is of other kernels: make it anew"


def test_a_version_of_triton_that_nothing_is_on_record_for_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(ahead_of_time, "RECORD", tmp_path / "compiled.txt")
    for version, says in ((triton.__version__, ""), ("2.0.1", "compiled.txt is of Triton 2.0.1 ")):
        ahead_of_time.RECORD.write_text(f"abc triton {version}\n_kernel ... ok\n")
        assert recorded() == ("abc", version)
        assert ahead_of_time.unrecorded().startswith(says)
        assert bool(ahead_of_time.unrecorded()) == bool(says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param('"BLOCK": 512, "num_stages": 1', "spills", marks=pytest.mark.slow),
        pytest.param('"BLOCK": 64, "num_stages": 20', "bytes", marks=pytest.mark.slow),
        ('"BLOCK": 100, "num_stages": 1', "Error"),
    ],
)
def test_a_config_that_does_not_fit_is_seen(change, says):
    code = f"""
import sys, torch
from tests.kernels import ahead_of_time
import methods.kernels.window_lse
module = sys.modules["methods.kernels.window_lse"]
options = module.window_options
module.window_options = lambda *a, **k: options(*a, **k) | {{{change}}}
ahead_of_time.HEADS = {{torch.bfloat16: (128,)}}
sys.exit(ahead_of_time.main(["--operations", "window_lse", "--arch", "90"]))
"""
    done = compile_apart("-c", code)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "WRONG" in done.stdout
    assert says in done.stdout


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("length, first, mask", "length, first - 1, mask"),  # a query no longer sees itself
        ("begin = tl.program_id(0) * each", "begin = 0"),  # keys counted by several programs
        ("out = (out * group + member)", "out = (out * group)"),  # heads written over one another
    ],
)
def test_a_kernel_that_computes_something_else_is_seen(right, wrong, tmp_path):
    source = Path(sys.modules[window_lse.__module__].__file__).read_text()
    assert source.count(right) == 1
    broken = tmp_path / "broken_window_lse.py"
    broken.write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location(f"methods.kernels.{broken.stem}", broken)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    queries, keys = draw(2, 4, 7, 32, seed=1), draw(2, 2, 200, 32, seed=2)
    wanted = logits(queries, keys, 0.2, causal(7, 200)).logsumexp(-1)
    assert_close(kernels.window_lse(queries, keys, 0.2), wanted, torch.float32)
    with pytest.raises(AssertionError):
        assert_close(module.window_lse(queries, keys, 0.2), wanted, torch.float32)


def test_what_is_wrong_with_a_kernel():
    fits = Compiled("kernel", "bf16 d128", 89, 128, 0, SHARED[89])
    assert (fits.wrong, fits.state) == ("", "ok")
    spilling = Compiled("kernel", "", 80, 255, 8, 0)
    assert "spills 8" in spilling.wrong
    elsewhere = replace(spilling, default=False)
    assert (elsewhere.wrong, elsewhere.state) == ("", "spills, not by default")
    assert ahead_of_time.spills([spilling, elsewhere, replace(fits, capability=80)]) == (
        "sm_80: 3 launches, 2 by default; 2 spill (16 bytes), 1 by default"
    )
    assert "101376" in Compiled("kernel", "", 89, 64, 0, SHARED[89] + 1).wrong
    assert Compiled("kernel", "", 90, error="no").wrong == "no"


def test_what_is_launched_by_default():
    every = jobs(OPERATIONS, [90])
    usual = [job for job in every if job.default]
    assert {job.label for job in usual} == {"bf16 d128"}
    missing = {job.kernel.__name__ for job in every} - {job.kernel.__name__ for job in usual}
    assert missing == {"_joint_kernel"}
    assert not any(("*i1", True) in job.arguments for job in usual)
    assert any(("*i1", True) in job.arguments for job in every if job.label == "bf16 d128")
