"""One process logs the study of `studies` offline; its runs are read back from their files."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.internal.datastore import DataStore

from harness.report.study import Study
from tests.tracking import studies

ROOT = Path(__file__).parents[2]
KEY = "5ec12e7" * 6
SWEEP = "the-sweep"
CHILD = """
import json, os, sys
from pathlib import Path
from harness import tracking
from tests.tracking import studies
config = {"ratios": [0.5, 0.9], "model": {"name": "tiny", "path": Path("/weights")}, "limit": None}
asked, known = [], set()
def image(task, row):
    asked.append((task, row))
    known.add(os.environ.get("WANDB_API_KEY"))
    return studies.image(task, row)
before = dict(os.environ)
folder, sweep, answer = sys.argv[1:]
paths = tracking.log(studies.study(), image, config, Path(folder), "offline", group=sweep)
told = {"paths": list(map(str, paths)), "asked": asked, "same": before == dict(os.environ),
        "known": list(known)}
Path(answer).write_text(json.dumps(told))
"""
# What the caller's shell says about wandb is not about these runs.
STRAY = {
    "WANDB_RUN_ID": "stray", "WANDB_NAME": "stray", "WANDB_TAGS": "stray", "WANDB_RUN_GROUP": "x",
    "WANDB_PROJECT": "stray", "WANDB_NOTES": "stray", "WANDB_JOB_TYPE": "x", "WANDB_RESUME": "must",
}  # fmt: skip


@dataclass
class Run:
    """A run as its file tells it."""

    folder: Path
    records: list[Record] = field(default_factory=list)

    def of(self, kind: str) -> list:
        return [getattr(r, kind) for r in self.records if r.WhichOneof("record_type") == kind]

    def head(self):
        (run,) = self.of("run")
        return run

    def history(self) -> list[dict]:
        """The steps, without wandb's own clock."""
        steps = [_values(step.item) for step in self.of("history")]
        return [{k: v for k, v in step.items() if not k.startswith("_")} for step in steps]

    def lines(self) -> list[dict]:
        return [step for step in self.history() if "cells" not in step]

    def logged(self) -> dict:
        """The step with tables and pictures."""
        (step,) = [step for step in self.history() if "cells" in step]
        return step

    def summary(self) -> dict:
        found: dict = {}
        for record in self.of("summary"):
            found |= _values(record.update)
        return found

    def artifact(self, name: str) -> dict[str, Path]:
        """Path in the artifact of the table `name` -> file that will be uploaded."""
        (found,) = [a for a in self.of("artifact") if a.name.endswith(f"-{name}")]
        return {entry.path: Path(entry.local_path) for entry in found.manifest.contents}

    def table(self, name: str) -> pd.DataFrame:
        content = json.loads(self.artifact(name)[f"{name}.table.json"].read_text())
        return pd.DataFrame(content["data"], columns=content["columns"], dtype=object)


def _values(items) -> dict:
    values: dict = {}
    for item in items:
        *parents, last = item.nested_key or [item.key]
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = json.loads(item.value_json)
    return values


def read(folder: Path) -> Run:
    (path,) = folder.glob("run-*.wandb")
    run, store = Run(folder), DataStore()
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(bytes(data))
        run.records.append(record)
    return run


@dataclass
class Logged:
    """The process, what it left, and its runs: by ratio, by budget, vacuous."""

    study: Study
    folder: Path
    answer: dict
    process: subprocess.CompletedProcess
    outside: list[Path]
    contacted: bool
    runs: list[Run]


@pytest.fixture(scope="session")
def study() -> Study:
    return studies.study()


@pytest.fixture(scope="session")
def logged(tmp_path_factory, study) -> Logged:
    base = tmp_path_factory.mktemp("tracking")
    empty = [base / name for name in ("home", "temporary", "working")]
    for folder in [*empty, base / "run"]:
        folder.mkdir()
    for place, name in enumerate(("curve-tiny-mini-replay", "curve-mean", "heatmap-tiny-x-replay")):
        studies.image(name, place + 1).save(base / "run" / f"{name}.png")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        environment = STRAY | {
            "HOME": str(empty[0]), "TMPDIR": str(empty[1]), "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
            "WANDB_API_KEY": KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}",
        }  # fmt: skip
        process = subprocess.run(
            [sys.executable, "-c", CHILD, base / "run", SWEEP, base / "answer.json"],
            cwd=empty[2], env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        try:
            server.accept()[0].close()
            contacted = True
        except BlockingIOError:
            contacted = False
    assert process.returncode == 0, process.stderr
    answer = json.loads((base / "answer.json").read_text())
    outside = [path for folder in empty for path in folder.rglob("*")]
    runs = [read(Path(path)) for path in answer["paths"]]
    return Logged(study, base / "run", answer, process, outside, contacted, runs)
