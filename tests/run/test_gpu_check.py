"""scripts/gpu_check.sh: its stages and their ends, its table, and dry runs."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from harness.settings.config import CONF
from scripts.gpu_check import output, sweep, table, versions
from scripts.gpu_check.cells import WHOLE
from scripts.gpu_check.output import Rows
from scripts.gpu_check.steps import Steps, summary

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"


def put(path: Path, code: str) -> None:
    path.write_text(f"#!{shutil.which('bash')}\n{code}\n")
    path.chmod(0o755)


@pytest.fixture
def check(tmp_path):
    """The script, with a python that notes modules and ends as told, and a clock that is told."""
    put(tmp_path / "python", f"""
case "$2" in *.table) exec {sys.executable} "$@";; import*) exit;; esac
echo "$2 $3 ${{CUDA_LAUNCH_BLOCKING-}}" >>{tmp_path}/ran
case "$2" in *."$FAILS") exit "${{CODE-1}}";; esac""")  # fmt: skip
    put(tmp_path / "timeout", 'case "$*" in *"$SLOW"*) exit 124;; esac; shift 2; exec "$@"')

    def run(**environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        path = f"{tmp_path}:{os.environ['PATH']}"
        told = {"FAILS": "none", "SLOW": "none", **environment}
        done = subprocess.run(
            [SCRIPT, tmp_path / "out"],
            env={**os.environ, "PYTHON": str(tmp_path / "python"), "PATH": path, **told},
            capture_output=True,
            text=True,
            check=False,
        )
        ran = tmp_path / "ran"
        return done, ran.read_text().splitlines() if ran.exists() else []

    return run


def test_a_stage_that_fails_or_is_slow_says_so_and_the_next_goes_on(check, tmp_path):
    done, ran = check(FAILS="operations", SLOW="bench_decode")
    assert done.returncode == 1, done.stderr
    said = done.stdout.splitlines()
    assert any(line.startswith("operations: failed") and "status 1" in line for line in said)
    assert any(line.startswith("decode: out of time") for line in said)
    assert any(line.startswith("sweep: ok") for line in said)
    ends = [row["stage"] for row in output.read(tmp_path / "out") if "status" in row]
    assert ends == ["versions", "operations", "answers", "decode", "kernels", "sweep", "tests",
                    "prefill", "claims_32k", "claims_128k"]  # fmt: skip
    assert (
        sum("scripts.gpu_check." in line for line in ran) == 7
    )  # prefill and claims by way of one
    blocking = [line.split()[0] for line in ran if line.endswith(" 1")]
    assert blocking == ["scripts.gpu_check.operations"]
    assert (tmp_path / "out" / "table.txt").read_text().splitlines() == said[-11:]
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"rows.jsonl", "log.txt", "table.txt"}


def test_without_a_device_nothing_else_runs(check):
    done, ran = check(FAILS="versions", CODE="2")
    assert done.returncode == 2
    assert [line.split()[0] for line in ran] == ["scripts.gpu_check.versions"]


def test_what_no_time_is_left_for_is_skipped(check):
    done, ran = check(MINUTES="0")
    assert done.returncode == 0
    assert not ran
    assert re.search(r"^sweep: skipped, 0 s: -?\d s are left$", done.stdout, re.MULTILINE)


def test_a_folder_is_used_once(check):
    check()
    done, _ = check()
    assert done.returncode == 2
    assert "give another folder" in done.stderr


def test_there_is_no_silent_run_on_the_cpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "argv", ["versions", "/nowhere"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(versions.__file__, run_name="__main__")
    assert caught.value.code == 2
    assert capsys.readouterr().out == "error: torch finds no CUDA device here.\n"


def test_failures_become_rows(tmp_path):
    rows = Rows(tmp_path, "sweep")
    with rows.trying("one"):
        raise RuntimeError("CUDA error: no\nmore of it")
    rows.put("two", ms=1.23456, parts=[{"a": 2.000001}])
    one, two = output.read(tmp_path)
    assert (one["verdict"], one["why"]) == ("failed", "RuntimeError: CUDA error: no")
    assert (two["ms"], two["parts"], rows.bad) == (1.235, [{"a": 2.0}], True)


KERNEL = {"operation": "tova_score", "length": 4096, "verdict": "ok", "ms": 0.5, "roofline": 0.31,
          "speedup_eager": 0.8}  # fmt: skip


def test_the_table_says_what_failed_and_what_to_tune(tmp_path):
    quick = {**KERNEL, "operation": "ragged_attention", "roofline": 0.9, "speedup_eager": 2.0}
    wrong = {**KERNEL, "operation": "h2o_score", "verdict": "wrong", "error": 0.5, "roofline": 0.6}
    benched = [KERNEL, quick, {**wrong, "speedup_eager": None}]
    (tmp_path / "kernels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in benched))
    rows = Rows(tmp_path, "sweep")
    rows.put("growing step", ms=50.0, device_ms=4.0, kernels=1200.0)
    rows.put("replayed step", ms=5.0, device_ms=4.0, kernels=1200.0)
    Rows(tmp_path, "answers").put("graphs against eager", "failed", why="no step was replayed")
    with (tmp_path / "rows.jsonl").open("a") as file:
        for name in ("decode", "kernels", "sweep"):
            file.write(json.dumps({"stage": name, "status": "ok", "seconds": 7}) + "\n")
    said = table.text(tmp_path)
    head, failed, tune = said.split("\n\n")
    assert "decode      ok              7  1 figures, 90 % of the roofline" in head
    assert failed.splitlines()[1:] == [
        "  answers: graphs against eager: no step was replayed",
        "  bench: h2o_score at 4096: off by 5.0e-01",
    ]
    assert tune.splitlines()[1:] == [
        "  tova_score at 4096: 0.5 ms, 31 % of the roofline",
        "  tova_score at 4096: 0.80 x eager's speed",
        "  growing step: waits for the host, 50.0 ms where the device works 4.0 ms (1200 kernels)",
    ]


def test_the_cells_are_those_of_the_default_sweep():
    (chosen,) = (each["method"] for each in yaml.safe_load((CONF / "config.yaml").read_text())
                 ["defaults"] if isinstance(each, dict) and "method" in each)  # fmt: skip
    assert set(chosen) == set(WHOLE)
    for name, (method, params) in WHOLE.items():
        own = yaml.safe_load((CONF / "method" / f"{name}.yaml").read_text())
        assert own.items() >= params.items()
        assert own.get("method", "restkv") == method
        assert name == method or own.keys() == {"defaults", *params}


def test_steps_are_timed_and_profiled():
    class Model(torch.nn.Module):
        def forward(self, input_ids):
            return input_ids @ torch.ones(input_ids.shape[1], 1)

    model = Model()
    with Steps(model, (1, 3)) as steps:
        model(input_ids=torch.ones(2, 5))  # a prompt
        for _ in range(5):
            model(input_ids=torch.ones(2, 1))
    assert len(steps.milliseconds()) == 4
    products = [each["calls"] for each in steps.table if each["name"] == "aten::mm"]
    assert products == [2]
    assert summary(steps, 2)["top_host"]


def test_a_sweep_of_a_small_model_of_the_same_architecture(tmp_path):
    rows = Rows(tmp_path, "sweep")
    sweep.work(rows, True)
    assert not rows.bad
    found = {row["figure"]: row for row in output.read(tmp_path)}
    assert found["rows"]["cells"] == 3
    assert found["growing step"]["ms"] > 0
    assert found["replayed step"]["verdict"] == "skipped"


def test_the_real_shape_is_that_of_the_published_model():
    """8.29 billion parameters, as its model card says; an image of 529 tokens in 700."""
    loaded = sweep.build(torch.device("meta"), False)
    assert sum(each.numel() for each in loaded.model.parameters()) == 8_292_166_656
    loaded.device = torch.device("cpu")
    prompt = sweep.prompt_of(loaded, sweep.SIDE, 169, 0)
    assert prompt.inputs["input_ids"].shape == (1, 700)
    assert int(prompt.modality.sum()) == 529


@pytest.mark.slow
def test_a_dry_run_passes_through_every_stage(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [SCRIPT, "--dry-run", tmp_path / "out"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + (tmp_path / "out" / "log.txt").read_text()
    rows = output.read(tmp_path / "out")
    assert [row["status"] for row in rows if "status" in row] == ["ok"] * 8
    assert {row["verdict"] for row in rows if "figure" in row} == {"ok", "skipped"}
    assert sum(row["stage"] == "operations" and "error" in row for row in rows) == 18
