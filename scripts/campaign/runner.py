"""Runs cases of the kinds, several at a time, and keeps their verdicts.

Knows the kinds by name only; must not know how a case is made or judged.
"""

import json
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

from scripts.campaign.bench import Bench, emptied, forked, seeded
from scripts.campaign.outcome import BAD, LABELS, WRONG, Verdict

KINDS = (
    "overrides", "data", "answers", "folders", "kills", "signals", "disks", "flips", "reports",
    "pairs", "parts",
)  # fmt: skip


@dataclass(frozen=True)
class Tried:
    """A case that was run: what was done, the verdict, the seconds it took."""

    kind: str
    case: int
    said: str
    label: str
    why: str
    seconds: float


def kind(name: str) -> ModuleType:
    """The module of a kind: COUNT, SAMPLE, prepare(shared) and run(number, bench)."""
    return import_module(f"scripts.campaign.{name}")


def cases(names: Sequence[str], number: int | None, sample: bool) -> list[tuple[str, int]]:
    """What to run: one case, the sample of each kind, or all."""
    found = []
    for name in names:
        module = kind(name)
        chosen = module.SAMPLE if sample else range(module.COUNT)
        found += [(name, n) for n in ([number] if number is not None else chosen)]
    return found


def run(chosen: Sequence[tuple[str, int]], scratch: Path, jobs: int, keep: bool) -> Iterator[Tried]:
    """Run the cases in `jobs` processes, each verdict as soon as it is there."""
    for prepare in dict.fromkeys(kind(name).prepare for name, _ in chosen):
        forked(partial(prepare, emptied(_shared(scratch, prepare))))
    work = [(name, number, scratch, keep) for name, number in chosen]
    if jobs == 1:
        yield from map(_one, work)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(_one, work)


def _shared(scratch: Path, prepare: Callable[[Path], None]) -> Path:
    """Kinds that prepare alike share what was made."""
    return scratch / "shared" / prepare.__module__.rpartition(".")[2]


def _one(given: tuple[str, int, Path, bool]) -> Tried:
    name, number, scratch, keep = given
    folder = emptied(scratch / name / f"case{number}")
    shared = _shared(scratch, kind(name).prepare)
    bench = Bench(folder, shared, seeded(name, number))
    began = time.monotonic()
    try:
        said, verdict = kind(name).run(number, bench)
    except Exception as error:  # the case could not be judged: that must not pass as right
        said, verdict = "", Verdict(WRONG, f"not judged: {type(error).__name__}: {error}"[:400])
    if not keep and verdict.label not in BAD:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = round(time.monotonic() - began, 2)
    return Tried(name, number, said, verdict.label, verdict.why, seconds)


def table(found: Sequence[Tried]) -> str:
    """A line a kind, a column a label."""
    rows = [("kind", "cases", *LABELS, "seconds")]
    for name in dict.fromkeys(one.kind for one in found):
        mine = [one for one in found if one.kind == name]
        counts = [sum(one.label == label for one in mine) for label in LABELS]
        seconds = round(sum(one.seconds for one in mine))
        rows.append((name, *map(str, (len(mine), *counts, seconds))))
    total = [sum(one.label == label for one in found) for label in LABELS]
    seconds = round(sum(one.seconds for one in found))
    rows.append(("all", *map(str, (len(found), *total, seconds))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(lines)


def rerun(one: Tried) -> str:
    """The command that runs a case alone and keeps its folder."""
    return f'make campaign ARGS="--kind {one.kind} --case {one.case} --keep"'


def write(found: Sequence[Tried], folder: Path) -> Path:
    """All cases as JSON lines, in the order of kinds and numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cases.jsonl"
    order = sorted(found, key=lambda one: (KINDS.index(one.kind), one.case))
    lines = [json.dumps(asdict(one), ensure_ascii=False) for one in order]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "table.txt").write_text(table(order) + "\n", encoding="utf-8")
    return path


def tell(one: Tried) -> None:
    """A line for each case that is neither right nor one sentence."""
    if one.label in BAD:
        print(f"{one.label:<9} {one.kind} {one.case}: {one.said} -> {one.why}", flush=True)
        print(f"          {rerun(one)}", flush=True)
        sys.stdout.flush()
