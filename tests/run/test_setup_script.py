"""scripts/setup.sh on a machine with an NVIDIA driver, where everything it calls is made up."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "setup.sh"


def put(path: Path, code: str) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(f"#!{shutil.which('bash')}\n{code}\n")
    path.chmod(0o755)


@pytest.fixture
def setup(tmp_path):
    """A driver, a compiler, and a python that notes what it is asked and says what torch says."""
    tools = tmp_path / "tools"
    for name in ("nvidia-smi", "gcc", "uname", "cp"):
        put(tools / name, "")
    (tools / "dirname").symlink_to(shutil.which("dirname"))
    put(tools / "python3", "")
    python = f"""
echo "$*" >>{tmp_path}/asked
case "$1" in
-) {shutil.which("cat")} >/dev/null; [ -z "$TORCH_SAYS" ] || {{ echo "$TORCH_SAYS" >&2; exit 1; }};;
-c) echo {tmp_path};;
esac"""
    put(tmp_path / "venv" / "bin" / "python", python)

    def run(**environment: str) -> tuple[subprocess.CompletedProcess[str], str]:
        done = subprocess.run(
            [shutil.which("bash"), SCRIPT, tmp_path / "venv"],
            env={"PATH": str(tools), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        asked = tmp_path / "asked"
        return done, asked.read_text() if asked.exists() else ""

    return tools, run


def test_a_driver_gets_the_cuda_build_and_torch_is_asked_whether_it_sees_it(setup):
    done, asked = setup[1]()
    assert done.returncode == 0, done.stderr
    assert "+cpu" not in asked
    assert asked.splitlines()[-1] == "-"


def test_a_driver_that_torch_cannot_use_is_an_error(setup):
    done, _ = setup[1](TORCH_SAYS="error: the driver is too old")
    assert (done.returncode, done.stderr) == (1, "error: the driver is too old\n")


def test_no_c_compiler_is_an_error_before_anything_is_installed(setup):
    tools, run = setup
    os.remove(tools / "gcc")
    done, asked = run()
    assert (done.returncode, asked) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "install gcc" in done.stderr
    put(tools / "mycc", "")
    assert run(CC="mycc")[0].returncode == 0


def test_hidden_gpus_get_the_cpu_build(setup):
    tools, run = setup
    put(tools / "uname", "echo Linux")
    done, asked = run(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert "+cpu" in asked
    assert asked.splitlines()[-1] != "-"
