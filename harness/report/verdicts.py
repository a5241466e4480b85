"""Whether the method asked about keeps the score at each setting, by rules.

A verdict is supported, not supported or cannot tell. Knows the frames of `harness.stats`; must not
know how an answer is laid out.
"""

from collections.abc import Mapping

import pandas as pd

from harness import stats
from harness.report import tables
from harness.report.contrasts import COSTS, HELPS, SAME
from harness.report.rulings import (
    CANNOT_TELL,
    NOT_SUPPORTED,
    SUPPORTED,
    WORDS,
    Blind,
    Ruling,
    blind,
    few,
    insensitive,
    same,
)
from harness.report.tables import points
from harness.stats.plan import Plan

COLUMNS = [
    *stats.GROUP, "method", "ratio", "budget", "cell_key", "evicted", "accuracy", "full_accuracy",
    "difference", "difference_low", "difference_high", "n_questions", "questions_least",
    "verdict", "reason", "why", "gain", "gain_low", "gain_high", "smoothing", "smoothing_reason",
    "verdict_other", "smoothing_other",
]  # fmt: skip
READINGS = {"lmms_eval": "strict", "strict": "lmms_eval"}  # the other value of `extraction`
VERDICTS = {
    HELPS: SUPPORTED, SAME: NOT_SUPPORTED, COSTS: NOT_SUPPORTED, CANNOT_TELL: CANNOT_TELL,
}  # fmt: skip
READ = " Read by "  # begins what the other reading says, at the end of a reason
SMOOTHING = "smoothing"  # the contrast whose verdicts stand beside those of the method


def decide(
    cells: pd.DataFrame,
    comparisons: pd.DataFrame,
    contrasts: pd.DataFrame,
    plan: Plan,
    dtype: str = "",
) -> pd.DataFrame:
    """A row for each setting at which the method asked about evicts more than `plan.above`.

    Rules, the first that applies. Cannot tell: no full cache; failed rows; secret answers; a
    vacuous cell; rows missing; a model that scores next to nothing, or not demonstrably more than
    with a blank image. Not supported: the difference from the full cache is below -margin by its
    whole 95 % interval and by the one-sided upper bound. Cannot tell: no loss of more than the
    margin is excluded by the one-sided test, with Holm's correction over these settings of the
    task, and where there are too few questions for that it is said; or the control was not run to
    the end there, failed in some rows, or is not shown to lose more than the margin. Supported: all
    others.

    Whether the smoothing is what keeps the score stands beside it where the plan compares the
    method with the same one without: supported where it raises the score and the score is kept.

    Args:
        cells, comparisons: frames of `harness.stats`.
        contrasts: `contrasts.decide` of the same plan.
        plan: what was planned.
        dtype: in which the answers were computed, where that is known.

    Returns:
        Columns `COLUMNS`; `why` is the reason in a few words where it cannot tell. No rows where
        the method did not run at such a setting.
    """
    rows = comparisons[
        (comparisons["method"] == plan.method) & (comparisons["evicted"] > plan.above)
    ]
    found = [_row(row, cells, comparisons, contrasts, plan, dtype) for _, row in rows.iterrows()]
    table = pd.DataFrame(found, columns=COLUMNS)
    return table.astype({"budget": "Int64"})


