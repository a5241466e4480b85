"""Markdown tables of cells. Knows how they look, not what is put into them."""

from collections.abc import Callable, Iterable

import pandas as pd

from harness.report import tables
from harness.report.tables import escape, percent

LONG = 10_000  # characters of a note that names cells


def table(header: list[str], body: Iterable[list[str]], words: int = 1) -> list[str]:
    """A table whose first `words` columns are text and the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(header) - words)
    return [f"| {' | '.join(row)} |" for row in (header, rule, *body)]


def pivot(
    cells: pd.DataFrame,
    text: Callable[[pd.Series], str],
    references: pd.DataFrame | None = None,
) -> list[str]:
    """Method x ratio; the references on top, in the first column of numbers."""
    columns, body = tables.grid(cells, text)
    lines = [[escape(label), *values] for label, *values in body]
    if references is not None:
        top = tables.references(references)
        blanks = [""] * max(0, len(columns) - 1)
        lines = [[cell["label"], text(cell), *blanks] for _, cell in top.iterrows()] + lines
    return table(["ratio evicted", *(columns or ["0"])], lines)


def scores(cells: pd.DataFrame) -> list[str]:
    """Scores with their intervals, method x ratio, references included."""
    found = pivot(cells, scored, cells)
    notes = [tables.VACUOUS_NOTE] if cells["vacuous"].any() else []
    failed = tables.failures(cells)
    notes += [f"{tables.FAILED_NOTE}: {escape(failed, LONG)}"] if failed else []
    return [*found, *(line for note in notes for line in ("", f"{note}."))]


def scored(cell: pd.Series) -> str:
    """The score of a cell with its interval, marked where it is no result."""
    return f"{percent(cell['accuracy'])}{mark(cell)} {brackets(cell)}"


def mark(cell: pd.Series) -> str:
    """The mark of a vacuous cell, and of one with failed rows."""
    marks = tables.marks(cell)
    return f" **{marks}**" if marks else ""


def brackets(cell: pd.Series) -> str:
    """The 95 % interval of a cell."""
    return escape(tables.interval(cell))
