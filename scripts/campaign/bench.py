"""Runs the program in forked children of a process that has its libraries loaded, and waits.

A fresh interpreter needs ten seconds to import them; a fork starts in a hundredth of one.
"""

import gc
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from scripts.campaign import child
from scripts.campaign.outcome import Outcome

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 150.0  # seconds; the longest honest run takes a tenth of it on a busy machine
LIBRARIES = (
    "torch", "transformers", "transformers.models.llava.modeling_llava",
    "transformers.models.llava.processing_llava", "transformers.models.clip.modeling_clip",
    "transformers.models.clip.image_processing_clip", "transformers.models.llama.modeling_llama",
    "lmms_eval.evaluator", "lmms_eval.tasks.mmbench.en_utils", "openpyxl",
    "statsmodels.stats.contingency_tables", "plotly.graph_objects", "jinja2", "scipy.stats",
    "matplotlib.pyplot",
    "harness.run.sweep", "harness.run.outcome", "harness.run.collect", "harness.scoring.bridge",
    "harness.scoring.benchmark", "harness.scoring.samples", "harness.scoring.adapter",
    "harness.scoring.generators", "harness.models.tokenizer", "harness.report.files",
    "harness.report.build", "harness.run.traces", "harness.tracking", "harness.run.report",
)  # fmt: skip


def warm() -> None:
    """Import everything that a run imports, so that children share it."""
    for name in LIBRARIES:
        importlib.import_module(name)
    from harness.scoring import catalog

    catalog.find("mmbench_en_dev_static")
    gc.collect()
    gc.freeze()  # a child's collector leaves alone what was there before


class Bench:
    """Where one case works: a folder of its own, its random numbers, the runs of the program."""

    def __init__(self, folder: Path, shared: Path, rng: random.Random) -> None:
        """Take the case's folder, that of what its kind made beforehand, and its numbers."""
        self.folder, self.shared, self.random = folder, shared, rng
        self._runs: dict[int, tuple[Path, tuple[str, ...], float]] = {}
        self._count = 0

    def call(
        self,
        *argv: str,
        during: Callable[[int], object] | None = None,
        patience: float = PATIENCE,
        **how: Any,
    ) -> Outcome:
        """Run the program to its end in a fork.

        Args:
            argv: its arguments.
            during: called with the process id right after the start.
            patience: seconds after which it counts as hung, and is killed.
            how: as for `start`.
        """
        pid = self.start(*argv, **how)
        if during is not None:
            during(pid)
        return self.wait(pid, patience)

    def start(
        self,
        *argv: str,
        engine: Any = None,
        pause: float = 0.0,
        environment: Mapping[str, str | None] | None = None,
        limits: Mapping[int, int] | None = None,
        prepare: Sequence[Callable[[], object]] = (),
        drawn: bool = False,
    ) -> int:
        """Begin a run; returns the process id, for `wait`.

        Args:
            argv: its arguments.
            engine: answers in the model's place; None loads the real one.
            pause: seconds that each of the engine's calls takes.
            environment: variables to set, or with None to remove.
            limits: resource limits by their number.
            prepare: run in the child before the program.
            drawn: whether pictures and the page are drawn.
        """
        place = self._place()
        steps = [*prepare] if drawn else [child.undrawn, *prepare]
        steps.insert(0, lambda: child.install(engine, place, pause))
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            child.become(argv, place, environment or {}, steps, limits or {})
        with suppress(OSError):  # the child did it first
            os.setpgid(pid, pid)
        self._runs[pid] = place, argv, time.monotonic()
        return pid

    def wait(self, pid: int, patience: float = PATIENCE) -> Outcome:
        """Wait for a run that `start` began; one that does not end is killed with its children."""
        began, hung, status = self._runs[pid][2], False, None
        while status is None:
            done, found = os.waitpid(pid, os.WNOHANG)
            if done:
                status = found
            elif time.monotonic() - began > patience and not hung:
                hung = True
                os.killpg(pid, signal.SIGKILL)
            else:
                time.sleep(0.005)
        with suppress(OSError):
            os.killpg(pid, signal.SIGKILL)  # what it left running
        return self._read(pid, os.waitstatus_to_exitcode(status), hung)

    def fresh(
        self, *argv: str, pause: float = 0.0, during: Callable[[int], object] | None = None
    ) -> Outcome:
        """The same in an interpreter of its own, which imports everything anew."""
        place = self._place()
        for name in ("tmp", "cwd"):
            (place / name).mkdir()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(place / "tmp")}
        command = [sys.executable, "-m", "scripts.campaign.driver", str(place), str(pause), *argv]
        with (place / "out").open("w") as out, (place / "err").open("w") as err:
            process = subprocess.Popen(
                command, cwd=place / "cwd", env=environment, stdout=out, stderr=err,
                stdin=subprocess.DEVNULL, process_group=0, preexec_fn=child.usual_signals,
            )  # fmt: skip
            self._runs[process.pid] = place, argv, time.monotonic()
            if during is not None:
                during(process.pid)
            return self.wait(process.pid)

    def place_of(self, pid: int) -> Path:
        """The folder of a run that `start` began."""
        return self._runs[pid][0]

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """A folder that the cases of a kind share, made by the first that needs it."""
        target, part = self.shared / name, self.folder / f"made-{name}"
        if not target.exists():
            make(part)
            with suppress(OSError):  # another was first
                part.rename(target)
        return target

    def _place(self) -> Path:
        place = self.folder / f"call{self._count}"
        place.mkdir(parents=True)
        self._count += 1
        return place

    def _read(self, pid: int, code: int, hung: bool) -> Outcome:
        place, argv, began = self._runs[pid]
        asked, left = place / "asked.jsonl", place / "tmp"
        lines = asked.read_text().splitlines() if asked.exists() else []
        return Outcome(
            argv=argv,
            code=code,
            out=_text(place / "out"),
            err=_text(place / "err"),
            seconds=time.monotonic() - began,
            hung=hung,
            loaded=(place / "loaded").exists(),
            begun=_written(place / "begun"),
            asked=tuple(json.loads(line) for line in lines if line.endswith("}")),
            left=tuple(sorted(left.iterdir())) if left.exists() else (),
        )


def seeded(kind: str, number: int) -> random.Random:
    """The random numbers of a case, the same at every run of the campaign."""
    return random.Random(f"{kind} {number}")


def forked(work: Callable[[], object]) -> None:
    """Do something in a fork, so that the threads of libraries stay out of this process."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit(f"{work} failed")


def emptied(folder: Path) -> Path:
    """The folder, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _written(path: Path) -> float | None:
    """When a file was written, by the clock; None where it is not there."""
    return path.stat().st_mtime if path.exists() else None


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace") if path.exists() else ""
