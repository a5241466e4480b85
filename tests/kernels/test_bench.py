"""The benchmark of the kernels: what a row says, what it refuses, and what it does without a GPU.

The device is the CPU here, and its clock made up.
"""

from __future__ import annotations

import dataclasses
import operator
import os
import time
from functools import partial

import pytest
import torch

from methods import kernels
from scripts import bench_decode, bench_kernels
from scripts.kernel_bench import apart, measure, series
from scripts.kernel_bench import bench as benching
from scripts.kernel_bench import run as running
from scripts.kernel_bench.apart import Lost, Worker
from scripts.kernel_bench.bench import Apart, Bench
from scripts.kernel_bench.case import Baseline
from scripts.kernel_bench.decode import SUITE as DECODE
from scripts.kernel_bench.measure import Ceilings, Times
from scripts.kernel_bench.operations import SUITE
from scripts.kernel_bench.rows import Store, path_of, table


class Clock:
    """Every run takes 2 ms."""

    def __init__(self, device):
        pass

    def time(self, work):
        work()
        return Times(1.0, 2.0, 3.0, 5)


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(measure, "Clock", Clock)
    monkeypatch.setattr(measure, "ceilings", lambda *_: Ceilings(1e12, 1e14))
    monkeypatch.setattr(measure, "temporary", lambda work: 7)
    monkeypatch.setattr(measure, "fits", lambda size, device: size < 10**9)
    monkeypatch.setattr(measure, "commit", lambda: "abc1234")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Made-up GPU (8 GB)")
    with kernels.using("torch"):
        yield torch.device("cpu")


def run(suite, device, tmp_path, *more, bench=None):
    argv = ["--shapes", "qwen2.5-vl-7b", "--lengths", "512", "--dtype", "fp32"]
    args = running.parse(suite, "", [*argv, "--out", str(tmp_path / "rows.jsonl"), *more])
    wanted = [each for each in suite.operations if each.name in args.operations]
    status = series.run(suite, wanted, args, bench or Bench(suite, args.dtype, device))
    return status, Store(args.out).rows


def test_rows_say_what_was_measured(device, tmp_path, capsys):
    names = ["restkv_score", "restkv_score_active", "h2o_score", "gather_entries"]
    status, rows = run(SUITE, device, tmp_path, "--operations", *names, "--plot")
    assert status == 0
    assert [key[0] for key in rows] == ["restkv_score", "h2o_score", "gather_entries"]
    row = rows["restkv_score", "qwen2.5-vl-7b", 512, "fp32"]
    assert row["verdict"] == "ok"
    assert row["error"] < row["tolerance"]
    assert (row["ms_p20"], row["ms"], row["ms_p80"], row["temporary_bytes"]) == (1.0, 2.0, 3.0, 7)
    assert row["memory_roofline"] == pytest.approx(row["bytes"] / 1e12 / 2e-3, rel=1e-4)
    assert row["matrix_roofline"] == pytest.approx(row["flops"] / 1e14 / 2e-3, rel=1e-4)
    assert row["roofline"] == max(row["memory_roofline"], row["matrix_roofline"])
    assert row["speedup_eager"] == row["ratio_sdpa"] == 1.0
    assert row["eager_bytes"] > 10 * row["bytes"]
    assert row["device"] == "Made-up GPU (8 GB)"
    assert {"torch", "triton", "driver", "commit", "when"} <= row.keys()
    assert "restkv_score" in capsys.readouterr().out
    assert (tmp_path / "rows.png").stat().st_size > 10_000


def spoil(suite, name, spoiled):
    """The suite with another way to prepare one operation."""
    changed = [
        dataclasses.replace(each, prepare=spoiled(each.prepare)) if each.name == name else each
        for each in suite.operations
    ]
    return dataclasses.replace(suite, operations=tuple(changed))


def test_a_wrong_result_gets_no_speedup_and_a_bad_exit_status(device, tmp_path):
    suite = spoil(SUITE, "snapkv_score", lambda was: lambda *a: lambda: was(*a)() * 1.01)
    names = ["snapkv_score", "tova_score"]
    status, rows = run(suite, device, tmp_path, "--operations", *names)
    wrong, right = rows.values()
    assert status == 1
    assert (wrong["verdict"], right["verdict"]) == ("wrong", "ok")
    assert wrong["speedup_eager"] is wrong["ratio_sdpa"] is None
    assert right["speedup_eager"] == 1.0


def test_nothing_is_compared_with_a_wrong_baseline(device, tmp_path):
    (gather,) = (each for each in SUITE.operations if each.name == "gather_entries")
    honest = gather.baselines["eager"].prepare
    wrong = Baseline(lambda *a: lambda: [each + 1 for each in honest(*a)()])
    changed = dataclasses.replace(gather, baselines={"eager": wrong})
    suite = dataclasses.replace(SUITE, operations=(changed,))
    status, rows = run(suite, device, tmp_path)
    (row,) = rows.values()
    assert (status, row["verdict"], row["eager_note"]) == (0, "ok", "wrong")
    assert row["speedup_eager"] is None


def test_a_baseline_that_does_not_fit_is_left_out(device, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "fits", lambda *_: False)
    status, rows = run(SUITE, device, tmp_path, "--operations", "tova_score")
    (row,) = rows.values()
    assert status == 0
    assert row["eager_note"].startswith("needs ")
    assert row["speedup_eager"] is None
    assert row["ratio_sdpa"] == 1.0


