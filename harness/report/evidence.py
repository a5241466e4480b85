"""What one setting shows row by row: maps of what was kept, and the answers that changed.

Chooses the settings and lays their rows out; must not know HTML.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from harness import stats
from harness.report import flips, maps, summary, tables
from harness.report.flips import Flip
from harness.report.maps import Picture, Shown
from harness.report.study import Study
from harness.report.verdict_tables import evicted


@dataclass(frozen=True)
class View:
    """One setting. name: such as "95 %". chosen: whether the page opens at it."""

    name: str
    chosen: bool
    maps: Sequence[Shown]
    flips: Sequence[Flip]


@dataclass(frozen=True)
class Evidence:
    """All settings of one group, with the questions, options and pictures of their rows."""

    views: Sequence[View]
    methods: Sequence[str]
    questions: Mapping[int, str]
    pictures: Mapping[int, Picture]


def worst(cells: pd.DataFrame, comparisons: pd.DataFrame, method: str) -> str:
    """The setting at which a method loses most; that of `summary.focus` where it loses nothing.

    Args:
        cells: of one model, task and protocol. comparisons: of the same.
        method: the label that the question is about.
    """
    strongest = summary.focus(cells)
    if comparisons.empty:
        return strongest
    rows = comparisons[comparisons["method"].eq(method) & comparisons["difference"].notna()]
    if rows.empty or rows["difference"].min() >= 0:
        return strongest
    return tables.setting(rows.loc[rows["difference"].idxmin()])


def rows_shown(study: Study) -> dict[str, list[int]]:
    """By task, the rows whose answers changed at the setting that the page opens at."""
    found: dict[str, list[int]] = {}
    for key, cells in tables.groups(study.cells):
        own = stats.of(study.samples, key)
        place = worst(cells, stats.of(study.comparisons, key), study.plan.method)
        labels = tables.labels_at(tables.compressed(cells), place)
        found.setdefault(key[1], []).extend(one.row for one in flips.flips(own, labels))
    return found


def evidence(study: Study, key: tuple[str, str, str], cells: pd.DataFrame) -> Evidence:
    """Everything that can be shown of the rows of one group, a view a setting."""
    compressed = tables.compressed(cells)
    samples, prompts, kept = (stats.of(f, key) for f in (study.samples, study.prompts, study.kept))
    opened = worst(cells, stats.of(study.comparisons, key), study.plan.method)
    order = compressed.sort_values(["ratio", "budget"], kind="stable", na_position="last")
    places = {tables.setting(cell): evicted(cell) for _, cell in order.iterrows()}
    views = []
    for place, name in places.items():
        labels = tables.labels_at(compressed, place)
        shown = tuple(maps.shown(prompts, kept, labels))
        views.append(View(name, place == opened, shown, tuple(flips.flips(samples, labels))))
    rows = {shown.row for view in views for shown in view.maps}
    rows |= {flip.row for view in views for flip in view.flips}
    known = samples.drop_duplicates("row").set_index("row")
    questions = {row: str(known.loc[row, "question"]) for row in rows if "question" in known}
    pictures = _pictures(prompts, rows, study.images)
    return Evidence(views, tuple(compressed["label"].unique()), questions, pictures)


def _pictures(prompts: pd.DataFrame, rows: set[int], images: Path | None) -> dict[int, Picture]:
    """The pictures of these rows, as far as there are any."""
    if prompts.empty:
        return {}
    named = dict(zip(prompts["row"], prompts["image"], strict=True))
    found = {row: maps.picture(named[row], images) for row in sorted(rows & named.keys())}
    return {row: picture for row, picture in found.items() if picture is not None}
