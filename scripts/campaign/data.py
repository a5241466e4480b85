"""Faulty and odd data: rows, columns, images and files of MMBench-like tables, and JSON lines.

A table with a faulty row is asked twice: as it is, which must be refused, and with
`invalid=skip`, which must leave out the question and say so.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from scripts.campaign import data_faults, data_files, lines, scene, tables
from scripts.campaign.bench import Bench
from scripts.campaign.engine import Scripted
from scripts.campaign.outcome import RIGHT, WRONG, Outcome, Verdict, raw, refused

Case = Callable[[Bench], tuple[str, Verdict]]


def prepare(shared: Path) -> None:
    """Weights for the scripted engine."""
    scene.prepare(shared)


def run(number: int, bench: Bench) -> tuple[str, Verdict]:
    """Run one table, file or set of lines."""
    return CASES[number](bench)


def ask(bench: Bench, data: Path, *more: str) -> Outcome:
    """The small run on other data."""
    usual = scene.settings(bench.shared, bench.folder / "runs")
    kept = [text for text in usual if "dataset_path" not in text]
    path = f"tasks.{scene.TASK}.overrides.dataset_path='{data}'"
    return bench.call(*kept, path, *more, engine=Scripted())


def right(bench: Bench, outcome: Outcome, key: Mapping[int, str]) -> Verdict:
    """Whether the run ended well and scored every row of the key."""
    bad = raw(outcome)
    if bad is not None:
        return bad
    if outcome.code:
        return Verdict(WRONG, f"refused: {outcome.errors!r:.300}")
    found = scene.folders(bench.folder / "runs")
    if len(found) != 1:
        return Verdict(WRONG, f"{len(found)} run folders")
    return scene.checked(found[0], key, scene.CELLS) or Verdict(RIGHT)


def either(bench: Bench, outcome: Outcome, key: Mapping[int, str]) -> Verdict:
    """A refusal before the model, or the right scores."""
    if outcome.code and not raw(outcome):
        return refused(outcome)
    return right(bench, outcome, key)


def _row(fault: data_faults.Fault, skip: bool) -> Case:
    def case(bench: Bench) -> tuple[str, Verdict]:
        table = fault.table()
        data = tables.write(bench.folder / "data", table, fault.types)
        said = f"{fault.said}{' with invalid=skip' if skip else ''}"
        if not skip:
            outcome = ask(bench, data)
            if fault.want == "refuse":
                return said, refused(outcome, *fault.words)
            judge = right if fault.want == "right" else either
            return said, judge(bench, outcome, fault.key())
        outcome = ask(bench, data, f"tasks.{scene.TASK}.invalid=skip")
        kept = {i: a for i, a in fault.key().items() if i % tables.ROTATION not in fault.questions}
        verdict = right(bench, outcome, kept)
        if verdict.label == RIGHT:
            verdict = _told(bench, len(fault.questions)) or verdict
        return said, verdict

    return case


def _told(bench: Bench, count: int) -> Verdict | None:
    """Whether summary and manifest count what was left out."""
    (folder,) = scene.folders(bench.folder / "runs")
    for name in ("summary.md", "manifest.json"):
        text = (folder / name).read_text().lower()
        if not any(word in text for word in ("skip", "left out", "invalid")):
            return Verdict(WRONG, f"{name} does not tell that {count} questions were left out")
    return None


def _file(one: data_files.Files) -> Case:
    def case(bench: Bench) -> tuple[str, Verdict]:
        data = one.make(bench.folder / "data")
        outcome = ask(bench, data, *one.more)
        if one.want == "refuse":
            return one.said, refused(outcome, *one.words)
        judge = right if one.want == "right" else either
        return one.said, judge(bench, outcome, one.key)

    return case


CASES: tuple[Case, ...] = (
    *(_row(fault, False) for fault in data_faults.FAULTS),
    *(_row(fault, True) for fault in data_faults.FAULTS if fault.questions),
    *(_file(one) for one in data_files.CASES),
    *lines.CASES,
)
COUNT = len(CASES)
SAMPLE = (0, len(data_faults.FAULTS) + 3)
