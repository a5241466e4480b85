"""Reports from a run's files alone, and what is published of them."""

import json
import os
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from harness import stats
from harness.records import provenance
from harness.report import build, evidence, reading
from harness.run import cli
from harness.run import report as command
from harness.run.cli import CONF
from harness.settings.variants import factors, variant
from scripts import publish
from tests.outputs.conftest import sweep
from tests.run.conftest import Program
from tests.run.fakes import FakeEngine

ANSWERS = ("answer.md", "report.html", "cells.parquet", "comparisons.parquet", "verdicts.parquet")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def run(
    call: Program,
    engine: FakeEngine,
    overrides: list[str],
    made: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Path:
    """A copy of a finished run, made once with a page and once without."""
    source = made / ("whole" if "whole_report" in request.fixturenames else "quick")
    if not source.exists():
        assert call(*overrides, "method=[random,snapkv,restkv]", f"run.dir={source}") == 0
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


@pytest.mark.usefixtures("whole_report")
def test_a_report_is_made_again_from_the_files(run: Path, capsys):
    before = {name: (run / name).read_bytes() for name in ANSWERS}
    for name in ANSWERS:
        (run / name).unlink()
    shutil.rmtree(run.parent / "answers")
    assert command.main([str(run)]) == 0
    assert {name: (run / name).read_bytes() for name in ANSWERS} == before
    out = capsys.readouterr().out
    assert str(run / "answer.md") in out
    assert "Cannot tell whether ReST-KV keeps accuracy" in out


def test_answers_that_changed_come_with_their_images(run: Path):
    changed = evidence.rows_shown(build.read(run))["mmbench_mini"]
    assert changed
    images = {path.name for path in (run / "images").iterdir()}
    assert {f"mmbench_mini-{row}.png" for row in changed} <= images


def test_the_latest_finished_run_is_the_default(run: Path, monkeypatch, capsys):
    unfinished = run.parent / "unfinished"
    unfinished.mkdir()
    (unfinished / build.MANIFEST).write_text("{}")
    older = run.parent / "older"
    older.mkdir()
    for name in (build.MANIFEST, build.SAMPLES):
        (older / name).write_bytes((run / name).read_bytes())
    os.utime(older / build.MANIFEST, (0, 0))
    monkeypatch.setattr(command, "RUNS", run.parent)
    capsys.readouterr()
    assert command.main([]) == 0
    assert str(run / "answer.md") in capsys.readouterr().out
    assert not (older / "answer.md").exists()


@pytest.mark.parametrize("folder", ["nothing", "empty"])
def test_a_folder_without_a_run_is_refused(tmp_path: Path, folder: str, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    assert command.main([str(tmp_path / folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    monkeypatch.setattr(command, "RUNS", tmp_path)
    assert command.main([]) == 2
    assert "make sweep" in capsys.readouterr().err


def test_files_of_two_runs_are_refused(run: Path, capsys):
    samples = pd.read_parquet(run / build.SAMPLES)
    samples[samples["row"] > 3].to_parquet(run / build.SAMPLES, index=False)
    assert command.main([str(run)]) == 2
    assert "of two runs" in capsys.readouterr().err
    (run / build.MANIFEST).write_text("{")
    assert command.main([str(run)]) == 2
    assert "is damaged" in capsys.readouterr().err


TYPED = (
    ["run.name=two words", "ratios=[0.5,0.9]", "method=[restkv,snapkv]"],
    [r"run.name='it\'s; $HOME `ls` *'", "limit=3"],
    ['run.name="Is it so, or (not)?"', "method=[snapkv,'restkv']"],
    ["+model.note={a: 1, b: [x, 'y z']}", "run.dir=/tmp/a b/c"],
)


@pytest.mark.parametrize("typed", TYPED)
def test_the_command_can_be_pasted(typed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["evictbench", *typed])
    program, *read = shlex.split(provenance.command())
    assert program == "evictbench"
    assert read == typed
    cli.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("config", read) == compose("config", typed) != compose("config")


def test_the_manifest_says_what_the_answer_rests_on(run: Path):
    manifest = json.loads((run / build.MANIFEST).read_text())
    assert manifest["plan"]["margin"] == 0.02
    assert manifest["registered"] is True
    assert len(manifest["weights"]) == 64
    assert len(manifest["data"]["mmbench_mini"]) == 64
    assert manifest["provenance"]["software"]["torch"]
    assert manifest["provenance"]["command"].startswith("evictbench ")
    assert manifest["methods"]["restkv"]["alpha"] == 0.3
    weights = manifest["window_weights"]
    assert sum(weights["restkv"]["weights"]) == pytest.approx(1, abs=1e-4)
    assert weights["restkv"]["weights"][-1] == pytest.approx(0.3, abs=1e-6)
    assert weights["snapkv"]["weights"] == [round(1 / 32, 6)] * 32
    assert "random" not in weights


def test_what_is_published_holds_no_times(run: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(publish, "place", lambda one: run)
    one = publish.Publication("run", page=True)
    target = publish.publish(one, tmp_path / "results")
    first = publish.digest(target)
    assert not set(stats.TIMINGS) & set(pd.read_parquet(target / "cells.parquet").columns)
    assert not (target / "samples.parquet").exists()
    assert str(publish.ROOT) not in (target / "config.yaml").read_text()
    assert "ms" not in (target / "summary.md").read_text().split("Measured cells")[1][:200]
    # The same answers, computed in another time, give the same bytes.
    samples = pd.read_parquet(run / build.SAMPLES)
    samples[stats.TIMINGS] *= 3
    samples.to_parquet(run / build.SAMPLES, index=False)
    reading.seal(run)
    assert publish.digest(publish.publish(one, tmp_path / "results")) == first
    samples.loc[samples["method"] == "restkv", "correct"] = False
    samples.loc[samples["method"] == "restkv", "score"] = 0.0
    samples.to_parquet(run / build.SAMPLES, index=False)
    reading.seal(run)
    assert publish.digest(publish.publish(one, tmp_path / "results")) != first


@pytest.mark.parametrize(
    "changed", [{"temporal": "last"}, {"temporal": "ema_reversed"}, {"spatial": "max"}, {}]
)
def test_every_smoothing_can_be_reported(changed):
    """The ablation has levels of its own; what is none of them is left out of it."""
    chosen = [variant("restkv", {"method": "restkv", **changed})]
    levels = factors(chosen)
    assert levels == ({} if changed else {"restkv": {"temporal": "ema", "spatial": "adaptive"}})
    samples = sweep(("restkv",), questions=4)
    assert build.study(samples, {"factors": levels, "plan": {"resamples": 199}}).ablation.empty


def test_an_unknown_publication_is_refused(capsys):
    with pytest.raises(SystemExit):
        publish.main(["nothing"])
    assert "choose from" in capsys.readouterr().err
