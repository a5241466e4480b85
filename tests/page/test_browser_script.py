"""scripts/browser.sh finds a Chromium, or installs one, or says what to do."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.page.conftest import ROOT

SCRIPT = ROOT / "scripts" / "browser.sh"


@pytest.fixture
def machine(tmp_path):
    """An empty PATH but for bash's needs, and a python whose playwright has and gets nothing."""
    bash = shutil.which("bash")
    put(
        tmp_path,
        "python",
        'case "$*" in *install*) echo "$*" >>"$LOG"; exit 1;; *) echo /no;; esac',
    )
    put(tmp_path, "id", "echo 1000")

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        kept = {"PATH": str(tmp_path), "LOG": str(tmp_path / "log")}
        return subprocess.run(
            [bash, SCRIPT, tmp_path / "python"], env=kept | environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip

    return tmp_path, run


def put(folder: Path, name: str, code: str) -> Path:
    path = folder / name
    path.write_text(f"#!{shutil.which('bash')}\n{code}\n")
    path.chmod(0o755)
    return path


def log(folder: Path) -> list[str]:
    path = folder / "log"
    return path.read_text().splitlines() if path.exists() else []


def test_the_first_that_runs_is_taken(machine):
    folder, run = machine
    put(folder, "chromium", "exit 1")  # as a stub that only names another package
    chrome = put(folder, "google-chrome", "exit 0")
    assert run().stdout == f"{chrome}\n"
    other = put(folder, "mine", "exit 0")
    assert run(EVICTBENCH_CHROMIUM=str(other)).stdout == f"{other}\n"
    assert log(folder) == []


def test_nothing_is_installed_when_only_looking_or_told_which(machine):
    folder, run = machine
    for environment in ({"FIND": "1"}, {"EVICTBENCH_CHROMIUM": str(folder / "none")}):
        done = run(**environment)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("error: no Chromium that runs was found")
        assert done.stderr.count("\n") == 1
        assert log(folder) == []


def test_playwright_installs_else_root_asks_apt(machine):
    folder, run = machine
    assert run().returncode == 2
    assert log(folder) == ["-m playwright install chromium"]
    put(folder, "id", "echo 0")
    put(folder, "apt-get", f'echo "apt-get $*" >>"$LOG"; [ "$1" = update ] || '
        f'printf "#!{shutil.which("bash")}\\n" >{folder}/chromium; '
        f'[ "$1" = update ] || {shutil.which("chmod")} +x {folder}/chromium')  # fmt: skip
    assert run().stdout == f"{folder / 'chromium'}\n"
    assert log(folder)[1:] == [
        "-m playwright install --with-deps chromium", "apt-get update",
        "apt-get install -y chromium",
    ]  # fmt: skip


def test_playwrights_own_is_taken(machine):
    folder, run = machine
    mine = put(folder, "chrome", "exit 0")
    put(folder, "python", f'case "$*" in *install*) exit 1;; *) echo {mine};; esac')
    assert run().stdout == f"{mine}\n"
    assert os.access(mine, os.X_OK)
