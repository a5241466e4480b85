"""What a verdict is, and why an experiment could not have shown anything, in sentences.

Knows the frames of `harness.stats`; must not know what is compared with what.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from harness.models import precision
from harness.report import tables
from harness.report.tables import percent, points
from harness.stats.plan import Plan

SUPPORTED, NOT_SUPPORTED, CANNOT_TELL = "supported", "not supported", "cannot tell"
#: What a verdict is called where it is read.
WORDS = {SUPPORTED: "kept", NOT_SUPPORTED: "lost", CANNOT_TELL: CANNOT_TELL}
LITTLE = 0.05  # a score with nothing to lose


class Ruling(NamedTuple):
    """A verdict, the sentence that gives its reason, and the same in a few words where it cannot
    tell.
    """

    verdict: str
    reason: str
    why: str = ""


class Blind(NamedTuple):
    """Why a cell shows nothing: in a sentence and in a few words."""

    reason: str
    why: str


def same(frame: pd.DataFrame, row: pd.Series, names: list[str]) -> pd.Series:
    """Rows that agree with `row` in these columns, nulls equal to nulls."""
    alike = pd.Series(True, index=frame.index)
    for name in names:
        alike &= frame[name].isna() if pd.isna(row[name]) else frame[name].eq(row[name])
    return alike.fillna(False).astype(bool)


def blind(row: pd.Series, group: pd.DataFrame, dtype: str) -> Iterator[Blind]:
    """Why this experiment could not have shown anything here.

    Args:
        row: the cell's row of `stats.compare`.
        group: the cells of its model, task and protocol.
        dtype: in which the answers were computed, where that is known.
    """
    references = tables.references(group).set_index("label")
    full, blank = (references.reindex([name]).iloc[0] for name in tables.REFERENCES.values())
    if pd.isna(full["cell_key"]):
        yield Blind(
            "The full cache was not run, so there is nothing to compare with.",
            "the full cache was not run",
        )
        return
    for name, cell in (
        (str(row["method"]), row),
        ("The full cache", full),
        ("The blank image", blank),
    ):
        if pd.notna(cell["cell_key"]) and tables.failed_rows(cell):
            yield failed(name, cell, dtype)
            return
    if pd.isna(row["accuracy"]) or pd.isna(full["accuracy"]):
        yield Blind(
            "The right answers of this split are secret, so there is no score to compare.",
            "the right answers of this split are secret",
        )
        return
    if row["vacuous"]:
        yield Blind(
            f"Vacuous: under protocol {row['protocol']} no scored token came from the compacted "
            "cache, so this cell repeats the full cache whatever the method does.",
            f"under protocol={row['protocol']} no scored token came from the evicted cache, so "
            "every method repeats the full cache",
        )
    if not row["complete"]:
        yield Blind(
            f"Only {row['n_rows']:,} of the {full['n_rows']:,} rows are there: give the same "
            "command again to complete the run.",
            f"only {row['n_rows']:,} of the {full['n_rows']:,} rows are there",
        )
    if full["accuracy"] < LITTLE:
        scores = f"the model scores {percent(full['accuracy'])} % with the full cache"
        yield Blind(
            f"With the full cache the model scores {percent(full['accuracy'])} %, which leaves "
            "next to nothing to lose.",
            f"{scores}, which leaves nothing to lose",
        )
    if full["accuracy_low"] <= blank["accuracy_high"]:
        yield Blind(
            f"With the full cache the model scores {percent(full['accuracy'])} %, with a blank "
            f"image {percent(blank['accuracy'])} %, and the intervals overlap: it does not "
            "demonstrably use the image, so its eviction cannot show."
            + (f" {few(row)} to exclude a loss of the margin." if few(row) else ""),
            f"the model is not shown to use the image ({percent(blank['accuracy'])} % with a blank "
            f"one, {percent(full['accuracy'])} % with the right one)",
        )


def failed(name: str, cell: pd.Series, dtype: str) -> Blind:
    """That rows of a cell have no score because numbers in them were not finite."""
    where = f" in {dtype}" if dtype else ""
    rows = f"{name} failed in {tables.failed_rows(cell):,} of {cell['n_rows']:,} rows"
    return Blind(
        f"{rows}, where logits or scores were not finite (NaN or infinite){where}, and has no "
        f"score: {precision.rerun(dtype)}.",
        rows.replace("The ", "the ", 1) if name.startswith("The ") else rows,
    )


def few(row: pd.Series) -> str:
    """That there are too few questions to show that the score is kept; "" where there are not."""
    asked, least = row["n_questions"], row["questions_least"]
    if pd.isna(least) or asked >= least:
        return ""
    plural = "questions are" if asked != 1 else "question is"
    return f"{asked:,} {plural} too few; {int(least):,} would do"


def insensitive(beside: pd.DataFrame, plan: Plan, dtype: str) -> Blind | None:
    """Why the control does not show that methods can be told apart here; None where it does.

    Args:
        beside: rows of `stats.compare` at one setting.
        plan: names the control and the margin that it has to lose.
        dtype: as in `blind`.
    """
    control = beside[beside["method"] == plan.control]
    sound = control[control["complete"].astype(bool) & ~control["vacuous"].astype(bool)]
    if sound.empty:
        return Blind(
            f"{plan.control} was not run to its end here, so it is unknown whether this setting "
            "loses anything.",
            f"{plan.control}, which would show that eviction can lose anything, was not run",
        )
    if tables.failed_rows(sound.iloc[0]):
        return failed(plan.control, sound.iloc[0], dtype)
    if sound.iloc[0]["upper"] < -plan.margin:
        return None
    loss, margin = points(sound.iloc[0]["difference"]), tables.margin(plan)
    return Blind(
        f"Not even {plan.control} is shown to lose more than {margin} here "
        f"({loss} points), so this setting cannot tell methods apart.",
        f"not even {plan.control} is shown to lose more than {margin} ({loss})",
    )
