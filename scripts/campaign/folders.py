"""Model folders made from the embedded model: faulty ones are refused, other spellings are equal.

The real engine answers. Where a number of the model is not finite, a row may also be marked as
failed; every row that is not must be that of the intact model.
"""

import json
import math
from pathlib import Path

from scripts.campaign import scene
from scripts.campaign.bench import Bench
from scripts.campaign.folder_changes import Folder
from scripts.campaign.folder_faults import CASES as FAULTS
from scripts.campaign.outcome import RIGHT, WRONG, Outcome, Verdict, raw, refused
from scripts.campaign.tensors import EMBEDDED

COUNT = len(FAULTS)
SAMPLE = (6,)


def prepare(shared: Path) -> None:
    """Nothing beforehand: what the intact model says is asked when a case needs it."""


def _reference(bench: Bench, dtype: str) -> Path:
    def make(runs: Path) -> None:
        made = _ask(bench, EMBEDDED, runs, dtype)
        if made.code:
            raise RuntimeError(f"the intact model failed: {made.err}")

    (folder,) = scene.folders(bench.once(dtype, make))
    return folder


def run(number: int, bench: Bench) -> tuple[str, Verdict]:
    """Ask a copy with a fault in it."""
    fault = FAULTS[number]
    folder = fault.make(EMBEDDED, bench.folder / "models", bench.random)
    outcome = _ask(bench, folder, bench.folder / "runs", fault.dtype, *fault.more)
    return f"{fault.said}{_dtype(fault)}", _judge(bench, fault, outcome)


def _dtype(fault: Folder) -> str:
    return "" if fault.dtype == "float32" else f" in {fault.dtype}"


def _ask(bench: Bench, folder: Path, runs: Path, dtype: str, *more: str) -> Outcome:
    return bench.call(
        f"model.pretrained='{folder}'",
        "method=[random,restkv]",
        "ratios=[0.9]",
        "protocol=replay",
        "limit=2",
        f"dtype={dtype}",
        f"run.dir={runs}",
        "wandb.mode=disabled",
        "analysis.resamples=100",
        *more,
    )


def _judge(bench: Bench, fault: Folder, outcome: Outcome) -> Verdict:
    if fault.want == "refuse" or (outcome.code and fault.want != "right"):
        return refused(outcome, *fault.words, loaded=True)
    bad = raw(outcome)
    if bad is not None or outcome.code:
        return bad or Verdict(WRONG, f"refused: {outcome.errors!r:.300}")
    (folder,) = scene.folders(bench.folder / "runs")
    if fault.want == "other":  # another model, and nothing in its folder contradicts it
        return Verdict(RIGHT)
    reference = _reference(bench, fault.dtype)
    within = 2e-3 if fault.dtype == "float32" else 0.5  # rounding, from logits of 16
    return _compared(folder, reference, fault.want, within) or Verdict(RIGHT)


def _compared(folder: Path, reference: Path, want: str, within: float) -> Verdict | None:
    """Rows are those of the intact model; with want=finite, or they are called failed."""
    ours, theirs = (
        scene.samples(f).sort_values(["method", "ratio", "row"]).reset_index(drop=True)
        for f in (folder, reference)
    )
    if len(ours) != len(theirs):
        return Verdict(WRONG, f"{len(ours)} samples for {len(theirs)}")
    for (_, one), (_, other) in zip(ours.iterrows(), theirs.iterrows(), strict=True):
        if want == "finite" and bool(one.get("failed", False)):
            if not math.isnan(one["score"]):
                return Verdict(WRONG, f"failed row {one['row']} scores {one['score']}")
            continue
        if one["text"] != other["text"] or _far(
            one["letter_logits"], other["letter_logits"], within
        ):
            what = f"{one['method']} row {one['row']} says {one['text']!r}"
            return Verdict(WRONG, f"{what} {one['letter_logits']} for {other['letter_logits']}")
    return None


def _far(one: str, other: str, within: float) -> bool:
    ours, theirs = json.loads(one), json.loads(other)
    return ours.keys() != theirs.keys() or not all(
        math.isclose(ours[k], theirs[k], rel_tol=within / 2, abs_tol=within) for k in ours
    )
