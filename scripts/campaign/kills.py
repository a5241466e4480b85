"""Kills at random moments: the same command then ends as an undisturbed run does.

No answer is lost, and none is computed twice but those of the row in flight.
"""

import os
import signal
import time
from pathlib import Path

from scripts.campaign import scene
from scripts.campaign.bench import Bench, seeded
from scripts.campaign.engine import Scripted
from scripts.campaign.outcome import RIGHT, WRONG, Outcome, Verdict, raw

COUNT = 40
SAMPLE = (0,)
PAUSE = 0.02  # seconds a call of the engine; two a row


def prepare(shared: Path) -> None:
    """The undisturbed run that all others must come to, and what it takes."""
    scene.prepare(shared)
    bench = Bench(shared / "made", shared, seeded("kills", -1))
    made = bench.call(*scene.settings(shared, shared / "runs"), engine=Scripted(), pause=PAUSE)
    if made.code:
        raise RuntimeError(f"the undisturbed run failed: {made.err}")
    (shared / "seconds").write_text(str(made.seconds))
    taken = sum(path.stat().st_size for path in (shared / "runs").rglob("*") if path.is_file())
    (shared / "bytes").write_text(str(taken))


def run(number: int, bench: Bench) -> tuple[str, Verdict]:
    """Kill one to three times, then let it end."""
    runs = bench.folder / "runs"
    usual = float((bench.shared / "seconds").read_text())
    argv = scene.settings(bench.shared, runs)
    asked, moments = [], []
    for _ in range(bench.random.randrange(1, 4)):
        moments.append(bench.random.uniform(0.0, 1.05 * usual))
        broken = bench.call(
            *argv, engine=Scripted(), pause=PAUSE, during=lambda pid: strike(pid, moments[-1])
        )
        if "Traceback" in broken.err:
            return _said(moments), raw(broken) or Verdict(WRONG)
        asked.append(broken)
    last = bench.call(*argv, engine=Scripted(), pause=PAUSE)
    return _said(moments), finished(bench, runs, last, asked)


def _said(moments: list[float]) -> str:
    return "killed after " + ", ".join(f"{moment:.2f} s" for moment in moments)


def strike(pid: int, after: float, number: int = signal.SIGKILL) -> float:
    """Send a signal to a process after a while; returns the time by the clock."""
    time.sleep(after)
    os.kill(pid, number)
    return time.time()


def finished(bench: Bench, runs: Path, last: Outcome, before: list[Outcome]) -> Verdict:
    """Whether the last run came to the undisturbed result, and what was computed twice."""
    bad = raw(last)
    if bad is not None:
        return bad
    if last.code:
        return Verdict(WRONG, f"the same command then failed: {last.errors!r:.300}")
    (reference,) = scene.folders(bench.shared / "runs")
    found = scene.folders(runs)
    if len(found) != 1:
        return Verdict(WRONG, f"{len(found)} run folders")
    different = scene.same(found[0], reference)
    return different or twice([*before, last]) or Verdict(RIGHT)


def twice(runs: list[Outcome]) -> Verdict | None:
    """What more than the rows in flight was computed again; None where nothing was.

    The last row of a broken run may be asked again: its call and that of its grey image.
    """
    again = computed_again(runs)
    if again > len(runs) - 1:
        return Verdict(WRONG, f"{again} rows were computed again after {len(runs) - 1} breaks")
    return None


def computed_again(runs: list[Outcome]) -> int:
    """How many rows a process computed although another had, or itself before."""
    seen: set[tuple[str, str]] = set()
    again = 0
    for outcome in runs:
        rows: set[str] = set()
        for call in outcome.asked:
            mine = {(call["text"], cell) for cell in call["cells"]}
            rows |= {text for text, _ in mine & seen}
            seen |= mine
        again += len(rows)
    return again
