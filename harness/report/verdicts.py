"""What a planned comparison says at each setting, by rules: supported, not supported, cannot tell.

Knows the frames of `harness.stats`; must not know how an answer is laid out.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pandas as pd

from harness import stats
from harness.models import precision
from harness.report import tables
from harness.report.tables import percent, points
from harness.stats.plan import Plan

SUPPORTED, NOT_SUPPORTED, CANNOT_TELL = "supported", "not supported", "cannot tell"
COLUMNS = [
    *stats.GROUP, "method", "ratio", "budget", "cell_key", "evicted", "accuracy", "full_accuracy",
    "difference", "difference_low", "difference_high", "n_questions", "questions_least",
    "verdict", "reason", "gain", "gain_low", "gain_high", "smoothing", "smoothing_reason",
    "verdict_other", "smoothing_other",
]  # fmt: skip
READINGS = {"lmms_eval": "strict", "strict": "lmms_eval"}  # the other value of `extraction`
PUBLISHED = {"temporal": "ema", "spatial": "adaptive"}  # the smoothing that the question is about
LITTLE = 0.05  # a score with nothing to lose


class Ruling(NamedTuple):
    """A verdict and the sentence that gives its reason."""

    verdict: str
    reason: str


def decide(
    cells: pd.DataFrame,
    comparisons: pd.DataFrame,
    ablation: pd.DataFrame,
    plan: Plan,
    factors: Mapping[str, Mapping[str, str]],
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

    Whether the smoothing is what keeps the score is ruled by the paired difference from the variant
    without any smoothing, see `_smoothing`; it can only be where the score is kept.

    Args:
        cells, comparisons, ablation: frames of `harness.stats`.
        plan: what was planned.
        factors: the smoothing of each label, as `stats.ablate` takes it.
        dtype: in which the answers were computed, where that is known.

    Returns:
        Columns `COLUMNS`; no rows where the method did not run at such a setting.
    """
    rows = comparisons[
        (comparisons["method"] == plan.method) & (comparisons["evicted"] > plan.above)
    ]
    if factors.get(plan.method) != PUBLISHED:
        ablation = ablation.iloc[:0]
    found = [_row(row, cells, comparisons, ablation, plan, dtype) for _, row in rows.iterrows()]
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
            said = f"Read by extraction={name} it is {row[kind]}: {figures}."
            table.loc[index, reason] = f"{first.loc[index, reason]} {said}"
    return table


def _row(
    row: pd.Series,
    cells: pd.DataFrame,
    comparisons: pd.DataFrame,
    ablation: pd.DataFrame,
    plan: Plan,
    dtype: str,
) -> dict[object, object]:
    group = cells[_same(cells, row, stats.GROUP)]
    beside = comparisons[_same(comparisons, row, [*stats.GROUP, "ratio", "budget"])]
    blind = next(_blind(row, group, dtype), None)
    kept = Ruling(CANNOT_TELL, blind) if blind else _kept(row, beside, plan, dtype)
    effect = _whole(ablation, row)
    cause = Ruling(CANNOT_TELL, blind) if blind else _smoothing(row, effect, plan)
    if cause.verdict == SUPPORTED and kept.verdict != SUPPORTED:
        cause = Ruling(kept.verdict, f"{cause.reason} But the score is not shown to be kept.")
    gain = {} if effect is None else effect[["difference", "low", "high"]].to_dict()
    return {
        **row[[name for name in COLUMNS if name in row]].to_dict(),
        "verdict": kept.verdict,
        "reason": kept.reason,
        "gain": gain.get("difference"),
        "gain_low": gain.get("low"),
        "gain_high": gain.get("high"),
        "smoothing": cause.verdict,
        "smoothing_reason": cause.reason,
    }


def _same(frame: pd.DataFrame, row: pd.Series, names: list[str]) -> pd.Series:
    """Rows that agree with `row` in these columns, nulls equal to nulls."""
    alike = pd.Series(True, index=frame.index)
    for name in names:
        alike &= frame[name].isna() if pd.isna(row[name]) else frame[name].eq(row[name])
    return alike.fillna(False).astype(bool)


def _blind(row: pd.Series, group: pd.DataFrame, dtype: str) -> Iterator[str]:
    """Why this experiment could not have shown anything here."""
    references = tables.references(group).set_index("label")
    full, blank = (references.reindex([name]).iloc[0] for name in tables.REFERENCES.values())
    if pd.isna(full["cell_key"]):
        yield "The full cache was not run, so there is nothing to compare with."
        return
    for name, cell in (
        (str(row["method"]), row),
        ("The full cache", full),
        ("The blank image", blank),
    ):
        if pd.notna(cell["cell_key"]) and tables.failed_rows(cell):
            yield _failed(name, cell, dtype)
            return
    if pd.isna(row["accuracy"]) or pd.isna(full["accuracy"]):
        yield "The right answers of this split are secret, so there is no score to compare."
        return
    if row["vacuous"]:
        yield (
            f"Vacuous: under protocol {row['protocol']} no scored token came from the compacted "
            "cache, so this cell repeats the full cache whatever the method does."
        )
    if not row["complete"]:
        yield (
            f"Only {row['n_rows']:,} of the {full['n_rows']:,} rows are there: give the same "
            "command again to complete the run."
        )
    if full["accuracy"] < LITTLE:
        yield (
            f"With the full cache the model scores {percent(full['accuracy'])} %, which leaves "
            "next to nothing to lose."
        )
    if full["accuracy_low"] <= blank["accuracy_high"]:
        yield (
            f"With the full cache the model scores {percent(full['accuracy'])} %, with a blank "
            f"image {percent(blank['accuracy'])} %, and the intervals overlap: it does not "
            "demonstrably use the image, so its eviction cannot show."
            + (f" {few(row)} to exclude a loss of the margin." if few(row) else "")
        )


