"""What each planned pair of labels says at each setting: one helps, costs, or changes nothing.

Knows the frames of `harness.stats`; must not know how an answer is laid out.
"""

import pandas as pd

from harness import stats
from harness.report import tables
from harness.report.rulings import CANNOT_TELL, Ruling, blind, insensitive, same
from harness.report.tables import points
from harness.stats.plan import Pair, Plan

HELPS, COSTS, SAME = "helps", "costs", "no difference"
COLUMNS = [
    *stats.GROUP, "ratio", "budget", "label", "against", "called", "evicted", "n_questions",
    "difference", "low", "high", "p", "p_holm", "adaptive_active", "effect", "reason", "why",
    "effect_other",
]  # fmt: skip
UNLIKE = 0.01  # of the cache: two that differ by more in what they keep are not compared
DECODE = "decode"  # the parameter that acts from the second generated token on


def decide(
    pairs: pd.DataFrame,
    samples: pd.DataFrame,
    cells: pd.DataFrame,
    comparisons: pd.DataFrame,
    plan: Plan,
    dtype: str = "",
) -> pd.DataFrame:
    """A row for each pair and setting at which its first label evicts more than `plan.above`.

    effect, the first that applies. Cannot tell: as for a verdict, of either label (`blind`); two
    that keep different amounts; answers of one token, where the two differ in what they evict while
    generating. No difference: it is within the margin either way, and the control is shown to lose
    more than that here. Helps, costs: it is above or below 0 (two-sided test at plan.alpha, Holm
    over all rows of a group). Cannot tell: all else.

    Args:
        pairs: `stats.pairs` of the plan.
        samples, cells, comparisons: as they go into and come out of `harness.stats`.
        plan: what was planned.
        dtype: in which the answers were computed, where that is known.

    Returns:
        Columns `COLUMNS`; `why` is the reason in a few words where it cannot tell.
    """
    asked = {(pair.label, pair.against): pair for pair in plan.contrasts}
    rows = pairs[pairs["evicted"] > plan.above]
    found = []
    for _, row in rows.iterrows():
        pair = asked[row["label"], row["against"]]
        beside = comparisons[same(comparisons, row, [*stats.GROUP, "ratio", "budget"])]
        ruling = _blind(row, pair, samples, cells, beside, dtype) or _ruled(row, pair, plan)
        numb = insensitive(beside, plan, dtype) if ruling.verdict == SAME else None
        if numb is not None:
            ruling = Ruling(CANNOT_TELL, f"{ruling.reason} But {numb.reason}", numb.why)
        found.append(
            {
                **row[[name for name in COLUMNS if name in row]].to_dict(),
                "called": pair.called,
                "effect": ruling.verdict,
                "reason": ruling.reason,
                "why": ruling.why,
            }
        )
    return pd.DataFrame(found, columns=COLUMNS).astype({"budget": "Int64"})


def _blind(
    row: pd.Series,
    pair: Pair,
    samples: pd.DataFrame,
    cells: pd.DataFrame,
    beside: pd.DataFrame,
    dtype: str,
) -> Ruling | None:
    """Why this pair could not have shown anything here; None where it could."""
    two = beside[beside["method"].isin([pair.label, pair.against])]
    group = cells[same(cells, row, stats.GROUP)]
    for _, cell in two.iterrows():
        for nothing in blind(cell, group, dtype):
            return Ruling(CANNOT_TELL, *nothing)
    left = 1 - two["evicted"]
    if left.max() - left.min() > UNLIKE:
        amounts = " and ".join(f"{tables.percent(share)} %" for share in left)
        why = f"the two keep different amounts, {amounts} of the cache"
        return Ruling(CANNOT_TELL, f"{why[0].upper()}{why[1:]}.", why)
    if DECODE in pair.varies:
        exposed = samples.loc[samples["cell_key"].isin(two["cell_key"]), "exposed_tokens"]
        if exposed.max() <= 1:
            return Ruling(
                CANNOT_TELL,
                "No answer has more than one scored token, and the two differ from the second on: "
                "they are equal by construction.",
                "answers are one token long, and the two differ from the second on",
            )
    return None


def _ruled(row: pd.Series, pair: Pair, plan: Plan) -> Ruling:
    if pd.isna(row["difference"]):
        why = f"{pair.label} or {pair.against} has no score there"
        return Ruling(
            CANNOT_TELL, f"{pair.label} or {pair.against} has no score at this setting.", why
        )
    figures = f"{points(row['difference'])} points {tables.span(row, '')}"
    inert = (
        " Its adaptive window never differed from a fixed pool, so this cell cannot tell about "
        "that part."
        if row["adaptive_active"] == 0 and "spatial" in pair.varies
        else ""
    )
    called = pair.called[:1].upper() + pair.called[1:]
    if row["low"] > -plan.margin and row["high"] < plan.margin:
        margin = tables.margin(plan)
        return Ruling(SAME, f"{called} makes no difference within {margin}: {figures}.{inert}")
    shown = row["p_holm"] <= plan.alpha
    if shown and row["difference"] > 0:
        return Ruling(HELPS, f"{called} raises the score: {figures}.{inert}")
    if shown and row["difference"] < 0:
        return Ruling(COSTS, f"{called} lowers the score: {figures}.{inert}")
    if row["p"] <= plan.alpha:
        why = f"it is shown there alone, but not for all settings at once: {figures}"
        by_itself = f"{called} is shown to change the score at this setting by itself"
        return Ruling(CANNOT_TELL, f"{by_itself}, but not after Holm's correction: {figures}.", why)
    return Ruling(
        CANNOT_TELL,
        f"{called} may raise or lower the score: {figures}.{inert}",
        f"it may raise or lower the score: {figures}",
    )


def beside(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """The contrasts with `effect_other`, that of another reading of the same answers; else null."""
    place = [*stats.GROUP, "ratio", "budget", "label", "against"]
    if first.empty or second.empty:
        return first.assign(effect_other=None)
    other = second[[*place, "effect"]].rename(columns={"effect": "effect_other"})
    return first.drop(columns="effect_other", errors="ignore").merge(other, how="left", on=place)
