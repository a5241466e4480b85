"""Do intervals and tests keep what they promise? Coverage, size and power by simulation.

    python -m scripts.simulate_statistics --runs 2000

Questions of 2 to 4 rotations, answered by a full cache and by a cell. In a share `together` of the
questions all rotations come out alike, in the rest each for itself, so that `together` is the
correlation within a question. A fifth of the full cache's wrong answers are gained, and as many
right ones lost as the true difference asks for. Prints three Markdown tables, the first of exact
worst-case sizes at few questions (`--only size` prints it alone, in under a minute); needs numpy,
pandas, scipy and statsmodels only.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd

from harness.stats.comparisons import changed_questions
from harness.stats.paired import paired
from harness.stats.plan import Plan
from harness.stats.power import detectable_loss, questions_needed
from harness.stats.resampling import ratio_intervals
from scripts import worst_size

BATCH = 100  # runs that share rotations and resamples
QUESTIONS = (40, 324)
ACCURACIES = (0.8, 0.9, 0.99)
DIFFERENCES = (0.0, -0.02, -0.1)
TOGETHER = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Setting:
    """The truth: accuracy of the full cache, and the cell's difference from it."""

    questions: int
    accuracy: float
    difference: float
    together: float


@dataclass(frozen=True)
class Drawn:
    """Answers of many runs: full and cell, bool [runs, rows], sorted by question [rows]."""

    question: np.ndarray
    full: np.ndarray
    cell: np.ndarray

    def differences(self) -> np.ndarray:
        """Score of the cell less the full cache's, float64 [runs, rows]."""
        return self.cell.astype(float) - self.full

    def circular(self, answers: np.ndarray) -> pd.DataFrame:
        """Whether all rotations are right: 1.0 or 0.0, a row a question and a column a run."""
        starts = np.flatnonzero(np.diff(self.question, prepend=-1))
        return pd.DataFrame(np.logical_and.reduceat(answers, starts, axis=1).T.astype(float))


def draw(setting: Setting, runs: int, rng: np.random.Generator) -> Drawn:
    """`runs` sweeps over the same questions."""
    sizes = rng.integers(2, 5, setting.questions)
    question = np.repeat(np.arange(setting.questions), sizes)
    alike = rng.random((runs, setting.questions))[:, question]
    joint = (rng.random((runs, setting.questions)) < setting.together)[:, question]
    chance = np.where(joint, alike, rng.random((runs, question.size)))
    gained = 0.2 * (1 - setting.accuracy)
    lost = gained - setting.difference
    full = chance < setting.accuracy
    # Right before and wrong after below `lost`, wrong before and right after above 1 - `gained`.
    return Drawn(question, full, (full & (chance >= lost)) | (chance >= 1 - gained))


def batches(setting: Setting, runs: int, seed: int) -> Iterator[Drawn]:
    """Batches of runs, each over questions of its own."""
    rng = np.random.default_rng([seed, setting.questions])
    for start in range(0, runs, BATCH):
        yield draw(setting, min(BATCH, runs - start), rng)


def measure(setting: Setting, runs: int, seed: int, plan: Plan) -> dict[str, float]:
    """Shares of the runs: the truth inside the 95 % intervals, and tests that reject.

    score, bootstrap: coverage. at_truth: rejections of "the loss is the true loss or more" at
    `plan.alpha`. margin: rejections of "the loss is the margin or more". equal: rejections of "no
    difference" at 0.05, mcnemar: the same of the circular counts by McNemar's test.
    """
    found: list[dict[str, float]] = []
    for batch, drawn in enumerate(batches(setting, runs, seed)):
        values, truth = drawn.differences(), setting.difference
        ones = np.ones_like(values)
        limits = ratio_intervals(values, ones, drawn.question, plan.resamples, seed + batch)
        circular = drawn.circular(drawn.cell), drawn.circular(drawn.full)
        for run, (row, (low, high)) in enumerate(zip(values, limits, strict=True)):
            one = paired(row, drawn.question)
            score_low, score_high = one.interval()
            found.append(
                {
                    "score": score_low <= truth <= score_high,
                    "bootstrap": low <= truth <= high,
                    "width": score_high - score_low,
                    "bootstrap_width": high - low,
                    "at_truth": one.p_above(truth) < plan.alpha,
                    "margin": one.p_above(-plan.margin) < plan.alpha,
                    "equal": one.p_equal() < 0.05,
                    "mcnemar": changed_questions(*(c[run] for c in circular))["p_mcnemar"] < 0.05,
                }
            )
    return pd.DataFrame(found).astype(float).mean().to_dict()


