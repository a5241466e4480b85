"""Names of everything that a run logs, so that a workspace cannot ask for anything else.

Knows labels and numbers as text; must not know frames or wandb.
"""

import re
from collections.abc import Iterable

RATIO, BUDGET = "ratio", "budget"  # the horizontal axes: evicted fraction, kept tokens a head
AXES = (RATIO, BUDGET)
ACCURACY = ("accuracy", "accuracy_low", "accuracy_high")
DIFFERENCE = ("difference", "difference_low", "difference_high")
ABLATION = ("ablation", "ablation_low", "ablation_high")
VACUOUS = "vacuous"
REFERENCE = "reference"
REFERENCES = {"full cache": "full_cache", "blank image": "blank_image"}
CURVES = (*ACCURACY, *DIFFERENCE, *ABLATION, VACUOUS)
FRAMES = ("cells", "comparisons", "ablation", "verdicts", "contrasts", "abilities", "means")
SAMPLES, FLIPS = "samples", "flips"
TABLES = (*FRAMES, SAMPLES, FLIPS)
CURVE, MEAN, HEATMAP = "curve", "curve_mean", "heatmap"
PICTURES = (CURVE, MEAN, HEATMAP)
VERDICT, SMOOTHING = "verdict", "smoothing"  # in the summary: all settings in one line


def metric(kind: str, name: str, axis: str = RATIO) -> str:
    """The key of a line: "accuracy/restkv" against the ratio, "accuracy_by_budget/restkv".

    A metric has one horizontal axis, so a line against the budget is a metric of its own.
    """
    return f"{kind}/{name}" if axis == RATIO else f"{kind}_by_{axis}/{name}"


def plain(text: str) -> str:
    """Letters, digits and underscores: wandb sorts and filters by no other name."""
    return re.sub(r"\W+", "_", text, flags=re.ASCII)


def names(labels: Iterable[str]) -> dict[str, str]:
    """A plain name for each label; a number follows where two would share one."""
    found: dict[str, str] = {}
    for label in labels:
        name, number = plain(label), 1
        while name in found.values():
            number += 1
            name = f"{plain(label)}_{number}"
        found[label] = name
    return found


def contrast(text: str) -> str:
    """The name of an ablation's contrast: "ema - mean" as "ema_vs_mean"."""
    return plain(text.replace(" - ", " vs "))
