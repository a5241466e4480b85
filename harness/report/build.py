"""A study from samples and the manifest of their run; a folder's files read back into one.

Knows the frames and the files of a run folder; must not know how a study is written up.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from harness import stats
from harness.errors import UserError
from harness.report import contrasts, ledger, reading, verdicts, weights
from harness.report.question import question
from harness.report.reading import KEPT, MANIFEST, PROMPTS, SAMPLES
from harness.report.study import Study
from harness.stats.plan import Plan


def study(
    samples: pd.DataFrame,
    manifest: Mapping[str, Any],
    session: Mapping[str, object] | None = None,
) -> Study:
    """Compute every frame that a report needs.

    Args:
        samples: a row a cell and question row.
        manifest: what is known about the run: name, caveat, told, plan, registered, registration,
            methods, titles, traits, factors, window_weights, provenance; all may be missing.
        session: facts about this invocation, for the summary only.

    Raises:
        ValueError: a samples frame that `stats.summarise` refuses.
    """
    plan = Plan.of(manifest.get("plan", {}))
    known = stats.described(samples)
    cells = stats.summarise(known)
    means = stats.means(cells)
    factors = manifest.get("factors", {})
    dtype = manifest.get("provenance", {}).get("settings", {}).get("dtype", "")
    titles = manifest.get("titles", {})
    comparisons = stats.compare(known, plan)
    ablation = stats.ablate(known, factors, plan)
    paired = contrasts.decide(stats.pairs(known, plan), samples, cells, comparisons, plan, dtype)
    decided = verdicts.decide(cells, comparisons, paired, plan, dtype)
    twice = _read_twice(decided, paired, samples, plan, dtype)
    return Study(
        name=manifest.get("name", "Accuracy against cache compression"),
        question=question(plan, cells, titles),
        plan=plan,
        samples=samples,
        cells=cells,
        abilities=stats.abilities(known),
        means=means,
        comparisons=comparisons,
        ablation=ablation,
        verdicts=twice[0],
        contrasts=twice[1],
        titles=titles,
        methods=manifest.get("methods", {}),
        traits=manifest.get("traits", {}),
        standings=stats.standings(known, plan),
        claims=ledger.rows(cells, means),
        registered=manifest.get("registered", False),
        registration=manifest.get("registration", ""),
        told=tuple(manifest.get("told", ())),
        provenance=manifest.get("provenance", {}),
        session=session or {},
        caveat=manifest.get("caveat", ""),
        unfinished=manifest.get("unfinished", {}),
    )


def _read_twice(
    decided: pd.DataFrame,
    paired: pd.DataFrame,
    samples: pd.DataFrame,
    plan: Plan,
    dtype: str,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The verdicts and contrasts with those of the other reading, where tasks have one."""
    second = None if decided.empty and paired.empty else stats.other_reading(samples)
    if second is None:
        return decided, paired
    if second["score"].equals(samples.loc[second.index, "score"]):  # both read every answer alike
        asked = second[stats.GROUP].drop_duplicates()
        same = (frame.merge(asked, on=stats.GROUP) for frame in (decided, paired))
        return _beside((decided, paired), tuple(same), samples)
    quick = replace(plan, resamples=min(plan.resamples, 100))  # no verdict rests on the bootstrap
    known = stats.described(second)
    cells, comparisons = stats.summarise(known), stats.compare(known, quick)
    pairs = stats.pairs(known, quick)
    again = contrasts.decide(pairs, second, cells, comparisons, plan, dtype)
    other = verdicts.decide(cells, comparisons, again, plan, dtype)
    return _beside((decided, paired), (other, again), samples)


def _beside(
    first: tuple[pd.DataFrame, ...], second: tuple[pd.DataFrame, ...], samples: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    found = verdicts.beside(first[0], second[0], samples) if len(first[0]) else first[0]
    return found, contrasts.beside(first[1], second[1])


def traced(study: Study, manifest: Mapping[str, Any], folder: Path) -> Study:
    """The study with what the run folder holds of prompts and of what was kept of them."""
    prompts, kept = (reading.table(folder, name) for name in (PROMPTS, KEPT))
    fell = weights.shares(study.samples, prompts, manifest.get("window_weights", {}))
    return replace(study, prompts=prompts, kept=kept, weights=fell, images=folder / "images")


def digest(samples: pd.DataFrame) -> str:
    """sha256 over what was asked of which cells, to know a manifest's samples by."""
    rows = pd.util.hash_pandas_object(samples[["cell_key", "row"]], index=False)
    return hashlib.sha256(rows.to_numpy().tobytes()).hexdigest()


def read(folder: Path) -> Study:
    """The study of a run folder, from its files alone: nothing is answered or scored anew.

    Raises:
        UserError: the folder holds no finished run, or a file of it is damaged.
    """
    missing = [name for name in (SAMPLES, MANIFEST) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} holds no {' and no '.join(missing)}: name the folder of a finished run, or "
            "give the sweep's command again to finish it."
        )
    manifest, samples = reading.manifest(folder), reading.table(folder, SAMPLES)
    if manifest.get("samples", digest(samples)) != digest(samples):
        raise UserError(
            f"{folder} holds a {MANIFEST} and a {SAMPLES} of two runs, for one was interrupted: "
            "give the sweep's command again to finish it."
        )
    reading.check(folder)
    try:
        return traced(study(samples, manifest), manifest, folder)
    except UserError:
        raise
    except Exception as error:  # files without sums may hold anything
        raise UserError(
            f"{folder / SAMPLES} cannot be reported ({reading.line(error)}): {reading.REMEDY}."
        ) from error
