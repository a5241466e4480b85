"""answer.md: the verdict in plain sentences, the table behind it, what the data does not say.

Written by rules from a `Study`. Must not know files.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain

import pandas as pd

from harness import stats
from harness.report import (
    answer_tables,
    honesty,
    prefills,
    protocols,
    published,
    summary,
    tables,
    verdict_tables,
)
from harness.report.headline import headline, leads
from harness.report.study import Study
from harness.report.tables import escape

EXPLORATORY = (
    "Every setting in this table is compared with the full cache; only those of the plan are "
    "corrected for being several (Holm), all others are exploratory."
)


def limits(study: Study) -> Iterator[str]:
    """What the data does not say, and what weakens it, in sentences."""
    for key, group in tables.groups(study.cells):
        own = stats.of(study.samples, key)
        named = dict(zip(stats.GROUP, key, strict=True))
        place = ", ".join(tables.short(named[name]) for name in tables.differing(study.cells))
        lead = f"{place}: " if place else ""
        for sentence in honesty.sentences(own, group, _computed(study)):
            yield lead + sentence
        yield lead + honesty.window(group)
    if {*map(protocols.when, study.cells["protocol"])} == {"replay"}:
        yield (
            "Under replay the last prompt tokens have read the whole prompt before anything is "
            "evicted, so a method can keep an answer by keeping them; protocol=context is harder."
        )
    yield from study.told


def _computed(study: Study) -> dict[str, object]:
    return {"settings": study.provenance.get("settings", {})}


def text(study: Study, limited: Iterable[str] | None = None) -> str:
    """The whole of answer.md; `limited` is what `limits` says, where it is known already."""
    limited = limits(study) if limited is None else limited
    said = [
        f"**{escape(one, 1200)}**" if not number or leads(one) else escape(one, 1200)
        for number, one in enumerate(headline(study))
    ]
    lines = [f"# {escape(study.question, 400)}", ""]
    lines += [f"*{escape(study.warning, 600)}*", ""] if study.warning else []
    lines += [" ".join(said), "", f"Run: {escape(study.name)}.", ""]
    lines += [*_plan(study), ""]
    beside = (protocols.side_by_side(study.cells), prefills.of(study), published.of(study))
    for rows in chain(*beside):
        lines += answer_tables.beside(rows)
    for key, rows in tables.groups(study.comparisons):
        if tables.differing(study.cells):
            lines += [f"## {escape(key[1])}, protocol {escape(key[2])}", ""]
        lines += list(_group(study, key, rows))
    lines += ["## What the data does not say", ""]
    lines += [f"- {escape(sentence, summary.SENTENCE)}" for sentence in limited]
    if not study.claims.empty:
        lines += ["", "## Claims of the paper", "", *answer_tables.claims(study.claims)]
    lines += ["", "## To reproduce", "", *_reproduce(study), ""]
    return "\n".join(lines)


def _reproduce(study: Study) -> Iterator[str]:
    """The command, and the versions and the machine that the answers come from."""
    command = str(study.provenance.get("command", ""))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    yield from (fence, command, fence)
    software = study.provenance.get("software")
    versions = dict(software) if isinstance(software, Mapping) else {}
    source = versions.pop("source", None)
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    said += f" (source {source})" if source else ""
    if place := study.provenance.get("computed on"):
        said += f", on {place}"
    if said:
        yield from ("", f"With {escape(said, 600)}.")


def _plan(study: Study) -> list[str]:
    plan = study.plan
    return [
        f"Plan: {escape(plan.method)} may lose {100 * plan.margin:g} points of the score "
        f"(non-inferiority, one-sided level {plan.alpha:g}, Holm over the settings of a task and "
        f"protocol that evict more than {100 * plan.above:g} %), and the unit is the "
        "question with all its rotations. "
        f"{escape(study.registration, 400)}"
    ]


def _group(study: Study, key: tuple[str, str, str], rows: pd.DataFrame) -> Iterator[str]:
    alone = replace(study, cells=stats.of(study.cells, key))
    verdicts, contrasts = stats.of(study.verdicts, key), stats.of(study.contrasts, key)
    if not verdicts.empty:
        yield from answer_tables.ruled(verdict_tables.kept(alone, verdicts))
    if not contrasts.empty:
        yield from answer_tables.ruled(verdict_tables.effects(alone, contrasts))
    yield from ("### All methods against the full cache", "", EXPLORATORY, "")
    yield from (*answer_tables.differences(rows), "")
    yield from (
        "### The planned and the closest comparisons in full",
        "",
        *answer_tables.tests(rows, study.plan),
        "",
    )
    effects = stats.of(study.ablation, key)
    if not effects.empty:
        yield from ("### The ablation of the smoothing", "", *answer_tables.ablation(effects), "")
    fell = stats.of(study.weights, key)
    if not fell.empty:
        yield from ("### Where the weight of the observation window fell, in percent", "")
        yield from (*answer_tables.weights(fell), "")
