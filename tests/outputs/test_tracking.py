"""An offline wandb run read back from its files: what a later sync will find."""

import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.internal.datastore import DataStore

from harness import stats, tracking
from harness.errors import UserError
from harness.report import files
from tests.outputs.conftest import sweep

ROOT = Path(__file__).parents[2]
KEY = "5ec12e7" * 6
QUESTIONS = 5
# Logs in a process of its own, and prints what the caller of log_run can see.
CHILD = """
import json, os, sys
from pathlib import Path
import pandas as pd
from PIL import Image
from harness import stats, tracking
samples = pd.read_parquet(Path(sys.argv[1]) / "samples.parquet")
config = {"ratios": [0.5, 0.9], "model": {"name": "tiny", "path": Path("/weights")}, "limit": None}
asked = []
def image(task, row):
    asked.append(row)
    return None if row == 0 else Image.new("RGB", (8, 6), (row, 0, 0))
before = dict(os.environ)
path = tracking.log_run(samples, stats.summarise(samples), image, config, Path(sys.argv[1]),
                        "offline", "the-group", "the-name", questions=int(sys.argv[2]))
answer = {"path": str(path), "asked": asked, "same": before == dict(os.environ)}
Path(sys.argv[3]).write_text(json.dumps(answer))
"""


@dataclass
class Logged:
    """The child's run, and everything the tests ask about it."""

    samples: pd.DataFrame
    folder: Path
    answer: dict
    process: subprocess.CompletedProcess
    outside: list[Path]
    contacted: bool
    records: list[Record] = field(default_factory=list)

    def of(self, kind: str) -> list:
        return [getattr(r, kind) for r in self.records if r.WhichOneof("record_type") == kind]

    def history(self) -> dict:
        (step,) = self.of("history")
        values: dict = {}
        for item in step.item:
            *parents, last = item.nested_key or [item.key]
            place = values
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = json.loads(item.value_json)
        return values

    def artifact(self, name: str) -> dict[str, Path]:
        """Path in the artifact of the table `name` -> file that will be uploaded."""
        (found,) = [a for a in self.of("artifact") if a.name.endswith(f"-{name}")]
        return {entry.path: Path(entry.local_path) for entry in found.manifest.contents}

    def table(self, name: str) -> pd.DataFrame:
        content = json.loads(self.artifact(name)[f"{name}.table.json"].read_text())
        return pd.DataFrame(content["data"], columns=content["columns"])


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> Logged:
    base = tmp_path_factory.mktemp("tracking")
    empty = [base / name for name in ("home", "temporary", "working")]
    for folder in empty:
        folder.mkdir()
    samples = sweep(ratios=(0.5, 0.9), questions=12)
    samples.loc[samples["method"].eq("random") & samples["ratio"].eq(0.5), "exposed_tokens"] = 0
    samples.loc[samples["row"].eq(3), "text"] = "a|b <script>"
    files.write(samples, base / "run", {})
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        environment = {
            "HOME": str(empty[0]), "TMPDIR": str(empty[1]), "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
            "WANDB_API_KEY": KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}",
        }  # fmt: skip
        process = subprocess.run(
            [sys.executable, "-c", CHILD, base / "run", str(QUESTIONS), base / "answer.json"],
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
    run = Logged(samples, base / "run", answer, process, outside, contacted)
    (store_path,) = Path(answer["path"]).glob("run-*.wandb")
    store = DataStore()
    store.open_for_scan(str(store_path))
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(bytes(data))
        run.records.append(record)
    return run


def test_run_is_named_and_configured(logged):
    (run,) = logged.of("run")
    assert (run.project, run.run_group, run.display_name, run.job_type) == (
        "evictbench", "the-group", "the-name", "sweep",
    )  # fmt: skip
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["ratios"] == [0.5, 0.9]
    assert config["model"] == {"name": "tiny", "path": "/weights"}
    assert [e.exit_code for e in logged.of("exit")] == [0]


def test_history_holds_every_accuracy(logged):
    cells = stats.summarise(logged.samples)
    expected = {}
    for _, cell in cells.iterrows():
        name = cell["method"]
        if name in ("full", "blank_image"):
            key = {"full": "accuracy/full_cache"}.get(name, f"accuracy/{name}")
        else:
            key = f"{'vacuous' if cell['vacuous'] else 'accuracy'}/{name}@{cell['ratio']:g}"
        expected[key] = cell["accuracy"]
    history = logged.history()
    got = {key: value for key, value in history.items() if "/" in key}
    assert got == pytest.approx(expected)
    assert "vacuous/random@0.5" in got
    assert {"cells", "samples", "curve"} <= set(history)


def test_cells_table_equals_the_frame(logged):
    cells, table = stats.summarise(logged.samples), logged.table("cells")
    assert table.columns.tolist() == stats.CELL_COLUMNS
    assert len(table) == len(cells)
    for column in cells:
        for got, want in zip(table[column], cells[column], strict=True):
            if pd.isna(want):
                assert pd.isna(got)
            elif isinstance(want, float):
                assert math.isclose(got, want)
            else:
                assert got == want


def test_sample_table_is_bounded_and_illustrated(logged):
    table = logged.table("samples")
    assert table.columns.tolist() == tracking.SAMPLE_COLUMNS
    lines = ["full", "blank_image", "random", "snapkv", "restkv"]
    assert len(table) == QUESTIONS * len(lines)
    assert table["method"].tolist() == lines * QUESTIONS
    assert set(table["ratio"]) == {0.0, 0.9}
    # 12 questions of 3 rotations: 5 of them evenly spread, each with its first rotation.
    rows = [3 * question for question in (0, 3, 6, 8, 11)]
    assert logged.answer["asked"] == rows
    assert table["row"].unique().tolist() == rows
    key = ["row", "method", "ratio"]
    want = logged.samples.set_index(key).loc[list(zip(*(table[k] for k in key), strict=True))]
    for column in ("question", "answer", "text", "parsed", "correct", "exposed_tokens"):
        assert table[column].tolist() == want[column].tolist()
    assert table.loc[table["row"] == 0, "image"].isna().all()
    files = logged.artifact("samples")
    for _, line in table[table["row"] > 0].iterrows():
        with Image.open(files[line["image"]["path"]]) as picture:
            assert picture.size == (8, 6)
            assert picture.getpixel((0, 0)) == (line["row"], 0, 0)


def test_everything_a_sync_needs_is_inside_the_run_folder(logged):
    assert logged.outside == []
    home = logged.folder / "wandb"
    assert Path(logged.answer["path"]).parent == home
    staged = [path for name in ("cells", "samples") for path in logged.artifact(name).values()]
    assert all(path.is_relative_to(home) and path.is_file() for path in staged)
    picture = Path(logged.answer["path"]) / "files" / logged.history()["curve"]["path"]
    assert picture.read_bytes() == (logged.folder / "curve.png").read_bytes()


def test_it_is_quiet_offline_and_keeps_secrets(logged):
    assert (logged.process.stdout, logged.process.stderr) == ("", "")
    assert not logged.contacted
    assert logged.answer["same"]
    for path in logged.folder.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


def test_online_without_network_fails_at_once(make_sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    samples = make_sweep()
    before = dict(os.environ)
    with pytest.raises(UserError, match=r"cannot reach http://127\.0\.0\.1:9") as caught:
        tracking.log_run(samples, stats.summarise(samples), lambda row: None, {}, tmp_path,
                         "online", "group", "name")  # fmt: skip
    assert "wandb.mode=offline" in str(caught.value)
    assert dict(os.environ) == before


def test_disabled_writes_nothing_and_other_modes_are_refused(make_sweep, tmp_path):
    samples = make_sweep()
    arguments = (samples, stats.summarise(samples), lambda row: None, {}, tmp_path)
    assert tracking.log_run(*arguments, "disabled", "group", "name") is None
    with pytest.raises(UserError, match="'sometimes' is unknown; choose one of offline, online"):
        tracking.log_run(*arguments, "sometimes", "group", "name")
    assert list(tmp_path.iterdir()) == []
