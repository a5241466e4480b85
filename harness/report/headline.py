"""The verdict in plain sentences, from the verdicts and the contrasts of a study.

Says what the tables rule and adds nothing to it. Must not know files or how a page is laid out.
"""

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from harness.report import honesty, tables
from harness.report.contrasts import COSTS, HELPS, SAME
from harness.report.rulings import CANNOT_TELL, WORDS
from harness.report.study import Study
from harness.report.verdicts import READINGS
from harness.stats.plan import Pair

#: When each protocol of protocol=both evicts, as a sentence begins.
WHEN = {
    "replay": "Evicted after the question is read (replay)",
    "context": "Evicted before the question is read (context)",
}
READ = "Read by "  # how such a sentence begins where prompts are read in several ways
REASONS = 2  # that the headline gives one by one


def headline(study: Study) -> tuple[str, ...]:
    """Sentences: whether the score is kept, and what each contrast of the plan does.

    A plan with a question of its own is about its contrasts, which then come first.
    """
    said = [sentence for where, part in _apart(study) for sentence in _judged(part, where)]
    said += honesty.whole(study.cells)
    if study.unfinished:
        done, total = map(sum, zip(*study.unfinished.values(), strict=True))
        said[0] = f"So far ({done:,} of {total:,} questions): {said[0]}"
    return tuple(map(_once, said))


def leads(sentence: str) -> bool:
    """Whether a sentence begins what is said of one of several protocols or prefills."""
    return sentence.removeprefix("Exploratory: ").startswith((*WHEN.values(), READ))


def _where(protocol: str, several: bool) -> str:
    """How a sentence begins that is about one protocol; several: prefills."""
    when, _, read = protocol.partition("+")
    said = WHEN.get(when, f"Evicted under {when}")
    by = read or "a dense prefill"
    return f"{READ}{by}, {said[0].lower()}{said[1:]}" if several else said


def _apart(study: Study) -> list[tuple[str, Study]]:
    """Where the runs differ by their protocol or prefill alone, each with when it evicts and how it
    reads; else the study.
    """
    if tables.differing(study.cells) != ["protocol"]:
        return [("", study)]
    frames = ("cells", "verdicts", "contrasts")
    several = any("+" in protocol for protocol in study.cells["protocol"])
    return [
        (
            _where(protocol, several),
            replace(study, **{name: _under(study, name, protocol) for name in frames}),
        )
        for protocol in study.cells["protocol"].unique()
    ]


def _under(study: Study, name: str, protocol: str) -> pd.DataFrame:
    frame: pd.DataFrame = getattr(study, name)
    return frame[frame["protocol"] == protocol] if len(frame) else frame


def _judged(study: Study, where: str) -> Iterator[str]:
    """What is said of the score and of each contrast, the first with where that is, and with
    whether it is exploratory.
    """
    kept, effects = list(_kept(study)), list(_effects(study))
    first, *others = [*effects, *kept] if study.plan.question else [*kept, *effects]
    before = ["" if study.registered else "Exploratory", where]
    yield ": ".join([*filter(None, before), first])
    yield from others


def _once(sentence: str) -> str:
    """Say "eviction" behind the first percentage alone."""
    first, word, rest = sentence.partition(" % eviction")
    return first + word + rest.replace(" % eviction", " %")


def settings(rows: pd.DataFrame) -> str:
    """Where, such as "at 70, 80 and 90 % eviction" or "with 16 and 64 kept tokens"."""
    ratios = list(dict.fromkeys(rows["ratio"].dropna()))
    budgets = list(dict.fromkeys(rows.loc[rows["ratio"].isna(), "budget"].dropna()))
    parts = []
    if ratios:
        parts.append(f"at {tables.listed([f'{100 * ratio:g}' for ratio in ratios])} % eviction")
    if budgets:
        names = tables.listed([f"{int(budget):,}" for budget in budgets])
        parts.append(f"with {names} kept token{'s' if budgets != [1] else ''}")
    return " and ".join(parts)


