"""Everything that an answer is written from, in one place.

Holds frames and plain values; must not know how they came about or how they are shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from harness.stats.plan import Plan


@dataclass(frozen=True)
class Study:
    """One run, ready to be written up.

    samples, cells, abilities, means, comparisons, ablation: frames of `harness.stats`. verdicts: a
    row a setting of the method asked about (`harness.report.verdicts`). contrasts: a row a setting
    of each pair of the plan (`harness.report.contrasts`). titles: label to the method's name as it
    is written. methods: label to method and parameters. traits: label to what kind of method it is
    (`settings.variants.traits`). standings: how methods compare (`stats.standings`), a row a model,
    task and method. prompts, kept: what the chosen rows looked
    like and what each cell kept of them, empty where the run recorded none. weights: where the
    observation windows' weight fell (`harness.report.weights`). claims: rows of the ledger.
    registered: whether the plan was on record before the first answer; registration says so in a
    sentence. told: sentences about the settings. provenance: nested plain values, the same on every
    report of the same answers. session: what only this report's own run knows, for the summary.
    images: folder of the pictures that prompts name. unfinished: by task, how many of its questions
    the samples hold and how many are asked; empty where all are there.
    """

    name: str
    question: str
    plan: Plan
    samples: pd.DataFrame
    cells: pd.DataFrame
    abilities: pd.DataFrame
    means: pd.DataFrame
    comparisons: pd.DataFrame
    ablation: pd.DataFrame
    verdicts: pd.DataFrame
    contrasts: pd.DataFrame = field(default_factory=pd.DataFrame)
    titles: Mapping[str, str] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    traits: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    standings: pd.DataFrame = field(default_factory=pd.DataFrame)
    prompts: pd.DataFrame = field(default_factory=pd.DataFrame)
    kept: pd.DataFrame = field(default_factory=pd.DataFrame)
    weights: pd.DataFrame = field(default_factory=pd.DataFrame)
    claims: pd.DataFrame = field(default_factory=pd.DataFrame)
    registered: bool = False
    registration: str = ""
    told: tuple[str, ...] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)
    session: Mapping[str, object] = field(default_factory=dict)
    caveat: str = ""
    images: Path | None = None
    unfinished: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def warning(self) -> str:
        """What stands below the title: how much is missing, and the caveat of model or data."""
        counts = [
            f"{done:,} of {total:,} questions of {task}"
            for task, (done, total) in self.unfinished.items()
        ]
        if not counts:
            return self.caveat
        said = (
            f"Unfinished: {', '.join(counts)} are answered. Everything here is about those alone "
            "and may still change."
        )
        return f"{said} {self.caveat}".strip()
