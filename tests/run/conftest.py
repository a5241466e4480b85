import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra._internal.hydra import Hydra
from pandas.testing import assert_frame_equal

from harness import __main__ as program
from harness import stats
from harness.report import build, reading
from harness.run import collect, outcome, traces
from tests.run.fakes import FakeEngine, write_mmbench

Program = Callable[..., int]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mmbench(tmp_path_factory.mktemp("data") / "mmbench")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"1")
    return folder


@pytest.fixture
def overrides(data: Path, weights: Path, tmp_path: Path) -> list[str]:
    """A small run in a folder of its own: 2 methods at a ratio."""
    return [
        f"model.pretrained={weights}",
        "model.name=tiny_vlm",
        f"tasks.mmbench_mini.overrides.dataset_path={data}",
        "method=[random,restkv]",
        "protocol=replay",
        "ratios=[0.9]",
        f"run.dir={tmp_path}",
        "run.name=run",
        "wandb.mode=disabled",
        "analysis.resamples=199",
    ]


@pytest.fixture(autouse=True)
def quick(quick_report: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """See `quick_report`; and Hydra composes once: first it does only to read hydra.mode, which
    nothing in conf/ sets. Programs of their own still compose twice.
    """
    composed = Hydra.get_mode

    def mode(hydra: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        told = any("hydra.mode" in typed for typed in overrides)
        return composed(hydra, config_name, overrides) if told else None

    monkeypatch.setattr(Hydra, "get_mode", mode)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """The fake engine that sweeps of this test use."""
    fake = FakeEngine()
    monkeypatch.setattr(collect, "load_engine", lambda *loading: fake)
    return fake


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that end with samples, traces and manifest: statistics and tables of them are two thirds
    of a small run, and many tests are about what was asked and stored.
    """

    def write(job, asked, store, frame, record, *how) -> None:
        traces.write(store, asked, job.config.model.name, job.folder, {})
        facts = outcome.manifest(job, asked, store, frame, record) | {
            "samples": build.digest(frame)
        }
        frame.to_parquet(job.folder / build.SAMPLES, index=False)
        (job.folder / build.MANIFEST).write_text(json.dumps(facts))
        reading.seal(job.folder)

    monkeypatch.setattr(outcome, "write", write)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Program:
    """Run the command line in this process; returns its exit code."""

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["harness", *arguments])
        return program.main()

    return run


@pytest.fixture(scope="session")
def runs_in_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("one")


@pytest.fixture
def in_one(
    runs_in_one: Path, call: Program, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The run of `overrides` in one process, in a run.dir of its own."""
    if not (runs_in_one / "run").exists():
        rest = [text for text in overrides if not text.startswith("run.dir")]
        with monkeypatch.context() as patch:
            patch.setattr(collect, "load_engine", lambda *loading: FakeEngine())
            assert call(*rest, f"run.dir={runs_in_one}") == 0
    return runs_in_one / "run"


def table(run: Path, name: str) -> pd.DataFrame:
    """A table of a run without its timings."""
    frame = pd.read_parquet(run / f"{name}.parquet")
    return frame.drop(columns=stats.TIMINGS, errors="ignore")


def assert_same_tables(one: Path, other: Path) -> None:
    for path in sorted(one.glob("*.parquet")):
        assert_frame_equal(table(other, path.stem), table(one, path.stem), check_exact=True)
    assert len(list(one.glob("*.parquet"))) > 5


def store_of(folder: Path) -> Path:
    """The answers store of a run.dir that was asked about one model."""
    (found,) = (folder / "answers").glob("*.sqlite")
    return found
