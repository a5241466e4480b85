"""answer.md: the verdict in two sentences, the table behind it, and what the data does not say.

Written by rules from a `Study`. Must not know files.
"""

from collections.abc import Iterator

import pandas as pd

from harness import stats
from harness.report import answer_tables, honesty, summary, tables
from harness.report.study import Study
from harness.report.tables import escape, points
from harness.report.verdicts import CANNOT_TELL, NOT_SUPPORTED, READINGS, SUPPORTED, few

ORDER = (SUPPORTED, NOT_SUPPORTED, CANNOT_TELL)
EXPLORATORY = (
    "Every setting in this table is compared with the full cache; only those of the plan are "
    "corrected for being several (Holm), all others are exploratory."
)


def verdict(study: Study) -> tuple[str, str]:
    """Two sentences: whether the score is kept, and whether smoothing is what keeps it."""
    if study.verdicts.empty:
        return _nothing(study)
    kept = _counted(study.verdicts, "verdict")
    caused = _counted(study.verdicts, "smoothing")
    name, margin = study.plan.method, f"{100 * study.plan.margin:g} points"
    lead = "" if study.registered else "Exploratory. "
    return (
        f"{lead}{_overall(study.verdicts['verdict'])}: that {name} keeps the score within {margin} "
        f"of the full cache is {kept}{_worst(study.verdicts)}{_few(study.verdicts)}"
        f"{_otherwise(study, 'verdict')}.",
        f"{_overall(study.verdicts['smoothing'])}: that its smoothing is what keeps the score is "
        f"{caused}{_gains(study.verdicts)}{_otherwise(study, 'smoothing')}.",
    )


def _otherwise(study: Study, column: str) -> str:
    """What the other reading of the answers makes of it, where any setting comes out another."""
    rows = study.verdicts
    if f"{column}_other" not in rows:
        return ""
    second = rows[f"{column}_other"]
    if not (second.notna() & second.ne(rows[column])).any():
        return ""
    known = rows.assign(**{column: second})[second.notna()]
    used = set(study.samples.get("extraction", pd.Series(dtype=str)).dropna())
    name = READINGS.get(used.pop(), "") if len(used) == 1 else ""
    return f"; read by {f'extraction={name}' if name else 'the other rule'} it is " + _counted(
        known, column
    )


def _nothing(study: Study) -> tuple[str, str]:
    """Why there is no setting to judge."""
    name, above = study.plan.method, f"{100 * study.plan.above:g} %"
    ran = tables.compressed(study.cells)
    if ran.empty:
        why = "this run holds no compressed cell"
    elif name not in set(ran["method"]):
        why = f"{name}, which the question is about, was not run"
    else:
        why = f"{name} was run at no setting that evicts more than {above}"
    return (
        f"Cannot tell: {why}.",
        f"Cannot tell: choose {name} and its variants with experiment=smoothing, at ratios above "
        f"{study.plan.above:g}.",
    )


def _overall(verdicts: pd.Series) -> str:
    found = [name for name in ORDER if verdicts.eq(name).any()]
    return "In part" if found[0] == SUPPORTED and len(found) > 1 else found[0].capitalize()


def _counted(verdicts: pd.DataFrame, column: str) -> str:
    """ "supported at 0.7, 0.8 and not supported at 0.95"; with several tasks, how many."""
    parts = []
    for name in ORDER:
        rows = verdicts[verdicts[column] == name]
        if not rows.empty:
            word = "undecided" if name == CANNOT_TELL else name
            parts.append(f"{word} {_places(rows, verdicts, name)}")
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _places(rows: pd.DataFrame, verdicts: pd.DataFrame, name: str) -> str:
    if len(verdicts[stats.GROUP].drop_duplicates()) > 1:
        return f"in {len(rows)} of {len(verdicts)} settings"
    if len(verdicts) > 1 and len(rows) == len(verdicts):
        each = "any" if name == NOT_SUPPORTED else "each"
        return f"at {each} of the {len(rows)} settings ({_settings(rows)})"
    return f"at {_settings(rows)}"


def _settings(rows: pd.DataFrame) -> str:
    return ", ".join(tables.setting(row) for _, row in rows.iterrows())


def _worst(verdicts: pd.DataFrame) -> str:
    """The largest loss."""
    rows = verdicts[verdicts["difference"].notna()]
    if rows.empty:
        return ""
    row = rows.loc[rows["difference"].idxmin()]
    return (
        f" (lowest: {points(row['difference'])} points {tables.span(row, 'difference')} at "
        f"{_where(row, verdicts)})"
    )


