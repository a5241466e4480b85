import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.hydra import Hydra

from harness import __main__ as program
from harness.run import collect
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
        f"tasks.mmbench_mini.overrides.dataset_path={data}",
        "method=[random,restkv]",
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
def call(monkeypatch: pytest.MonkeyPatch) -> Program:
    """Run the command line in this process; returns its exit code."""

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["harness", *arguments])
        return program.main()

    return run


def store_of(folder: Path) -> Path:
    """The answers store of a run.dir that was asked about one model."""
    (found,) = (folder / "answers").glob("*.sqlite")
    return found