def _kept(study: Study) -> Iterator[str]:
    """Whether the method asked about keeps the score."""
    if study.verdicts.empty:
        yield _nothing(study)
        return
    yield _kept_in_many(study) if _several(study) else _kept_in_one(study)
    yield from _otherwise(study, study.verdicts, "verdict", "")


def _several(study: Study) -> bool:
    """Whether the study is of more than one model, task and protocol."""
    return bool(tables.differing(study.cells))


def _kinds(study: Study) -> str:
    """What settings are of, such as "task and eviction"."""
    return tables.listed([*tables.differing(study.cells), "eviction"])


def _name(study: Study, label: str | None = None) -> str:
    label = study.plan.method if label is None else label
    return study.titles.get(label, label)


def _score(study: Study) -> str:
    return "accuracy" if study.cells["metric"].eq("accuracy").all() else "its score"


def _margin(study: Study) -> str:
    return f"within {tables.margin(study.plan)}"


def _points(rows: pd.DataFrame, column: str = "difference") -> str:
    """The size of differences: "12.7 points", or "3.1 to 12.7 points"."""
    sizes = sorted({f"{abs(100 * value):.1f}" for value in rows[column]}, key=float)
    return f"{' to '.join(dict.fromkeys([sizes[0], sizes[-1]]))} points"


def _kept_in_one(study: Study) -> str:
    rows, name = study.verdicts, _name(study)
    kept, lost, unknown = (rows[rows["verdict"] == one] for one in WORDS)
    parts = []
    if len(kept):
        parts.append(f"keeps {_score(study)} ({_margin(study)}) {settings(kept)}")
    if len(lost):
        of = "" if len(kept) else f" of {_score(study)}"
        parts.append(f"loses {_points(lost)}{of} {settings(lost)}")
    if not parts:
        lead = f"Cannot tell whether {name} keeps {_score(study)}"
        return _unknown(lead, unknown, settings(unknown), False)
    said = f"{name} {' and '.join(parts)}."
    if len(unknown):
        said += f" {_unknown('Cannot tell', unknown, settings(unknown), False)}"
    return said


def _kept_in_many(study: Study) -> str:
    """The same over several models, tasks or protocols, counted."""
    rows, name = study.verdicts, _name(study)
    kept, lost, unknown = (rows[rows["verdict"] == one] for one in WORDS)
    total = f"{len(rows)} settings of {_kinds(study)}"
    parts = []
    if len(kept):
        parts.append(f"keeps {_score(study)} ({_margin(study)}) in {len(kept)}")
    if len(lost):
        worst = lost.loc[lost["difference"].idxmin()]
        here = lost.loc[[worst.name]]
        differ = tables.differing(study.cells)
        place = ", ".join(tables.short(worst[name]) for name in differ)
        most = f"{_points(here)} on {place} {settings(here)}"
        parts.append(f"loses more in {len(lost)} (the most: {most})")
    if not parts:
        asked = f"Cannot tell whether {name} keeps {_score(study)} in any of {total}"
        return f"{asked}: {_why(unknown, True)}."
    said = f"Of {total}, {name} {' and '.join(parts)}."
    if len(unknown):
        said += f" Cannot tell in {len(unknown)}: {_why(unknown, True)}."
    return said


def _otherwise(study: Study, rows: pd.DataFrame, column: str, about: str) -> Iterator[str]:
    """What the other reading of the answers makes of it, where any setting comes out another."""
    if f"{column}_other" not in rows:
        return
    second = rows[f"{column}_other"]
    differ = rows[second.notna() & second.ne(rows[column])]
    if differ.empty:
        return
    used = set(study.samples.get("extraction", pd.Series(dtype=str)).dropna())
    name = READINGS.get(used.pop(), "") if len(used) == 1 else ""
    rule = f"extraction={name}" if name else "the other rule"
    parts = []
    for verdict, part in differ.groupby(f"{column}_other", sort=False):
        where = f"in {len(part)} of {len(rows)} settings" if _several(study) else settings(part)
        parts.append(f"{WORDS.get(str(verdict), verdict)} {where}")
    yield f"Read by {rule} {about or 'it'} comes out otherwise: {tables.listed(parts)}."