def promised(setting: Setting, runs: int, seed: int, plan: Plan) -> dict[str, float]:
    """How often what was promised is kept, in runs without a true difference but for the promise.

    detectable: median of the stated smallest loss; shown: how often a loss of that size is shown.
    needed: median of the stated number of questions; kept: how often that many show
    non-inferiority.
    """
    summaries = [
        paired(row, drawn.question)
        for drawn in batches(replace(setting, difference=0.0), runs, seed)
        for row in drawn.differences()
    ]
    losses = [detectable_loss(one, plan.alpha, plan.power) for one in summaries]
    counts = [questions_needed(one, plan.margin, plan.alpha, plan.power) for one in summaries]
    detectable, needed = float(np.median(losses)), int(np.median(np.array(counts, dtype=float)))
    shown = [
        1 - paired(row, drawn.question).p_above(0.0) < plan.alpha
        for drawn in batches(replace(setting, difference=-detectable), runs, seed + 1)
        for row in drawn.differences()
    ]
    kept = [
        paired(row, drawn.question).p_above(-plan.margin) < plan.alpha
        for drawn in batches(replace(setting, questions=needed, difference=0.0), runs, seed + 2)
        for row in drawn.differences()
    ]
    return {
        "detectable": detectable,
        "shown": float(np.mean(shown)),
        "needed": needed,
        "kept": float(np.mean(kept)),
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000, help="simulated sweeps a setting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("size", "coverage", "power"), help="one table alone")
    options = parser.parse_args()
    plan = Plan()
    if options.only in (None, "size"):
        _sizes(plan)
    if options.only in (None, "coverage"):
        _coverage(options, plan)
    if options.only in (None, "power"):
        _power(options, plan)


def _sizes(plan: Plan) -> None:
    print(
        f"Worst case over what may change, exact: how often a loss of just {plan.margin} is called "
        f"less or more than that at the one-sided level {plan.alpha}.\n"
    )
    for line in worst_size.lines(plan.margin, plan.alpha):
        print(line, flush=True)
    print()


def _coverage(options: argparse.Namespace, plan: Plan) -> None:
    names = ["score", "bootstrap", "width", "bootstrap_width", "at_truth", "margin"]
    names += ["equal", "mcnemar"]
    print(
        f"{options.runs:,} runs a setting, {plan.resamples:,} resamples. 95 % intervals: coverage "
        "(nominal 0.95) and mean width in points. Rejections: at the true loss (nominal "
        f"{plan.alpha}), at a margin of {plan.margin}, of no difference (two-sided, nominal 0.05 "
        "where there is none), McNemar's of circular correctness (likewise).\n"
    )
    print(
        "| questions | accuracy | difference | together | score | bootstrap | width | bootstrap's "
        "| at the true loss | at the margin | of no difference | McNemar |\n" + "|---:" * 12 + "|"
    )
    for truth in product(QUESTIONS, ACCURACIES, DIFFERENCES, TOGETHER):
        rates = measure(Setting(*truth), options.runs, options.seed, plan)
        shares = [f"{100 * rates[n]:.1f}" if "width" in n else f"{rates[n]:.3f}" for n in names]
        print(f"| {' | '.join([*map(str, truth), *shares])} |", flush=True)


def _power(options: argparse.Namespace, plan: Plan) -> None:
    print(
        "\nPromises of power (0.8): the stated smallest loss and how often it is shown, the stated "
        f"number of questions for a margin of {plan.margin} and how often that many show it.\n\n"
        "| questions | accuracy | together | detectable | shown | needed | shown |\n"
        + "|---:" * 7
        + "|"
    )
    for questions, accuracy, together in product(QUESTIONS, ACCURACIES, TOGETHER):
        setting = Setting(questions, accuracy, 0.0, together)
        kept = promised(setting, min(options.runs, 500), options.seed, plan)
        print(
            f"| {questions} | {accuracy} | {together} | {100 * kept['detectable']:.1f} "
            f"| {kept['shown']:.3f} | {kept['needed']:,} | {kept['kept']:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