def _failed(name: str, cell: pd.Series, dtype: str) -> str:
    where = f" in {dtype}" if dtype else ""
    return (
        f"{name} failed in {tables.failed_rows(cell):,} of {cell['n_rows']:,} rows, where logits "
        f"or scores were not finite (NaN or infinite){where}, and has no score: "
        f"{precision.rerun(dtype)}."
    )


def _kept(row: pd.Series, beside: pd.DataFrame, plan: Plan, dtype: str) -> Ruling:
    """Whether the score is kept within the margin."""
    level = f"{100 * (1 - plan.alpha):g} % one-sided"
    loss = f"{points(row['difference'])} points {tables.span(row, 'difference')}"
    margin = f"{100 * plan.margin:g} points"
    if max(row["upper"], row["difference_high"]) < -plan.margin:
        bound = f"at best {points(row['upper'])}, {level}"
        return Ruling(NOT_SUPPORTED, f"It loses more than the margin of {margin}: {loss}, {bound}.")
    if not row["p_noninferior_holm"] <= plan.alpha:
        return Ruling(CANNOT_TELL, _undecided(row, loss, margin, plan))
    insensitive = _insensitive(beside[beside["method"] == plan.control], plan, margin, dtype)
    if insensitive:
        return Ruling(CANNOT_TELL, f"{insensitive} {plan.method} itself: {loss}.")
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
        return f"equivalent within {100 * plan.margin:g} points"
    return "kept, and possibly better" if row[f"p_noninferior{end}"] <= plan.alpha else ""


def _insensitive(control: pd.DataFrame, plan: Plan, margin: str, dtype: str) -> str:
    """Why the control does not show that this setting can tell methods apart; "" where it does."""
    sound = control[control["complete"].astype(bool) & ~control["vacuous"].astype(bool)]
    if sound.empty:
        return (
            f"{plan.control} was not run to its end here, so it is unknown whether this setting "
            "loses anything."
        )
    if tables.failed_rows(sound.iloc[0]):
        return _failed(plan.control, sound.iloc[0], dtype)
    if sound.iloc[0]["upper"] < -plan.margin:
        return ""
    return (
        f"Not even {plan.control} is shown to lose more than {margin} here "
        f"({points(sound.iloc[0]['difference'])} points), so this setting cannot "
        "tell methods apart."
    )


def _undecided(row: pd.Series, loss: str, margin: str, plan: Plan) -> str:
    """What it would take to decide."""
    if row["p_noninferior"] <= plan.alpha:
        return (
            f"By itself this setting excludes a loss of more than {margin}, but not after Holm's "
            f"correction over the settings of the plan: {loss}."
        )
    text = f"Neither a loss of more than {margin} nor its absence is shown: {loss}"
    needed = row["questions_needed"]
    if few(row):
        text = f"{few(row)} to exclude a loss of {margin}, if not one answer changed: {loss}"
    if pd.isna(needed) or needed <= row["n_questions"]:
        return f"{text}."
    return (
        f"{text}; with no true loss about {int(needed):,} questions would show its absence, "
        f"{row['n_questions']:,} were asked."
    )


def few(row: pd.Series) -> str:
    """That there are too few questions to show that the score is kept; "" where there are not."""
    asked, least = row["n_questions"], row["questions_least"]
    if pd.isna(least) or asked >= least:
        return ""
    plural = "questions are" if asked != 1 else "question is"
    return f"{asked:,} {plural} too few; {int(least):,} would do"


def _whole(ablation: pd.DataFrame, row: pd.Series) -> pd.Series | None:
    """The effect of both smoothings together at a setting."""
    if ablation.empty:
        return None
    here = _same(ablation, row, [*stats.GROUP, "ratio", "budget"])
    rows = ablation[here & ablation["effect"].eq("smoothing")]
    return None if rows.empty else rows.iloc[0]


def _smoothing(row: pd.Series, effect: pd.Series | None, plan: Plan) -> Ruling:
    """Whether smoothing over queries and neighbours is what keeps the score.

    Not supported: the difference of both from neither is within the margin either way. Supported:
    it is above 0 (two-sided test at plan.alpha, Holm over the settings of the task). Not supported:
    it is below 0. Cannot tell: the variant was not run, or the interval is wider.
    """
    if effect is None:
        return Ruling(
            CANNOT_TELL,
            f"{plan.method} with the published smoothing and without any were not both run: choose "
            "experiment=smoothing.",
        )
    if pd.isna(effect["difference"]):
        return Ruling(
            CANNOT_TELL,
            f"{plan.method} without smoothing has no score at this setting to compare with.",
        )
    text = f"{points(effect['difference'])} points {tables.span(effect, '')}"
    margin = f"{100 * plan.margin:g} points"
    inert = (
        " Its adaptive window never differed from a fixed pool, so this cell cannot tell about "
        "that part."
        if row["adaptive_active"] == 0
        else ""
    )
    if effect["low"] > -plan.margin and effect["high"] < plan.margin:
        return Ruling(
            NOT_SUPPORTED,
            f"Without smoothing the score is the same within {margin}: {text}.{inert}",
        )
    shown = effect["p_holm"] <= plan.alpha
    if shown and effect["difference"] > 0:
        return Ruling(SUPPORTED, f"Smoothing raises the score: {text}.{inert}")
    if shown and effect["difference"] < 0:
        return Ruling(NOT_SUPPORTED, f"Smoothing lowers the score: {text}.{inert}")
    return Ruling(CANNOT_TELL, f"Smoothing may raise or lower the score: {text}.{inert}")