def test_an_operation_that_fails_is_a_row_and_ends_badly(device, tmp_path):
    def broken(_prepare):
        def prepare(*_):
            raise ValueError("no such\nthing")

        return prepare

    status, rows = run(
        spoil(DECODE, "move_entries", broken), device, tmp_path, "--operations", "move_entries"
    )
    (row,) = rows.values()
    assert status == 1
    assert (row["verdict"], row["why"]) == ("failed", "ValueError: no such")


@pytest.mark.parametrize("dies", [True, False])
def test_a_lost_process_costs_one_figure(device, tmp_path, monkeypatch, capsys, dies):
    """It dies, or its device answers it no more, at tova_score."""
    made = []

    class Process:
        def __init__(self, make, seconds):
            made.append(self)

        def __call__(self, *asked):
            if not asked:
                return here.common
            lost = asked[0]["operation"] == "tova_score"
            if lost and dies:
                raise Lost("its process ended with signal 11")
            return {**here.figure(*asked), "why": "CUDA error"}, not lost

        def close(self):
            pass

    monkeypatch.setattr(benching, "Worker", Process)
    here = Bench(SUITE, "fp32", device)
    names = ["snapkv_score", "tova_score", "pooling", "top_positions"]
    status, rows = run(SUITE, device, tmp_path, "--operations", *names, bench=Apart(SUITE, "fp32"))
    assert len(made) == 2
    found = [row["verdict"] for row in rows.values()]
    assert found == ["ok", "failed" if dies else "ok", "ok", "ok"]
    lost = rows["tova_score", "qwen2.5-vl-7b", 512, "fp32"]
    assert lost["why"] == ("its process ended with signal 11" if dies else "CUDA error")
    assert status == dies
    assert "4 rows" in capsys.readouterr().out


def test_the_table_is_printed_when_something_ends_it(device, tmp_path, monkeypatch, capsys):
    bench = Bench(SUITE, "fp32", device)
    figure = bench.figure

    def once(row, shape):
        if row["operation"] == "tova_score":
            raise SystemExit("The time is over.")
        return figure(row, shape)

    monkeypatch.setattr(bench, "figure", once)
    names = ("--operations", "snapkv_score", "tova_score")
    with pytest.raises(SystemExit):
        run(SUITE, device, tmp_path, *names, bench=bench)
    assert "1 rows" in capsys.readouterr().out


def test_a_process_answers_until_it_is_lost(monkeypatch):
    monkeypatch.setattr(apart, "_IMPORTED", [])  # nothing of torch is needed here
    worker = Worker(partial(partial, operator.add), 60)
    assert (worker(1, 2), worker("a", "b")) == (3, "ab")
    worker.close()
    ends = Worker(partial(partial, os._exit), 60)
    with pytest.raises(Lost, match="ended with 7"):
        ends(7)
    hangs = Worker(partial(partial, time.sleep), 0.2)
    with pytest.raises(Lost, match=r"within 0\.2 s"):
        hangs(60)
    with pytest.raises(Lost, match="ended with 1"):
        Worker(partial(int, "no number"), 60)


def test_decoding_is_compared_with_each_of_its_baselines(device, tmp_path):
    status, rows = run(DECODE, device, tmp_path)
    assert status == 0
    for row in rows.values():
        assert row["verdict"] == "ok"
    attention = rows["ragged_attention_rows", "qwen2.5-vl-7b", 512, "fp32"]
    for name in ("padded", "one_by_one", "torch"):
        assert attention[f"speedup_{name}"] == 1.0


def test_rows_replace_their_like_and_are_left_out_on_request(device, tmp_path, monkeypatch):
    names = ("--operations", "pooling", "top_positions")
    run(SUITE, device, tmp_path, *names)
    run(SUITE, device, tmp_path, "--operations", "pooling")
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
    drawn = []
    suite = dataclasses.replace(SUITE, draw=lambda *a: drawn.append(a[2].type) or SUITE.draw(*a))
    run(suite, device, tmp_path, *names, "--resume")
    assert "cpu" not in drawn
    monkeypatch.setattr(measure, "commit", lambda: "def5678")
    run(suite, device, tmp_path, *names, "--resume")
    assert drawn.count("cpu") == 1


def test_files_and_tables():
    assert str(path_of("NVIDIA H100 80GB HBM3")) == "results/kernels/nvidia-h100-80gb-hbm3.jsonl"
    assert table(["a", "b", "c"], [["xx", "y", "1"]]) == "a   b  c\nxx  y  1"


@pytest.mark.parametrize("script", [bench_kernels, bench_decode])
def test_without_a_gpu_results_are_checked_and_costs_counted(script, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(running, "interpreted", lambda: False)
    with kernels.using("auto"):
        assert script.main(["--lengths", "4096", "--shapes", "mistral-7b"]) == 0
    out = capsys.readouterr().out
    assert "Nothing was timed" in out
    assert "WRONG" not in out
    assert "Counted for bf16" in out


def test_short_lengths_are_refused(capsys):
    with pytest.raises(SystemExit):
        running.parse(SUITE, "", ["--lengths", "511"])
    assert "512 tokens or more" in capsys.readouterr().err
