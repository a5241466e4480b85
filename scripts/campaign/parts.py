"""Kills among processes that answer one run together: parts, and workers of Ray's.

Whoever dies, no answer is lost, and none is computed twice but those of the rows in flight.
"""

import time
from collections.abc import Callable
from pathlib import Path

import psutil

from scripts.campaign import kills, scene
from scripts.campaign.bench import Bench
from scripts.campaign.engine import Scripted
from scripts.campaign.outcome import RIGHT, WRONG, Outcome, Verdict, raw

COUNT = 24
SAMPLE = (0, 2)
PAUSE = 0.1  # seconds a call of the engine; two a row
PATIENCE = 240.0
IN_FLIGHT = 2  # rows of a worker that is killed, see `harness.run.rays`

prepare = kills.prepare


def run(number: int, bench: Bench) -> tuple[str, Verdict]:
    """Every third case is about workers, the others about parts."""
    return (workers if number % 3 == 2 else parts)(bench)


def parts(bench: Bench) -> tuple[str, Verdict]:
    """Kill one part of several at once, then let others take its rest, of which one is killed too
    now and then.
    """
    runs, before, said = bench.folder / "runs", [], []
    for _ in range(bench.random.randrange(1, 3)):
        count, rows = bench.random.randrange(2, 4), bench.random.randrange(0, 4)
        struck = bench.random.randrange(count)
        before += together(bench, runs, count, (struck, rows))
        said.append(f"part {struck}/{count} after {rows} rows")
    last = together(bench, runs, bench.random.randrange(1, 4))
    return f"killed {', then '.join(said)}", judged(bench, runs, [*before, *last], len(said))


def together(
    bench: Bench, runs: Path, count: int, killed: tuple[int, int] | None = None
) -> list[Outcome]:
    """All parts of a run at once; killed: which of them, after how many rows."""
    argv = scene.settings(bench.shared, runs)
    pids = [
        bench.start(*argv, f"shard={part}/{count}", engine=Scripted(), pause=PAUSE)
        for part in range(count)
    ]
    if killed is not None:
        strike(bench, pids[killed[0]], killed[1])
    return [bench.wait(pid, PATIENCE) for pid in pids]


def workers(bench: Bench) -> tuple[str, Verdict]:
    """Kill one of two workers, or the process that hands out the rows."""
    runs, rows = bench.folder / "runs", bench.random.randrange(1, 8)
    argv = [*scene.settings(bench.shared, runs), "workers=2"]
    whole = bench.random.random() < 0.3
    pid = bench.start(*argv, engine=Scripted(), pause=PAUSE)
    strike(bench, pid, rows, (lambda: pid) if whole else lambda: actor(bench, pid))
    asked = [bench.wait(pid, PATIENCE)]
    said = f"killed {'the run' if whole else 'a worker'} after {rows} rows"
    if not whole and asked[0].code:
        return said, raw(asked[0]) or Verdict(WRONG, f"the run failed: {asked[0].errors!r:.300}")
    asked.append(bench.call(*argv, engine=Scripted(), pause=PAUSE, patience=PATIENCE))
    return said, judged(bench, runs, asked, IN_FLIGHT * (2 if whole else 1))


def actor(bench: Bench, pid: int) -> int:
    """One of the workers of a run, by Ray's name for it."""
    found = psutil.Process(pid).children(recursive=True)
    named = [one.pid for one in found if "".join(one.cmdline()[:1]).startswith("ray::Actor")]
    return bench.random.choice(sorted(named))


def strike(bench: Bench, pid: int, rows: int, target: Callable[[], int] | None = None) -> None:
    """Kill when so many rows were answered by a process, or it has ended."""
    place = bench.place_of(pid)
    until = time.monotonic() + PATIENCE / 2
    while time.monotonic() < until and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if (place / "loaded").exists() and _calls(place / "asked.jsonl") >= 2 * rows:
            time.sleep(bench.random.uniform(0, PAUSE))
            kills.strike(pid if target is None else target(), 0)
            return
        time.sleep(0.01)


def _calls(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def judged(bench: Bench, runs: Path, asked: list[Outcome], again: int) -> Verdict:
    """Whether the run came to the undisturbed result, with so many rows computed again at most."""
    for one in asked:
        if bad := raw(one):
            return bad
    failed = [one for one in asked if one.code not in (0, -9)]
    if failed:
        return Verdict(WRONG, f"exit code {failed[0].code}: {failed[0].errors!r:.300}")
    (reference,) = scene.folders(bench.shared / "runs")
    found = scene.folders(runs)
    if len(found) != 1:
        return Verdict(WRONG, f"{len(found)} finished runs")
    twice = kills.computed_again(asked)
    if twice > again:
        return Verdict(WRONG, f"{twice} rows were computed again, {again} were in flight")
    return scene.same(found[0], reference) or Verdict(RIGHT)
