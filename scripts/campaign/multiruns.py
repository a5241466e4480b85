"""Runs that must not lose or mix anything: several methods, models, amounts or seeds in turn."""

from collections.abc import Callable
from pathlib import Path

from scripts.campaign import scene
from scripts.campaign.bench import Bench
from scripts.campaign.engine import Scripted
from scripts.campaign.outcome import RIGHT, WRONG, Outcome, Verdict, raw

Case = Callable[[Bench], tuple[str, Verdict]]


def _runs(bench: Bench, *argv: str) -> Outcome:
    typed = {text.partition("=")[0] for text in argv}
    usual = scene.settings(bench.shared, bench.folder / "runs")
    kept = [text for text in usual if text.partition("=")[0] not in typed]
    if "budgets" in typed:
        kept = [text for text in kept if not text.startswith("ratios=")]
    return bench.call(*kept, *argv, engine=Scripted())


def _all_right(bench: Bench, count: int, cells: int | None = None) -> Verdict:
    """`count` folders, each with right scores, and no answer computed twice."""
    found = scene.folders(bench.folder / "runs")
    if len(found) != count:
        names = [folder.name for folder in found]
        return Verdict(WRONG, f"{len(found)} folders in place of {count}: {names}")
    for folder in found:
        bad = scene.checked(folder, scene.asked(folder, bench.shared / "data"), cells)
        if bad is not None:
            return bad
    return Verdict(RIGHT)


def _multirun(*argv: str, folders: int, cells: int | None = None, code: int = 0) -> Case:
    """One multirun that leaves so many folders."""

    def case(bench: Bench) -> tuple[str, Verdict]:
        outcome = _runs(bench, "-m", *argv)
        verdict = raw(outcome)
        if verdict is None and outcome.code != code:
            verdict = Verdict(WRONG, f"exit {outcome.code} in place of {code}: {outcome.errors}")
        return f"-m {' '.join(argv)}", verdict or _all_right(bench, folders, cells)

    return case


def _after(*commands: tuple[str, ...], folders: int, computed: tuple[int | None, ...]) -> Case:
    """Runs one after another: so many folders, and so many new answers for each."""

    def case(bench: Bench) -> tuple[str, Verdict]:
        said = " ; ".join(" ".join(argv) for argv in commands)
        for argv, expected in zip(commands, computed, strict=True):
            outcome = _runs(bench, *argv)
            bad = raw(outcome)
            if bad is not None:
                return said, bad
            if outcome.code:
                return said, Verdict(WRONG, f"refused: {outcome.errors}")
            fresh = sum(len(call["cells"]) for call in outcome.asked)
            if expected is not None and fresh != expected:
                why = f"{fresh} answers computed in place of {expected} at {argv}"
                return said, Verdict(WRONG, why)
        return said, _all_right(bench, folders)

    return case


def _two_models(bench: Bench) -> tuple[str, Verdict]:
    other = scene.weights(bench.folder / "other", b"2")
    first = bench.shared / "weights"
    outcome = _runs(bench, "-m", f"model.pretrained={first},{other}", "model.name=x")
    said = "-m model.pretrained=a,b model.name=x"
    bad = raw(outcome)
    if bad is not None or outcome.code:
        return said, bad or Verdict(WRONG, f"refused: {outcome.errors}")
    verdict = _all_right(bench, 2, scene.CELLS)
    if verdict.label == RIGHT:
        keys = [set(scene.samples(f)["cell_key"]) for f in scene.folders(bench.folder / "runs")]
        if keys[0] & keys[1]:
            return said, Verdict(WRONG, "two models share answers")
    return said, verdict


def _named_twice(bench: Bench) -> tuple[str, Verdict]:
    """Two plans in one folder by name: refused, or kept apart, but not overwritten."""
    said = "run.name=x ; run.name=x with other methods"
    _runs(bench, "run.name=x", "method=[random,restkv]")
    before = scene.samples(bench.folder / "runs" / "x")
    outcome = _runs(bench, "run.name=x", "method=[random,restkv,h2o]")
    bad = raw(outcome)
    if bad is not None:
        return said, bad
    path = Path(bench.folder / "runs" / "x")
    if outcome.code == 0 and len(scene.folders(bench.folder / "runs")) == 1:
        after = scene.samples(path)
        if set(before["cell_key"]) - set(after["cell_key"]):
            return said, Verdict(WRONG, "cells of the first run are gone")
    return said, Verdict(RIGHT)


ROWS, WHOLE = scene.ROWS, scene.CELLS * scene.ROWS
CASES: tuple[Case, ...] = (
    _multirun("method=[snapkv],[h2o]", folders=2, cells=3),
    _multirun("method=[random,restkv],[random,restkv,h2o]", folders=2),
    _multirun("ratios=[0.5],[0.9]", folders=2, cells=4),
    _multirun("ratios=[0.5],[0.5,0.9]", folders=2),
    _multirun("budgets=[8],[16]", folders=2, cells=4),
    _multirun("limit=null,3", folders=2, cells=None),
    _multirun("extraction=lmms_eval,strict", folders=2, cells=4),
    _multirun("dtype=float32,bfloat16", folders=2, cells=4),
    _multirun("methods.restkv.window=8,32", folders=2, cells=4),
    _multirun("methods.restkv.alpha=0.1,0.3,0.5", folders=3, cells=4),
    _multirun("seed=0,1,2", folders=3, cells=4),
    _multirun("protocol=replay,context,paper", folders=3, cells=4),
    _multirun("protocol.tail=last_token,suffix", folders=2, cells=4),
    _multirun("tasks.mmbench_mini.generation.max_new_tokens=1,4", folders=2, cells=4),
    _multirun("model.max_length=200,300", folders=2, cells=4),
    _multirun("blank_image=true,false", folders=2),
    _multirun("seed=0,-1,1", folders=2, cells=4, code=2),
    _multirun("ratios=[0.5],[2]", folders=1, cells=4, code=2),
    _multirun("analysis.margin=2,3", folders=2, cells=4),
    _multirun("budget=uniform,pyramid", folders=2, cells=4),
    _two_models,
    _named_twice,
    _after((), (), folders=1, computed=(WHOLE, 0)),
    _after(("ratios=[0.5]",), ("ratios=[0.5,0.5]",), folders=1, computed=(WHOLE, 0)),
    _after(("ratios=[0.5]",), ("ratios=[0.5,0.9]",), folders=2, computed=(WHOLE, 3 * ROWS)),
    _after(("ratios=[0.9,0.5]",), ("ratios=[0.5,0.9]",), folders=1, computed=(6 * ROWS, 0)),
    _after(("method=[random,restkv]",), ("method=[restkv,random]",), folders=1,
           computed=(WHOLE, 0)),
    _after(("limit=1",), (), ("limit=1",), folders=2, computed=(None, None, 0)),
    _after((), ("limit=1",), folders=2, computed=(WHOLE, 0)),
    _after((), ("extraction=strict",), folders=2, computed=(WHOLE, 0)),
    _after((), ("analysis.margin=5",), folders=2, computed=(WHOLE, 0)),
    _after((), ("analysis.resamples=120",), folders=1, computed=(WHOLE, 0)),
    _after((), ("blank_image=false",), folders=2, computed=(WHOLE, 0)),
    _after(("run.name=a",), ("run.name=b",), folders=2, computed=(WHOLE, 0)),
    _after((), ("model.name=other",), folders=2, computed=(WHOLE, 0)),
    _after((), ("engine.threads=1", "engine.cells_per_batch=2"), folders=1, computed=(WHOLE, 0)),
)  # fmt: skip
