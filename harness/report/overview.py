"""Several tasks or protocols at a glance: a row each, and one for the mean of every group.

Turns cells into Markdown; knows no samples, no files and draws nothing.
"""

from collections.abc import Iterator, Mapping

import pandas as pd

from harness.report import markdown, tables
from harness.report.tables import escape, percent

MEAN = (
    "Every task of a group counts alike in its mean, and the mean's interval takes the tasks as "
    "independent."
)


def section(
    cells: pd.DataFrame,
    means: pd.DataFrame,
    place: str,
    pictures: Mapping[tuple[str, str, str], str],
) -> Iterator[str]:
    """Tasks x methods at the setting `place`, and the means of groups at every ratio.

    Args:
        cells: `stats.summarise(samples)`, several tasks or protocols.
        means: `stats.means(cells)`.
        place: a setting as `tables.setting` writes it.
        pictures: file names of the means' curves by model, group and protocol.
    """
    yield from ("## All tasks", "", f"Scores in percent, methods at {place}.", "")
    yield from (*_tasks(cells, means, place), "")
    if means.empty:
        return
    yield from (MEAN, "")
    for key, rows in tables.groups(means):
        model, group, protocol = map(escape, key)
        size = f"{rows['n_tasks'].max()} tasks, {rows['n_rows'].max():,} rows"
        title = f"### Mean of {group}: {model}, protocol {protocol} ({size})"
        yield from (title, "", *markdown.scores(rows), "")
        yield from (f"![mean score against compression]({pictures[key]})", "")


def _tasks(cells: pd.DataFrame, means: pd.DataFrame, place: str) -> list[str]:
    lines = [(name, rows, _line(rows, place)) for name, rows in _with_means(cells, means)]
    order = [*tables.REFERENCES.values(), *tables.compressed(cells)["label"].unique()]
    labels = [label for label in order if any(label in line for _, _, line in lines)]
    told = ["protocol", "metric"] if cells["protocol"].nunique() > 1 else ["metric"]
    body = [
        [name, *(escape(rows[column].iloc[0]) for column in told), f"{rows['n_rows'].max():,}"]
        + [line.get(label, "") for label in labels]
        for name, rows, line in lines
    ]
    header = ["task", *told, "rows", *map(escape, labels)]
    return markdown.table(header, body, words=1 + len(told))


def _with_means(cells: pd.DataFrame, means: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Every task and, behind the last task of a group, the group's mean."""
    parts = list(tables.groups(cells))
    owners = [(key[0], rows["group"].fillna("").iloc[0], key[2]) for key, rows in parts]
    averages = dict(tables.groups(means))
    for place, (key, rows) in enumerate(parts):
        yield escape(key[1]), rows
        owner = owners[place]
        if owner in averages and owner not in owners[place + 1 :]:
            yield f"**mean of {escape(owner[1])}**", averages[owner]


def _line(cells: pd.DataFrame, place: str) -> dict[str, str]:
    """Label to score: the references, and the methods at one setting."""
    rows = tables.compressed(cells)
    there = rows[[tables.setting(cell) == place for _, cell in rows.iterrows()]]
    shown = pd.concat([tables.references(cells), there])
    return {c["label"]: percent(c["accuracy"]) + markdown.mark(c) for _, c in shown.iterrows()}
