"""What is asked of the numbers, fixed before they are there.

Must not know samples or settings files.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """The preregistered analysis.

    method: the label that the question is about. control: the label whose loss shows that the task
    can tell methods apart. margin: the largest loss of the mean score, as a fraction, that still
    counts as keeping it. alpha: one-sided level of the tests. power: at which the smallest
    detectable loss is stated. above: the family holds the method's cells that evict more than this
    share. resamples, seed: of the cluster bootstrap.
    """

    method: str = "restkv"
    control: str = "random"
    margin: float = 0.02
    alpha: float = 0.05
    power: float = 0.8
    above: float = 0.5
    resamples: int = 9999
    seed: int = 0
