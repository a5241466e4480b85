"""The checks of the plan: its numbers, the labels that it names, its contrasts and its question.

Knows the methods by the files in conf/ alone.
"""

import re
from collections.abc import Mapping, Sequence, Set

from harness.errors import UserError
from harness.settings.bounds import at_most
from harness.settings.config import CONF, AnalysisConfig, ContrastConfig

ASKED = {"method", "score", "tasks", "model", "above"}  # what a question may name


def check_analysis(analysis: AnalysisConfig, methods: Mapping[str, object]) -> None:
    """Raise UserError for a plan that no run could follow.

    Args:
        analysis: the plan.
        methods: by label, those that were chosen.
    """
    limits = {
        "margin": (0.01, 99.99),
        "alpha": (1e-6, 0.499),
        "power": (0.01, 0.9999),
        "above": (-0.999, 0.999),
    }
    for name, (low, high) in limits.items():
        value = getattr(analysis, name)
        if not low <= value <= high:
            raise UserError(
                f"analysis.{name}={value:g} is out of range: use a number from {low:g} to {high:g}."
            )
    known = {*methods, *(path.stem for path in (CONF / "method").glob("*.yaml"))} - {"full"}
    for name in ("method", "control"):
        label = getattr(analysis, name)
        if label not in known:
            raise UserError(
                f"analysis.{name}={label} is no method: name one of those chosen "
                f"({', '.join(methods)}), or another label that evictbench --help lists."
            )
    _check_contrasts(analysis.contrasts, known)
    for text in (analysis.question, *(pair.asks for pair in analysis.contrasts)):
        if unknown := {*re.findall(r"{(.*?)}", text)} - ASKED:
            raise UserError(
                f"The question {text!r} has {{{min(unknown)}}}: what may stand in brackets is "
                f"{', '.join(sorted(ASKED))}."
            )
    if analysis.control == analysis.method:
        raise UserError(
            f"analysis.control={analysis.control} is the method that the question is about: name "
            "another, such as random."
        )
    if analysis.resamples < 100:
        raise UserError(
            f"analysis.resamples={analysis.resamples} is too few for an interval: use 100 or more."
        )
    at_most("analysis.resamples", analysis.resamples, 100_000)


def _check_contrasts(contrasts: Sequence[ContrastConfig], known: Set[str]) -> None:
    for place, pair in enumerate(contrasts):
        name = f"analysis.contrasts[{place}]"
        missing = [part for part in ("label", "against", "called") if not getattr(pair, part)]
        if missing:
            raise UserError(
                f"{name} has no {missing[0]}: give label, against and called, such as "
                "{label: restkv, against: snapkv, called: reconstruction, varies: [method]}."
            )
        for label in (pair.label, pair.against):
            if label not in known:
                raise UserError(
                    f"{name} compares {label}, which is no method: name a label that is chosen."
                )
        if pair.label == pair.against:
            raise UserError(f"{name} compares {pair.label} with itself: name another label.")
        if any((one.label, one.against) == (pair.label, pair.against) for one in contrasts[:place]):
            raise UserError(
                f"{name} compares {pair.label} with {pair.against} once more: leave it out."
            )