def _nothing(study: Study) -> str:
    """Why there is no setting to judge."""
    name, above = _name(study), f"{100 * study.plan.above:g} %"
    ran = tables.compressed(study.cells)
    if ran.empty:
        why = "this run holds no compressed cell"
    elif study.plan.method not in set(ran["method"]):
        why = f"{name}, which the question is about, was not run"
    else:
        why = f"{name} was run at no setting that evicts more than {above}"
    return f"Cannot tell whether {name} keeps {_score(study)}: {why}."


def _effects(study: Study) -> Iterator[str]:
    """A sentence for each pair of the plan that was run."""
    said = 0
    for pair in study.plan.contrasts:
        rows = study.contrasts
        if len(rows):
            rows = rows[rows["label"].eq(pair.label) & rows["against"].eq(pair.against)]
        if len(rows):
            said += 1
            yield _effect(study, pair, rows)
            yield from _otherwise(study, rows, "effect", _called(study, pair))
    if study.plan.question and study.plan.contrasts and not said:
        yield (
            "Cannot tell: no pair that the question is about was run at a setting that evicts more "
            f"than {100 * study.plan.above:g} %."
        )


def _called(study: Study, pair: Pair) -> str:
    """What makes the difference, and between which labels where it is not the method's own."""
    if pair is study.plan.own and not study.plan.question:
        return f"its {pair.called}"
    return f"{pair.called} ({_name(study, pair.label)} against {_name(study, pair.against)})"


def _effect(study: Study, pair: Pair, rows: pd.DataFrame) -> str:
    called = _called(study, pair)
    found = {one: rows[rows["effect"] == one] for one in (HELPS, COSTS, SAME, CANNOT_TELL)}
    several = _several(study)

    def where(part: pd.DataFrame) -> str:
        return f"in {len(part)} of {len(rows)} settings" if several else settings(part)

    parts = []
    if len(found[HELPS]):
        parts.append(f"adds {_points(found[HELPS])} {where(found[HELPS])}")
    if len(found[COSTS]):
        parts.append(f"costs {_points(found[COSTS])} {where(found[COSTS])}")
    if len(found[SAME]):
        parts.append(f"makes no difference ({_margin(study)}) {where(found[SAME])}")
    unknown = found[CANNOT_TELL]
    if not parts:
        lead = f"Cannot tell what {called} does"
        return _unknown(lead, unknown, where(unknown), several) + _window(pair, rows)
    text = tables.listed(parts)
    subject = called[0].upper() + called[1:]
    said = f"{subject} {text}."
    if len(found[COSTS]) and not len(found[HELPS]):
        said = f"{subject} does not help: it {text}."
    elif len(found[HELPS]) and not len(found[COSTS]):
        said = f"{subject} helps: it {text}."
    if len(unknown):
        said += f" {_unknown('Cannot tell', unknown, where(unknown), several)}"
    return said + _window(pair, rows)


def _window(pair: Pair, rows: pd.DataFrame) -> str:
    """How often the adaptive window was at work; nothing of a pair that does not vary it."""
    active = rows["adaptive_active"].dropna()
    if "spatial" not in pair.varies or active.empty:
        return ""
    if (active == 0).all():
        return " Its adaptive window was never at work: this tests a fixed pool."
    return f" Its adaptive window was at work in {tables.percent(active.mean())} % of the heads."


def _unknown(lead: str, rows: pd.DataFrame, where: str, several: bool) -> str:
    """What cannot be told, where and why."""
    why = _why(rows, several)
    if why.startswith(("at ", "with ")):  # each reason says where itself
        return f"{lead}: {why}."
    return f"{lead} {where}: {why}."


def _why(rows: pd.DataFrame, several: bool) -> str:
    """The reason in a few words, or up to `REASONS` with where each counts.

    several: whether settings alone do not say where, since there are several tasks.
    """
    reasons = {str(why): part for why, part in rows.groupby(rows["why"].fillna(""), sort=False)}
    if len(reasons) == 1:
        return next(iter(reasons)) or "the table says why"
    if len(reasons) > REASONS or "" in reasons or several:
        return "the table says why"
    return "; ".join(f"{settings(part)}, {why}" for why, part in reasons.items())
