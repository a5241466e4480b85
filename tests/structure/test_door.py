"""The console script: its commands, from a folder that holds packages of the same names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.settings.config import HOME

SCRIPT = Path(sys.executable).parent / "evictbench"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("harness", "methods", "conf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not evictbench')")
    return tmp_path


def call(folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [str(SCRIPT), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HOME)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def test_it_tells_its_version(folder: Path) -> None:
    assert call(folder, "--version") == (0, f"evictbench {harness.__version__}\n", "")


def test_settings_stand_with_and_without_the_word_run(folder: Path) -> None:
    typed = ("limit=3", "--cfg", "job")
    plain, named = call(folder, *typed), call(folder, "run", *typed)
    assert plain == named == call(folder, "check", *typed)
    assert plain[0] == 0
    assert "\nlimit: 3\n" in plain[1]


def test_a_report_of_nothing_is_one_sentence(folder: Path) -> None:
    said = "error: nothing is not there: name the folder of a run.\n"
    assert call(folder, "report", "nothing") == (2, "", said)
    code, _, err = call(folder, "report")
    assert (code, err.count("\n")) == (2, 1)
    assert "results/runs holds no run" in err


def test_an_unknown_word_names_the_commands(folder: Path) -> None:
    code, out, err = call(folder, "raport", "results")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "'raport'" in err
    assert "the commands are run, check, report and compare" in err


def test_help_names_the_commands(folder: Path) -> None:
    code, out, _ = call(folder, "--help")
    assert code == 0
    for word in ("check", "report", "compare"):
        assert f"evictbench {word} " in out
    assert "python -m harness" not in out


def test_hydra_completes_the_line(folder: Path) -> None:
    """What a shell asks for behind `evictbench exp<TAB>`."""
    done = subprocess.run(
        [str(SCRIPT), "--shell-completion", "query=bash"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(HOME),
            "COMP_LINE": f"{SCRIPT} experiment=sm",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "experiment=smoothing" in done.stdout.split()
