"""The tables of answer.md, each a list of Markdown lines.

Knows frames and how they look; must not know what an answer concludes from them.
"""

import pandas as pd

from harness.report import markdown, tables
from harness.report.tables import escape, percent, points
from harness.report.verdict_tables import Rows
from harness.report.verdicts import equivalence
from harness.stats.plan import Plan


def ruled(rows: Rows) -> list[str]:
    """A table of verdicts with its title and its notes."""
    words = next(place for place, name in enumerate(rows.header) if name == "Evicted") + 1
    body = [[*map(cell, line[:-1]), f"**{line[-1]}**"] for line in rows.body]
    notes = [f"- {escape(note, 1500)}" for note in rows.notes]
    table = markdown.table(list(map(escape, rows.header)), body, words=words)
    return [f"### {escape(rows.title, 200)}", "", *table, "", *notes, ""]


def beside(rows: Rows) -> list[str]:
    """Scores under several protocols."""
    body = [list(map(cell, line)) for line in rows.body]
    table = markdown.table(list(map(escape, rows.header)), body)
    notes = [f"- {escape(note, 400)}" for note in rows.notes]
    return [f"### {escape(rows.title, 200)}", "", *table, "", *notes, ""]


def cell(text: str) -> str:
    """One cell of a table of verdicts."""
    return escape(text, 200)


def differences(rows: pd.DataFrame) -> list[str]:
    """Method x setting: points of difference from the full cache with their 95 % interval."""

    def text(cell: pd.Series) -> str:
        return f"{points(cell['difference'])} {escape(tables.span(cell, 'difference'))}" + (
            markdown.mark(cell)
        )

    return markdown.pivot(rows.assign(control="none"), text)


def tests(rows: pd.DataFrame, plan: Plan) -> list[str]:
    """Every figure of the family, and of all methods at the family's settings."""
    places = {tables.setting(row) for _, row in rows[rows["family"]].iterrows()}
    shown = rows[[tables.setting(row) in places for _, row in rows.iterrows()]]
    if shown.empty:
        return ["The plan's family is empty: nothing was tested."]
    header = [
        "method", "ratio", "difference", "95 %", "95 % bootstrap", "p non-inferior", "Holm",
        "p equivalent", "Holm", "shown", "lost", "gained", "p McNemar", "Holm", "detectable",
        "flips %", "KL", "retained %",
    ]  # fmt: skip
    body = [
        [
            escape(row["method"]) + ("\\*" if row["family"] else ""),
            tables.setting(row),
            points(row["difference"]),
            escape(tables.span(row, "difference")),
            escape(tables.span(row, "bootstrap")),
            *map(probability, row[["p_noninferior", "p_noninferior_holm"]]),
            *map(probability, row[["p_equivalent", "p_equivalent_holm"]]),
            equivalence(row, plan) or "-",
            *map(whole, row[["lost", "gained"]]),
            *map(probability, row[["p_mcnemar", "p_mcnemar_holm"]]),
            points(row["detectable"]).removeprefix("+"),
            percent(row["flip_rate"]),
            "-" if pd.isna(row["kl"]) else f"{row['kl']:.3f}",
            percent(row["retained"]),
        ]
        for _, row in shown.iterrows()
    ]
    note = (
        "\\* of the plan. p equivalent: of two one-sided tests, that neither a loss nor a gain of "
        "the margin is there. lost, gained: questions of which all rotations were right with the "
        "full cache and no longer are, and the reverse. detectable: the smallest loss in points "
        "that would have shown. KL: nats, of the option logits from the full cache's. retained: "
        "the score rescaled between the blank image and the full cache."
    )
    return [*markdown.table(header, body), "", note]


def probability(value: float) -> str:
    """A p value with three decimals, small ones as a bound; a dash for nan."""
    return "-" if pd.isna(value) else ("< 0.001" if value < 0.001 else f"{value:.3f}")


def whole(value: float) -> str:
    """A count; a dash for nan."""
    return "-" if pd.isna(value) else f"{int(value):,}"


def ablation(effects: pd.DataFrame) -> list[str]:
    """Effects at each setting; where the adaptive window never acted, its part cannot tell."""
    header = ["ratio", "effect", "contrast", "given", "points", "95 %", "p", "Holm", "says"]
    body = [
        [
            tables.setting(row),
            row["effect"],
            escape(row["contrast"]),
            escape(row["given"]),
            points(row["difference"]),
            escape(tables.span(row, "")),
            probability(row["p"]),
            probability(row["p_holm"]),
            reading(row),
        ]
        for _, row in effects.iterrows()
    ]
    note = (
        "p tests a difference of 0, two-sided; only the rows of the whole smoothing are corrected "
        "for being several (Holm), every other contrast is exploratory."
    )
    return [*markdown.table(header, body, words=4), "", note]


def reading(effect: pd.Series) -> str:
    """What one effect says."""
    if effect["inert"]:
        return "cannot tell: the adaptive window was never at work"
    if pd.isna(effect["low"]) or pd.isna(effect["high"]):
        return "cannot tell: no interval"
    shown = not effect["low"] <= 0 <= effect["high"]
    if effect["effect"] == "interaction":
        return "the two interact" if shown else "no interaction shown"
    if not shown:
        return "no effect shown"
    return "raises the score" if effect["difference"] > 0 else "lowers the score"


def claims(claims: pd.DataFrame) -> list[str]:
    """The claims ledger."""
    header = ["claim", "published", "tested by", "measured here", "on", "verdict"]
    names = ["claim", "published", "command", "measured", "on", "verdict"]
    body = [[escape(row[name], 400) for name in names] for _, row in claims.iterrows()]
    return markdown.table(header, body, words=len(header))


def weights(fell: pd.DataFrame) -> list[str]:
    """A row a variant, a column a part of the prompt."""
    wide = fell.pivot(index="method", columns="segment", values="share").fillna(0.0)
    wide = wide.loc[fell["method"].unique(), fell["segment"].unique()]
    body = [[escape(name), *map(percent, row)] for name, row in wide.iterrows()]
    return markdown.table(["method", *map(escape, wide.columns)], body)
