"""Published scores beside a run's own cells of the same model, task, method and setting.

The scores are in published.yaml. Knows cells and rows of text; must not run anything.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import isclose
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from harness import stats
from harness.report import tables
from harness.report.study import Study
from harness.report.tables import listed, percent, points
from harness.report.verdict_tables import Rows

FILE = Path(__file__).with_name("published.yaml")
FULL = "full"
COLUMNS = [*stats.GROUP, "cell_key", "method", "ratio", "budget", "source", "under", "published"]
COLUMNS += ["accuracy", "accuracy_low", "accuracy_high", "difference"]


class Score(NamedTuple):
    """One published score, a fraction. models, tasks: names that a run of it may have."""

    source: str
    where: str
    protocol: str
    note: str
    models: tuple[str, ...]
    tasks: tuple[str, ...]
    method: str
    ratio: float | None
    budget: int | None
    score: float


@lru_cache(maxsize=1)
def scores() -> tuple[Score, ...]:
    """All published scores, those of full caches included."""
    return tuple(
        one
        for paper in yaml.safe_load(FILE.read_text(encoding="utf-8"))
        for row in paper["scores"]
        for one in _row(paper, row)
    )


def _row(paper: dict[str, Any], row: dict[str, Any]) -> Iterator[Score]:
    about = (paper["source"], paper["from"], paper["protocol"], paper["note"])
    named = (tuple(row["models"]), tuple(row["tasks"]))
    if FULL in row:
        yield Score(*about, *named, FULL, None, None, row[FULL] / 100)
    ratios, budgets = paper.get("ratios"), paper.get("budgets")
    for theirs, ours in paper["methods"].items():
        for place, score in enumerate(row.get(theirs, ())):
            ratio = ratios[place] if ratios else None
            budget = budgets[place] if budgets else None
            yield Score(*about, *named, ours, ratio, budget, score / 100)


def beside(cells: pd.DataFrame, means: pd.DataFrame) -> pd.DataFrame:
    """Own cells for which there is a published score, a row each; columns `COLUMNS`.

    Args:
        cells: `stats.summarise`. means: `stats.means`, for scores of groups of tasks.

    Returns:
        under: the published score's protocol. difference: own score less the published one.
        Fractions all of them.
    """
    found: list[dict[str, object]] = []
    for frame in (cells, means):
        if len(frame):
            role = stats.roles(frame)
            for place, cell in frame[role.ne("blank")].iterrows():
                found += _of(cell, role[place] == "full")
    return pd.DataFrame(found, columns=COLUMNS)


def _of(cell: pd.Series, full: bool) -> Iterator[dict[str, object]]:
    for one in scores():
        if _is_of(one, cell, full):
            own = {name: cell[name] for name in COLUMNS if name in cell}
            gap = cell["accuracy"] - one.score
            said = {"source": one.source, "under": one.protocol, "published": one.score}
            yield {**own, **said, "difference": gap}


def _is_of(one: Score, cell: pd.Series, full: bool) -> bool:
    model = tables.short(cell["model"]).lower()
    if model not in one.models or cell["task"] not in one.tasks:
        return False
    if full or one.method == FULL:
        return full and one.method == FULL
    return bool(cell["method"] == one.method and _same_setting(one, cell))


def _same_setting(one: Score, cell: pd.Series) -> bool:
    if one.ratio is not None:
        return pd.notna(cell["ratio"]) and isclose(one.ratio, cell["ratio"], abs_tol=1e-6)
    return pd.notna(cell["budget"]) and one.budget == int(cell["budget"])


def of(study: Study) -> Iterator[Rows]:
    """The tables of a study; none where nothing is published of what it ran."""
    yield from rows(beside(study.cells, study.means))


def rows(frame: pd.DataFrame) -> Iterator[Rows]:
    """A table for every model, task and protocol of `beside`."""
    for (model, task, protocol), part in tables.groups(frame):
        body = [
            [
                "full cache" if role == "full" else str(row["method"]),
                "" if role == "full" else _evicted(row),
                str(row["source"]),
                percent(row["published"]),
                f"{percent(row['accuracy'])} {tables.interval(row)}",
                points(row["difference"]),
            ]
            for role, (_, row) in zip(_roles(part), part.iterrows(), strict=True)
        ]
        header = ["Method", "Evicted", "Published by", "Published %", "Here %", "Points"]
        title = f"{tables.short(model)} on {task} ({protocol}): published scores beside these"
        yield Rows(title, header, body, list(_notes(part, str(protocol))))


def _roles(part: pd.DataFrame) -> list[str]:
    return ["full" if method == FULL else "method" for method in part["method"]]


def _evicted(row: pd.Series) -> str:
    return f"{100 * row['ratio']:g} %" if pd.notna(row["ratio"]) else f"n={int(row['budget'])}"


def _notes(part: pd.DataFrame, protocol: str) -> Iterator[str]:
    named = dict.fromkeys(part["source"])
    for source in named:
        one = next(each for each in scores() if each.source == source)
        yield f"{source}: {one.where}, {one.note}."
    others = sorted({str(under) for under in part["under"]} - {protocol})
    if others:
        yield (
            f"Published under {listed(others)}, where the first answer token sees the full cache; "
            f"here under {protocol}, which should not be higher by more than its interval."
        )


def known() -> Iterator[Rows]:
    """All published scores: a table for every source, a line a model, task and method."""
    for source in dict.fromkeys(one.source for one in scores()):
        own = [one for one in scores() if one.source == source]
        whole = {(one.models, one.tasks): percent(one.score) for one in own if one.method == FULL}
        own = [one for one in own if one.method != FULL]
        places = list(dict.fromkeys((one.ratio, one.budget) for one in own))
        lines: dict[tuple[str, str, str, str], dict[tuple[float | None, int | None], str]] = {}
        for one in own:
            key = (one.models[0], one.tasks[0], one.method, whole.get((one.models, one.tasks), ""))
            lines.setdefault(key, {})[one.ratio, one.budget] = percent(one.score)
        header = ["Model", "Task", "Method", "full"]
        header += [f"{100 * r:g} %" if r is not None else f"n={b}" for r, b in places]
        body = [[*key, *(line.get(place, "") for place in places)] for key, line in lines.items()]
        first = own[0]
        notes = [f"{first.where}; protocol={first.protocol}; {first.note}."]
        title = f"{source}, in percent by the evicted share or the entries kept"
        yield Rows(title, header, body, notes)
