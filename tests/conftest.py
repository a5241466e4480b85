"""Every test and every process that a test starts: one CPU thread, no wandb server.

Without a GPU the kernels run in Triton's interpreter, which has to be said before they are defined.
"""

import contextlib
import gc
import glob
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import composing

# Before torch is imported. Tiny tensors on several threads mostly wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not glob.glob("/dev/nvidia[0-9]*"):
    os.environ.setdefault("TRITON_INTERPRET", "1")
# In the background or under nohup these are ignored, and a child inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The collector would look at young objects every 700 allocations, which frames make in no time.
gc.set_threshold(10_000, 10, 10)

# Before the large libraries: pydantic looks for the source of wandb's classes among all modules
# there are, which takes ten seconds where they are thousands.
import wandb  # noqa: E402, F401

import harness  # noqa: E402, F401 - before transformers: it lets torchvision be imported

# Its handler keeps the standard error it finds, and Hydra's logging closes that unless it is the
# process's own: pytest's would be closed, and every later test of the process an error.
with contextlib.redirect_stderr(sys.__stderr__):
    import absl.logging  # noqa: F401

TESTS = Path(__file__).resolve().parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="the tests marked slow as well")


def pytest_configure(config: pytest.Config) -> None:
    """Let each of several processes begin to collect in another folder. A fresh clone holds no
    compiled modules: in step, every process would compile all of them.
    """
    worker = getattr(config, "workerinput", None)
    if worker and [Path(place).resolve() for place in config.args] == [TESTS]:
        folders = sorted({str(TESTS / _room(path)) for path in TESTS.rglob("test_*.py")})
        first = len(folders) * int(worker["workerid"][2:]) // worker["workercount"]
        config.args[:] = folders[first:] + folders[:first]


def _room(path: Path) -> str:
    """The folder or file of `TESTS` that a test is in."""
    return path.relative_to(TESTS).parts[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The same order in every process, and nothing marked slow unless everything is asked for."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _room(item.path))
    if config.getoption("--all"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


def pytest_collection_finish() -> None:
    """Spare the collector what the imports left: it would walk a million objects at every round."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # nanobind calls what is frozen at the end a leak


@pytest.fixture(autouse=True, scope="session")
def compositions_are_made_once() -> Iterator[None]:
    with composing.once():
        yield


@pytest.fixture
def whole_report() -> None:
    """Asked for by tests that read the page or a picture."""


@pytest.fixture
def own_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """The claims of the paper are held against a run alone, and not against results/ as well."""
    from harness.report import build, ledger  # late: not every test reports

    alone = partial(ledger.rows, published=Path("nowhere"), bench=Path("nowhere"))
    monkeypatch.setattr(build, "ledger", SimpleNamespace(rows=alone))


@pytest.fixture
def quick_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that only say what they would be in place of page and pictures: half of a small run."""
    if "whole_report" not in request.fixturenames:
        from harness.report import field, heatmap, page, plots  # late: not every test draws

        request.getfixturevalue("own_claims")
        monkeypatch.setattr(page, "write", lambda study, path, *_: path.write_text("a page"))
        pictures = (plots, "curve"), (plots, "bytes_curve"), (heatmap, "heatmap"), (field, "field")
        for drawing in pictures:
            monkeypatch.setattr(*drawing, lambda rows, path: path.write_text("a picture"))
