"""What is asked of the numbers, fixed before they are there.

Must not know samples or settings files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pair:
    """Two labels that are compared at each setting: what `label` does beside `against`.

    called: what makes the difference, as the subject of a sentence. varies: parameters in which the
    two differ. asks: the question of a run whose `Plan.method` is `label`, a template as
    `Plan.question` is; empty: none of its own.
    """

    label: str
    against: str
    called: str
    varies: tuple[str, ...] = ()
    asks: str = ""


SMOOTHING = Pair(
    label="restkv",
    against="restkv_neither",
    called="smoothing",
    varies=("temporal", "alpha", "spatial", "kernel", "scale", "relative_scale"),
    asks="Does ReST-KV's spatial-temporal smoothing keep {score} when more than {above} of "
    "{model}'s KV cache is evicted?",
)


@dataclass(frozen=True)
class Plan:
    """The preregistered analysis.

    method: the label that the question is about. control: the label whose loss shows that the task
    can tell methods apart. margin: the largest loss of the mean score, as a fraction, that still
    counts as keeping it. alpha: one-sided level of the tests. power: at which the smallest
    detectable loss is stated. above: the family holds the method's cells that evict more than this
    share. resamples, seed: of the cluster bootstrap. contrasts: pairs of labels that are compared.
    question: what is asked, with {method}, {score}, {tasks}, {model} and {above} for what they
    stand for; empty: whether the method keeps the score, or what its own contrast asks.
    """

    method: str = "restkv"
    control: str = "random"
    margin: float = 0.02
    alpha: float = 0.05
    power: float = 0.8
    above: float = 0.5
    resamples: int = 9999
    seed: int = 0
    contrasts: tuple[Pair, ...] = (SMOOTHING,)
    question: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Plan":
        """The plan that `dataclasses.asdict` wrote, read back from JSON."""
        given = dict(values)
        if "contrasts" in given:
            given["contrasts"] = tuple(map(_pair, given["contrasts"]))
        return cls(**given)

    @property
    def own(self) -> Pair | None:
        """The contrast of the method that the question is about; None where it has none."""
        return next((pair for pair in self.contrasts if pair.label == self.method), None)


def _pair(given: Pair | Mapping[str, Any]) -> Pair:
    if isinstance(given, Pair):
        return given
    return Pair(**{**given, "varies": tuple(given.get("varies", ()))})
