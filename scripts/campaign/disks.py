"""Full disks and places that cannot be written: one sentence that names the place, nothing lost.

A small tmpfs where this process may mount one; else a limit on the size of each file.
"""

import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

from scripts.campaign import kills, scene
from scripts.campaign.bench import Bench, Outcome
from scripts.campaign.engine import Scripted
from scripts.campaign.outcome import RIGHT, WRONG, Verdict, raw, refused

DISKS = 30
ROOMY = "64m"
Case = Callable[[Bench], tuple[str, Verdict]]


prepare = kills.prepare


def run(number: int, bench: Bench) -> tuple[str, Verdict]:
    """A disk that fills up, or a place that cannot be written."""
    if number >= DISKS:
        return PLACES[number - DISKS](bench)
    disk = bench.folder / "disk"
    disk.mkdir()
    if _mount(disk, "4k"):
        try:
            return _full(number, bench, disk)
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=False)
    return _limited(bench)


def _mount(disk: Path, size: str, *more: str) -> bool:
    options = ",".join([*more, f"size={size}"])
    command = ["mount", "-t", "tmpfs", "-o", options, "campaign", str(disk)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _full(number: int, bench: Bench, disk: Path) -> tuple[str, Verdict]:
    """A third of the disks are the run's, a third that of temporary files, a third the hub's."""
    taken = int((bench.shared / "bytes").read_text())
    what = ("run.dir", "run.dir", "TMPDIR", "HF_HOME")[number % 4]
    size = bench.random.randrange(0, int((1.3 if what == "run.dir" else 0.05) * taken), 4096)
    _mount(disk, str(max(size, 4096)), "remount")
    runs = disk / "runs" if what == "run.dir" else bench.folder / "runs"
    named = {} if what == "run.dir" else {what: str(disk)}
    argv = scene.settings(bench.shared, runs)
    first = bench.call(*argv, engine=Scripted(), environment=named)
    said = f"{what} on a disk of {max(size, 4096) // 1024} KiB"
    verdict = _ended(first, str(disk))
    if verdict.label == WRONG or raw(first):
        return said, verdict
    _mount(disk, ROOMY, "remount")
    last = bench.call(*argv, engine=Scripted(), environment=named)
    done = kills.finished(bench, runs, last, [first])
    return said, verdict if done.label == RIGHT else done


def _limited(bench: Bench) -> tuple[str, Verdict]:
    """No file may be larger than a limit: what a quota looks like."""
    import signal

    runs = bench.folder / "runs"
    size = bench.random.randrange(0, 60_000, 1024)
    argv = scene.settings(bench.shared, runs)
    first = bench.call(
        *argv,
        engine=Scripted(),
        limits={resource.RLIMIT_FSIZE: size},
        prepare=[lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN)],
    )
    said = f"no file larger than {size // 1024} KiB"
    verdict = _ended(first, "")
    if verdict.label == WRONG or raw(first):
        return said, verdict
    last = bench.call(*argv, engine=Scripted())
    done = kills.finished(bench, runs, last, [first])
    return said, verdict if done.label == RIGHT else done


def _ended(outcome: Outcome, place: str) -> Verdict:
    """Right where the room sufficed, else a sentence that names the place."""
    if outcome.code == 0:
        return raw(outcome) or Verdict(RIGHT, "there was room enough")
    return refused(outcome, *([place] if place else []), loaded=True)


def _unwritable(
    said: str, make: Callable[[Path], tuple[list[str], dict[str, str], str]], must: bool = False
) -> Case:
    """Settings and surroundings that name a place where nothing can be written."""

    def case(bench: Bench) -> tuple[str, Verdict]:
        more, environment, word = make(bench.folder)
        runs = bench.folder / "runs"
        keys = {text.partition("=")[0] for text in more}
        argv = [t for t in scene.settings(bench.shared, runs) if t.partition("=")[0] not in keys]
        outcome = bench.call(*argv, *more, engine=Scripted(), environment=environment)
        if outcome.code:
            return said, refused(outcome, word)
        if must:
            return said, Verdict(WRONG, "accepted, exit 0")
        (reference,) = scene.folders(bench.shared / "runs")
        found = [f for f in scene.folders(bench.folder) if "shared" not in f.parts]
        bad = raw(outcome) or (scene.same(found[0], reference) if found else None)
        return said, bad or Verdict(RIGHT)

    return case


def _file(folder: Path) -> Path:
    path = folder / "file"
    path.write_text("")
    return path


def _store_folder(folder: Path) -> tuple[list[str], dict[str, str], str]:
    (folder / "runs").mkdir()
    (folder / "runs" / "answers").write_text("")
    return [], {}, "answers"


PLACES: tuple[Case, ...] = (
    _unwritable("HOME is a file", lambda f: ([], {"HOME": str(_file(f))}, "HOME|home|file")),
    _unwritable("HOME is nowhere", lambda f: ([], {"HOME": "/proc/nope"}, "HOME|home|/proc/nope")),
    _unwritable("HF_HOME is a file", lambda f: ([], {"HF_HOME": str(_file(f))}, "HF_HOME|file")),
    _unwritable("HF_HOME is nowhere", lambda f: ([], {"HF_HOME": "/proc/nope"}, "/proc/nope")),
    _unwritable("TMPDIR is a file", lambda f: ([], {"TMPDIR": str(_file(f))}, "TMPDIR|file")),
    _unwritable("TMPDIR is nowhere", lambda f: ([], {"TMPDIR": "/proc/nope"}, "TMPDIR|/proc/nope")),
    _unwritable("HOME is unset", lambda f: ([], {"HOME": ""}, "HOME")),
    _unwritable("run.dir is a file", lambda f: ([f"run.dir={_file(f)}"], {}, "file"), True),
    _unwritable("run.dir below a file", lambda f: ([f"run.dir={_file(f)}/x"], {}, "file"), True),
    _unwritable("run.dir in /proc", lambda f: (["run.dir=/proc/x"], {}, "/proc/x"), True),
    _unwritable("a long run.dir", lambda f: ([f"run.dir={f}/{'x' * 300}"], {}, "x" * 15), True),
    _unwritable("run.dir too deep", lambda f: ([f"run.dir={f}/{'/y' * 3000}"], {}, "y/y"), True),
    _unwritable("run.name too long", lambda f: (["run.name=" + "z" * 300], {}, "z" * 30), True),
    _unwritable("run.name of 250 letters", lambda f: (["run.name=" + "z" * 250], {}, "z" * 30)),
    _unwritable("model.name too long", lambda f: (["model.name=" + "m" * 400], {}, "m" * 30)),
    _unwritable("MPLCONFIGDIR is nowhere", lambda f: ([], {"MPLCONFIGDIR": "/proc/nope"}, "MPL")),
    _unwritable("no room beside: answers is a file", _store_folder),
    _unwritable("HF_DATASETS_CACHE is a file",
                lambda f: ([], {"HF_DATASETS_CACHE": str(_file(f))}, "HF_DATASETS_CACHE|file")),
)  # fmt: skip
COUNT = DISKS + len(PLACES)
SAMPLE = (0,)
