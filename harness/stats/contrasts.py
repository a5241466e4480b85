"""Which cells say what a part of the smoothing is worth: contrasts as weighted sums of scores.

Knows the levels of the two factors; must not know samples.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LEVELS = {"temporal": ("mean", "ema"), "spatial": ("none", "avg", "adaptive", "relative")}
STEPS = {
    "temporal": (("ema", "mean"),),
    "spatial": (
        ("avg", "none"), ("adaptive", "none"), ("adaptive", "avg"), ("relative", "none"),
        ("relative", "adaptive"),
    ),
}  # fmt: skip
ADAPTIVE_PART = ("adaptive - avg", "relative - adaptive")
Kind = tuple[str, str]  # (temporal, spatial)


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of scores: weights by what tells the cells apart, (temporal, spatial) here."""

    effect: str
    contrast: str
    given: str
    weights: Mapping[Any, float]
    pair: bool = False  # one label beside another, which is what is asked about

    @property
    def bound(self) -> float:
        """The largest difference that scores between 0 and 1 allow."""
        return sum(map(abs, self.weights.values())) / 2


def contrasts(kinds: set[Kind]) -> Iterator[Contrast]:
    """All contrasts of the cells that are there: simple effects, main effects, interactions."""
    for effect, steps in STEPS.items():
        other = "spatial" if effect == "temporal" else "temporal"
        for step in steps:
            name, pairs = " - ".join(step), {}
            for level in LEVELS[other]:
                pair = [_kind(effect, one, level) for one in step]
                if kinds.issuperset(pair):
                    pairs[level] = dict(zip(pair, (1.0, -1.0), strict=True))
                    yield Contrast(effect, name, f"{other}={level}", pairs[level])
            if len(pairs) > 1:
                mean = {k: w / len(pairs) for pair in pairs.values() for k, w in pair.items()}
                yield Contrast(effect, name, f"mean of {len(pairs)}", mean)
    for level in LEVELS["spatial"][1:]:
        weights = {
            ("ema", level): 1.0, ("mean", level): -1.0,
            ("ema", "none"): -1.0, ("mean", "none"): 1.0,
        }  # fmt: skip
        if kinds.issuperset(weights):
            yield Contrast("interaction", f"ema - mean, {level} - none", "", weights)
    whole = {("ema", "adaptive"): 1.0, ("mean", "none"): -1.0}
    if kinds.issuperset(whole):
        yield Contrast("smoothing", "ema+adaptive - mean+none", "", whole)


def _kind(effect: str, level: str, other: str) -> Kind:
    return (level, other) if effect == "temporal" else (other, level)
