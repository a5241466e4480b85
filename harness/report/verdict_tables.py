"""The tables of verdicts and contrasts as rows of text, for answer.md and for the page alike.

Knows the frames of a study and how numbers look; must not know Markdown or HTML.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from harness import stats
from harness.report import tables, words
from harness.report.headline import settings
from harness.report.rulings import CANNOT_TELL, WORDS, same
from harness.report.study import Study
from harness.report.verdicts import READ
from harness.report.words import difference, percent, points, probability, span


@dataclass(frozen=True)
class Rows:
    """A table: where a line stands, its figures, and its verdict in the last column if there are
    any. notes: what the figures and the verdicts mean, and why there is none.
    """

    title: str
    header: list[str]
    body: list[list[str]]
    notes: list[str]


def kept(study: Study, rows: pd.DataFrame) -> Rows:
    """Whether the method asked about keeps the score: a line a setting of these verdicts."""
    plan, control = study.plan, _title(study, study.plan.control)
    body = [
        [
            *_where(study, row),
            percent(row["full_accuracy"]),
            percent(row["accuracy"]),
            difference(row),
            _control(study, row),
            WORDS.get(row["verdict"], row["verdict"]),
        ]
        for _, row in rows.iterrows()
    ]
    header = ["Evicted", "Full cache %", "Score %", "Points from the full cache, 95 %"]
    header += [f"{control}, points", "Score kept?"]
    margin = tables.margin(plan)
    notes = [
        f"Kept: a loss of {margin} or more is excluded (one-sided level {plan.alpha:g}, Holm's "
        f"correction over the settings of a task and protocol), and {control} loses more than "
        f"that. Lost: the whole interval is below {words.MINUS}{100 * plan.margin:g}."
    ]
    return Rows(
        f"Does {_title(study, plan.method)} keep the score?",
        [*_places(study), *header],
        body,
        [*notes, *_unknown(study, rows, "verdict"), *_read_otherwise(study, rows)],
    )


def effects(study: Study, rows: pd.DataFrame) -> Rows:
    """What the first of each pair does beside the second: a line a setting."""
    body = [
        [
            *_where(study, row),
            f"{row['label']} against {row['against']}",
            f"{points(row['difference'])} {span(points(row['low']), points(row['high']))}".rstrip(),
            probability(row["p_holm"]),
            row["effect"],
        ]
        for _, row in rows.iterrows()
    ]
    called = tables.listed(list(dict.fromkeys(rows["called"])))
    header = ["Evicted", "Compared", "Points, 95 %", "p (Holm)", "Effect"]
    notes = [
        f"No difference: within {tables.margin(study.plan)} either way. Helps, costs: above "
        f"or below 0 (two-sided, level {study.plan.alpha:g}, Holm's correction over the lines of a "
        "task and protocol)."
    ]
    return Rows(
        f"What {called} does",
        [*_places(study), *header],
        body,
        [*notes, *_unknown(study, rows, "effect"), *_inert(study, rows)],
    )


def _title(study: Study, label: str) -> str:
    return study.titles.get(label, label)


def _places(study: Study) -> list[str]:
    return ["Where"] if tables.differing(study.cells) else []


def _where(study: Study, row: pd.Series) -> list[str]:
    differ = tables.differing(study.cells)
    place = [", ".join(tables.short(row[name]) for name in differ)] if differ else []
    return [*place, evicted(row)]


def evicted(row: pd.Series) -> str:
    """How much a setting evicts, as asked: "70 %", or "16 tokens kept"."""
    if pd.notna(row["ratio"]):
        return f"{100 * row['ratio']:g} %"
    return f"{int(row['budget']):,} token{'s' if row['budget'] != 1 else ''} kept"


def _control(study: Study, row: pd.Series) -> str:
    """What the control loses at the same setting."""
    frame = study.comparisons
    if frame.empty:
        return words.DASH
    here = frame[same(frame, row, [*stats.GROUP, "ratio", "budget"])]
    here = here[here["method"] == study.plan.control]
    return points(here["difference"].iloc[0]) if len(here) else words.DASH


def _unknown(study: Study, rows: pd.DataFrame, column: str) -> Iterator[str]:
    """Each reason why a setting cannot be judged, once, with the settings that it is about."""
    unknown = rows[rows[column] == CANNOT_TELL]
    for text, part in unknown.groupby("reason", sort=False):
        yield f"{_about(study, part)}: {text}"


def _about(study: Study, rows: pd.DataFrame) -> str:
    """Which settings, of which tasks and pairs where there are several."""
    differ = tables.differing(study.cells)
    named = [[tables.short(row[name]) for name in differ] for _, row in rows.iterrows()]
    groups = list(dict.fromkeys(", ".join(each) for each in named if each))
    pairs = []
    if "against" in rows and len(study.plan.contrasts) > 1:
        pairs = [f"{row['label']} against {row['against']}" for _, row in rows.iterrows()]
    where = ", ".join([*groups, *dict.fromkeys(pairs), settings(rows)])
    return f"{where[0].upper()}{where[1:]}" if not (groups or pairs) else where


def _read_otherwise(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """What the other reading says of settings that are decided and come out another way."""
    if "verdict_other" not in rows:
        return
    other = rows["verdict_other"]
    decided = rows[(rows["verdict"] != CANNOT_TELL) & other.notna() & other.ne(rows["verdict"])]
    for _, row in decided.iterrows():
        said = str(row["reason"]).rpartition(READ)[2]
        yield f"{_about(study, rows.loc[[row.name]])}: {READ.strip()} {said}"


def _inert(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    spatial = {pair.called for pair in study.plan.contrasts if "spatial" in pair.varies}
    active = rows.loc[rows["called"].isin(spatial), "adaptive_active"].dropna()
    if len(active) and (active == 0).all():
        yield (
            "The adaptive window never differed from a fixed pool here, so these lines say nothing "
            "about it."
        )
