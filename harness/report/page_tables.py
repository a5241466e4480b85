"""The tables of the page as plain rows: what stands in which cell, in words.

Turns frames of a study into `Table`s. Must not know HTML (but for a verdict's badge), files, or how
a table looks; all text is escaped by the template.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain

import pandas as pd

from harness.report import glance, prefills, protocols, published, tables, verdict_tables, words
from harness.report.answer_tables import reading
from harness.report.study import Study
from harness.report.verdict_tables import Rows
from harness.report.verdicts import equivalence
from harness.report.words import difference, percent, points, probability, share, span, whole
from harness.stats.plan import Plan

PLAN = {
    "method": "method that the question is about",
    "control": "method whose loss shows that a setting can tell any apart",
    "margin": "largest loss of the score that still counts as keeping it, in points",
    "alpha": "one-sided level of the tests",
    "power": "power at which the smallest detectable loss is stated",
    "above": "the question is about settings that evict more than this share, in percent",
    "resamples": "resamples of the cluster bootstrap",
    "seed": "seed of the bootstrap",
    "contrasts": "pairs that are compared at each setting",
}


@dataclass(frozen=True)
class Table:
    """A table: the first `heads` cells of a line name it, the columns in `text` are words."""

    caption: str
    header: list[str]
    body: list[list[str]]
    text: tuple[int, ...] = ()
    heads: int = 1


@dataclass(frozen=True)
class Ruled:
    """A table of verdicts and the sentences below it."""

    table: Table
    notes: list[str]


def verdicts(study: Study) -> list[Ruled]:
    """The verdicts on the method asked about, and what each pair of the plan does."""
    found = []
    if not study.verdicts.empty:
        found.append(_ruled(verdict_tables.kept(study, study.verdicts)))
    if not study.contrasts.empty:
        found.append(_ruled(verdict_tables.effects(study, study.contrasts)))
    return found


def beside(study: Study) -> list[Ruled]:
    """Scores under several protocols and prefills, where there are several, and published ones."""
    beside = (protocols.side_by_side(study.cells), prefills.of(study), published.of(study))
    return list(map(_plain, chain(*beside)))


def glances(study: Study) -> list[Ruled]:
    """The methods at a glance, a table a model and task."""
    return [_plain(glance.rows(one)) for one in glance.glances(study)]


def _plain(rows: Rows) -> Ruled:
    return Ruled(Table(rows.title, rows.header, rows.body), rows.notes)


def _ruled(rows: Rows) -> Ruled:
    body = [[*line[:-1], words.badge(line[-1])] for line in rows.body]
    place = rows.header.index("Evicted")
    text = [column for column, name in enumerate(rows.header) if name == "Compared"]
    table = Table(
        rows.title, rows.header, body, text=(*text, len(rows.header) - 1), heads=place + 1
    )
    return Ruled(table, rows.notes)


def paired(comparisons: pd.DataFrame, labels: Mapping[str, str], plan: Plan) -> Table:
    """Every compressed cell of one group against the full cache, on the rows that both have."""
    body = [
        [
            labels.get(row["cell_key"], str(row["method"])),
            tables.setting(row),
            f"{percent(row['accuracy'])}{' (vacuous)' if row['vacuous'] else ''}{_failed(row)}",
            difference(row),
            f"{probability(row['p_noninferior'])} ({probability(row['p_noninferior_holm'])})",
            f"{probability(row['p_equivalent'])} ({probability(row['p_equivalent_holm'])})",
            equivalence(row, plan) or words.DASH,
            f"{whole(row['lost'])} / {whole(row['gained'])}",
            f"{probability(row['p_mcnemar'])} ({probability(row['p_mcnemar_holm'])})",
            _flips(row),
            _kl(row),
            share(row, "retained"),
            points(row["detectable"]).removeprefix("+"),
            "yes" if row["family"] else "",
        ]
        for _, row in comparisons.iterrows()
    ]
    header = [
        "Method", "Ratio", "Score %", "Points from full", "p not worse (Holm)",
        "p equivalent (Holm)", "Shown", "Lost / gained", "p McNemar (Holm)", "Answers changed %",
        "KL nats", "Retained %", "Detectable loss", "In the plan",
    ]  # fmt: skip
    return Table(
        "Every compressed cell against the full cache, with 95 % intervals",
        header,
        body,
        heads=2,
        text=(6, 13),
    )


def _failed(row: pd.Series) -> str:
    count = tables.failed_rows(row)
    return f" (failed in {count:,} of {row['n_rows']:,} rows)" if count else ""


def _flips(row: pd.Series) -> str:
    ends = percent(row["flip_low"]), percent(row["flip_high"])
    return f"{percent(row['flip_rate'])} {span(*ends)}".rstrip()


def _kl(row: pd.Series) -> str:
    if pd.isna(row["kl"]):
        return words.DASH
    low, high = (
        words.DASH if pd.isna(row[name]) else f"{row[name]:.3f}" for name in ("kl_low", "kl_high")
    )
    return f"{row['kl']:.3f} {span(low, high)}".rstrip()


def ablation(effects: pd.DataFrame) -> Table:
    """Every effect of the ablation of one group."""
    body = [
        [
            tables.setting(row),
            str(row["effect"]),
            str(row["contrast"]),
            str(row["given"]) if pd.notna(row["given"]) else "",
            f"{points(row['difference'])} {span(points(row['low']), points(row['high']))}".rstrip(),
            f"{probability(row['p'])} ({probability(row['p_holm'])})",
            percent(row["adaptive_active"]),
            reading(row),
        ]
        for _, row in effects.iterrows()
    ]
    header = ["Ratio", "Effect", "Contrast", "Given", "Points", "p (Holm)",
              "Window active %", "Says"]  # fmt: skip
    return Table("Effects of the smoothing, with 95 % intervals", header, body, heads=4, text=(7,))


def activity(cells: pd.DataFrame) -> Table | None:
    """In which share of heads the adaptive window differed from the fixed pool; None: no window."""
    rows = tables.compressed(cells)
    rows = rows[rows["adaptive_active"].notna()].assign(control="none")
    if rows.empty:
        return None
    columns, body = tables.grid(rows, lambda cell: percent(cell["adaptive_active"]))
    caption = "Share of heads in which the adaptive window was not the fixed pool, in percent"
    return Table(caption, ["Method", *columns], [list(map(str, line)) for line in body])


def claims(frame: pd.DataFrame) -> Table:
    """The ledger of claims and what became of them here."""
    names = ["claim", "published", "source", "command", "measured", "on", "verdict"]
    body = [
        [*(_said(row[name]) for name in names[:-1]), words.badge(_said(row["verdict"]))]
        for _, row in frame.iterrows()
    ]
    header = ["Claim", "Published", "Source", "Tested by", "Measured here", "On", "Verdict"]
    return Table(
        "What was claimed and what was measured here",
        header,
        body,
        text=tuple(range(1, len(names))),
    )


def _said(value: object) -> str:
    return "" if pd.isna(value) else str(value)


def plan(plan: Plan) -> Table:
    """What was asked of the numbers before they were there."""
    percents = {"margin", "above"}
    values = asdict(plan) | {
        "contrasts": ", ".join(f"{pair.label} against {pair.against}" for pair in plan.contrasts)
    }
    body = [
        [said, f"{100 * values[name]:g}" if name in percents else str(values[name])]
        for name, said in PLAN.items()
        if values[name] != ""
    ]
    return Table("The plan", ["What", "Value"], body, text=(1,))


def provenance(values: Mapping[str, object]) -> Table:
    """Nested values with dotted names."""
    body = [[name, str(value)] for name, value in tables.flat(values)]
    return Table("Where the figures come from", ["What", "Value"], body, text=(1,))
