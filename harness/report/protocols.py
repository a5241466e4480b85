"""Scores of the same cells under several protocols side by side, as rows of text.

Knows the cells of a study and how numbers look; must not know Markdown or HTML.
"""

from collections.abc import Iterator

import pandas as pd

from harness.report import tables
from harness.report.tables import percent
from harness.report.verdict_tables import Rows

ARROW = "\N{RIGHTWARDS ARROW}"
READ = {
    "replay": "the question is read before the eviction (replay)",
    "context": "the question is read after it (context)",
}


def when(protocol: str) -> str:
    """A protocol without the prefill that stands behind it."""
    return protocol.partition("+")[0]


def side_by_side(cells: pd.DataFrame) -> Iterator[Rows]:
    """A table for every model, task and prefill that was run under more than one protocol: a line a
    method, a column a setting.
    """
    several = cells.groupby(["model", "task", "prefill"], sort=False)
    for (model, task, read), part in several:
        names = list(part["protocol"].unique())
        if len(names) > 1:
            name = str(task) if read == "dense" else f"{task} ({read} prefill)"
            yield _side(str(model), name, part, names)


def _side(model: str, task: str, cells: pd.DataFrame, names: list[str]) -> Rows:
    groups = [cells[cells["protocol"] == name] for name in names]
    header: list[str] = []
    lines: dict[str, dict[str, list[str]]] = {}
    for number, group in enumerate(groups):
        columns, body = tables.grid(group, lambda cell: percent(cell["accuracy"]))
        header += [column for column in columns if column not in header]
        for label, *scores in body:
            line = lines.setdefault(label, {})
            for column, score in zip(columns, scores, strict=True):
                line.setdefault(column, [""] * len(groups))[number] = score
    body = [
        [label, *(f" {ARROW} ".join(filled(line.get(column, []))) for column in header)]
        for label, line in lines.items()
    ]
    said = f" {ARROW} ".join(READ[when(name)] for name in names)
    return Rows(
        f"{tables.short(model)} on {task}: what it is worth to read the question first",
        ["Method", *map(_evicted, header)],
        body,
        [f"Scores in % by the evicted share: {said}."],
    )


def _evicted(setting: str) -> str:
    """A setting as verdicts name it: "70 %", or "n=16" as it is."""
    return setting if setting.startswith("n=") else f"{100 * float(setting):g} %"


def filled(scores: list[str]) -> list[str]:
    """Scores with a dash where a cell was not run under that protocol."""
    return [score or "-" for score in scores]