def _few(verdicts: pd.DataFrame) -> str:
    """How many questions it takes, where too few are why a setting is undecided."""
    rows = verdicts[verdicts["verdict"].eq(CANNOT_TELL)]
    said = [text for text in (few(row) for _, row in rows.iterrows()) if text]
    return f"; {said[0]}" if said else ""


def _gains(verdicts: pd.DataFrame) -> str:
    rows = verdicts[verdicts["gain"].notna()]
    if rows.empty:
        return ""
    row = rows.loc[rows["gain"].astype(float).abs().idxmax()]
    return (
        f" (largest effect: {points(row['gain'])} points {tables.span(row, 'gain')} at "
        f"{_where(row, verdicts)})"
    )


def _where(row: pd.Series, verdicts: pd.DataFrame) -> str:
    several = len(verdicts[stats.GROUP].drop_duplicates()) > 1
    return f"{tables.setting(row)} of {row['task']}" if several else tables.setting(row)


def limits(study: Study) -> Iterator[str]:
    """What the data does not say, and what weakens it, in sentences."""
    if study.caveat:
        yield study.caveat
    for key, group in tables.groups(study.cells):
        own = study.samples[(study.samples[stats.GROUP] == list(key)).all(axis=1)]
        lead = f"{key[1]}: " if study.cells["task"].nunique() > 1 else ""
        for sentence in honesty.sentences(own, group, _computed(study)):
            yield lead + sentence
        yield lead + honesty.window(group)
    if study.cells["protocol"].eq("replay").any():
        yield (
            "Under replay the last prompt tokens have read the whole prompt before anything is "
            "evicted, so a method can keep an answer by keeping them; protocol=context is harder."
        )
    yield from study.told


def _computed(study: Study) -> dict[str, object]:
    return {"settings": study.provenance.get("settings", {})}


def text(study: Study) -> str:
    """The whole of answer.md."""
    first, second = verdict(study)
    lines = [f"# Answer: {escape(study.name)}", ""]
    lines += [f"**Asked:** {escape(study.question, 400)}", ""]
    lines += [f"**{escape(first, 1200)}** {escape(second, 1200)}", "", *_plan(study), ""]
    for key, rows in tables.groups(study.comparisons):
        if study.cells["task"].nunique() > 1:
            lines += [f"## {escape(key[1])}, protocol {escape(key[2])}", ""]
        lines += list(_group(study, key, rows))
    lines += ["## What the data does not say", ""]
    lines += [f"- {escape(sentence, summary.SENTENCE)}" for sentence in limits(study)]
    if not study.claims.empty:
        lines += ["", "## Claims of the paper", "", *answer_tables.claims(study.claims)]
    lines += ["", "## To reproduce", "", "```", str(study.provenance.get("command", "")), "```", ""]
    return "\n".join(lines)


def _plan(study: Study) -> list[str]:
    plan = study.plan
    return [
        f"Plan: {escape(plan.method)} may lose {100 * plan.margin:g} points of the score "
        f"(non-inferiority, one-sided level {plan.alpha:g}, Holm over the settings of a task that "
        f"evict more than {100 * plan.above:g} %), and the unit is the "
        "question with all its rotations. "
        f"{escape(study.registration, 400)}"
    ]


def _group(study: Study, key: tuple[str, str, str], rows: pd.DataFrame) -> Iterator[str]:
    own = study.verdicts[(study.verdicts[stats.GROUP] == list(key)).all(axis=1)]
    if not own.empty:
        yield from ("### The verdict at each setting", "", *answer_tables.verdicts(own), "")
        yield from (f"- {_at(row)}: {_reasons(row)}" for _, row in own.iterrows())
        yield ""
    yield from ("### All methods against the full cache", "", EXPLORATORY, "")
    yield from (*answer_tables.differences(rows), "")
    yield from (
        "### The planned and the closest comparisons in full",
        "",
        *answer_tables.tests(rows, study.plan),
        "",
    )
    effects = study.ablation
    if not effects.empty:
        effects = effects[(effects[stats.GROUP] == list(key)).all(axis=1)]
    if not effects.empty:
        yield from ("### The ablation of the smoothing", "", *answer_tables.ablation(effects), "")
    fell = study.weights
    if not fell.empty:
        fell = fell[(fell[stats.GROUP] == list(key)).all(axis=1)]
        yield from ("### Where the weight of the observation window fell, in percent", "")
        yield from (*answer_tables.weights(fell), "")


def _at(row: pd.Series) -> str:
    return f"**{tables.setting(row)}**"


def _reasons(row: pd.Series) -> str:
    same = row["reason"] == row["smoothing_reason"]
    parts = [row["reason"]] if same else [row["reason"], row["smoothing_reason"]]
    return escape(" ".join(parts), 1500)