def beside(first: pd.DataFrame, second: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """The verdicts with those of the other reading of the same answers, said where they differ.

    Args:
        first: `decide` of the run. second: `decide` of `stats.other_reading` of its samples.
        samples: of the run; their `extraction` names the reading of each task.

    Returns:
        `first` with `verdict_other` and `smoothing_other`, null where there is no second reading.
    """
    place = [*stats.GROUP, "cell_key"]
    found = first[place].merge(second, how="left", on=place).set_index(first.index)
    names = samples.drop_duplicates(stats.GROUP).set_index(stats.GROUP)["extraction"]
    table = first.copy()
    for kind, reason, number, ends in (
        ("verdict", "reason", "difference", "difference"),
        ("smoothing", "smoothing_reason", "gain", "gain"),
    ):
        table[f"{kind}_other"] = found[kind].where(found[kind].notna(), None)
        differ = found[kind].notna() & found[kind].ne(first[kind])
        for index, row in found[differ].iterrows():
            name = READINGS.get(str(names.get(tuple(row[stats.GROUP]), "")), "the other rule")
            figures = f"{points(row[number])} points {tables.span(row, ends)}"
            said = f"extraction={name} it is {WORDS.get(row[kind], row[kind])}: {figures}."
            table.loc[index, reason] = f"{first.loc[index, reason]}{READ}{said}"
    return table


def _row(
    row: pd.Series,
    cells: pd.DataFrame,
    comparisons: pd.DataFrame,
    contrasts: pd.DataFrame,
    plan: Plan,
    dtype: str,
) -> dict[object, object]:
    group = cells[same(cells, row, stats.GROUP)]
    beside = comparisons[same(comparisons, row, [*stats.GROUP, "ratio", "budget"])]
    nothing = next(blind(row, group, dtype), None)
    kept = Ruling(CANNOT_TELL, *nothing) if nothing else _kept(row, beside, plan, dtype)
    return {
        **row[[name for name in COLUMNS if name in row]].to_dict(),
        "verdict": kept.verdict,
        "reason": kept.reason,
        "why": kept.why,
        **_smoothing(row, contrasts, kept, plan),
    }


def _smoothing(
    row: pd.Series, contrasts: pd.DataFrame, kept: Ruling, plan: Plan
) -> Mapping[str, object]:
    """The columns about the smoothing; nulls where the plan does not ask about it."""
    if plan.own is None or plan.own.called != SMOOTHING:
        return {}
    here = contrasts[
        same(contrasts, row, [*stats.GROUP, "ratio", "budget"])
        & contrasts["label"].eq(plan.method)
        & contrasts["called"].eq(SMOOTHING)
    ]
    if here.empty:
        why = f"{plan.own.label} and {plan.own.against} were not both run at this setting."
        return {"smoothing": CANNOT_TELL, "smoothing_reason": why}
    effect = here.iloc[0]
    verdict, reason = VERDICTS[effect["effect"]], str(effect["reason"])
    if verdict == SUPPORTED and kept.verdict != SUPPORTED:
        verdict, reason = kept.verdict, f"{reason} But the score is not shown to be kept."
    return {
        "gain": effect["difference"],
        "gain_low": effect["low"],
        "gain_high": effect["high"],
        "smoothing": verdict,
        "smoothing_reason": reason,
    }


def _kept(row: pd.Series, beside: pd.DataFrame, plan: Plan, dtype: str) -> Ruling:
    """Whether the score is kept within the margin."""
    level = f"{100 * (1 - plan.alpha):g} % one-sided"
    loss = f"{points(row['difference'])} points {tables.span(row, 'difference')}"
    margin = tables.margin(plan)
    if max(row["upper"], row["difference_high"]) < -plan.margin:
        bound = f"at best {points(row['upper'])}, {level}"
        return Ruling(NOT_SUPPORTED, f"It loses more than the margin of {margin}: {loss}, {bound}.")
    if not row["p_noninferior_holm"] <= plan.alpha:
        return Ruling(CANNOT_TELL, *_undecided(row, loss, margin, plan))
    numb = insensitive(beside, plan, dtype)
    if numb:
        return Ruling(CANNOT_TELL, f"{numb.reason} {plan.method} itself: {loss}.", numb.why)
    control = beside[beside["method"] == plan.control].iloc[0]
    return Ruling(
        SUPPORTED,
        f"It loses less than {margin}: {loss}, at worst {points(row['lower'])}, {level}; "
        f"{equivalence(row, plan)}; {plan.control} changes the score by "
        f"{points(control['difference'])} points.",
    )


def equivalence(row: pd.Series, plan: Plan) -> str:
    """What is shown of a comparison's score: no loss, or no gain either, of the margin or more.

    Both with Holm's correction inside the plan's family, one by one outside; "" where neither is.
    """
    end = "_holm" if row["family"] else ""
    if row[f"p_equivalent{end}"] <= plan.alpha:
        return f"equivalent within {tables.margin(plan)}"
    return "kept, and possibly better" if row[f"p_noninferior{end}"] <= plan.alpha else ""


def _undecided(row: pd.Series, loss: str, margin: str, plan: Plan) -> Blind:
    """What it would take to decide."""
    if row["p_noninferior"] <= plan.alpha:
        return Blind(
            f"By itself this setting excludes a loss of more than {margin}, but not after Holm's "
            f"correction over the settings of the plan: {loss}.",
            f"a loss of more than {margin} is excluded, but not for all settings at once: {loss}",
        )
    text = f"Neither a loss of more than {margin} nor its absence is shown: {loss}"
    why = f"neither a loss of more than {margin} nor its absence is shown: {loss}"
    needed = row["questions_needed"]
    if few(row):
        text = f"{few(row)} to exclude a loss of {margin}, if not one answer changed: {loss}"
        why = few(row)
    if pd.isna(needed) or needed <= row["n_questions"]:
        return Blind(f"{text}.", why)
    enough = f"about {int(needed):,} questions would show its absence"
    return Blind(
        f"{text}; with no true loss {enough}, {row['n_questions']:,} were asked.",
        why,
    )
