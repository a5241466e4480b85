"""Two runs of one model at once: both end, and nothing is lost."""

import time
from pathlib import Path

from scripts.campaign import kills, scene
from scripts.campaign.bench import Bench
from scripts.campaign.engine import Scripted
from scripts.campaign.outcome import RIGHT, WRONG, Outcome, Verdict, raw

SECOND: tuple[tuple[str, ...], ...] = (
    (),
    ("method=[random,restkv,h2o]",),
    ("ratios=[0.5]",),
    ("limit=2",),
    ("run.name=mine",),
    ("analysis.margin=5",),
    ("extraction=strict",),
    ("seed=1",),
)
COUNT = 2 * len(SECOND)
SAMPLE = ()  # tests of the run hold these


prepare = kills.prepare


def run(number: int, bench: Bench) -> tuple[str, Verdict]:
    """Start two runs a moment apart, then the second once more."""
    more = SECOND[number % len(SECOND)]
    later = bench.random.uniform(0.0, 0.6) if number >= len(SECOND) else 0.0
    runs = bench.folder / "runs"
    typed = {text.partition("=")[0] for text in more}
    usual = scene.settings(bench.shared, runs)
    other = [*(text for text in usual if text.partition("=")[0] not in typed), *more]
    first = bench.start(*usual, engine=Scripted(), pause=kills.PAUSE)
    time.sleep(later)
    second = bench.start(*other, engine=Scripted(), pause=kills.PAUSE)
    outcomes = [bench.wait(first), bench.wait(second)]
    said = f"beside it after {later:.2f} s: {' '.join(more) or 'the same'}"
    return said, _judged(bench, runs, other, outcomes)


def _judged(bench: Bench, runs: Path, other: list[str], outcomes: list[Outcome]) -> Verdict:
    for outcome in outcomes:
        bad = raw(outcome)
        if bad is not None:
            return bad
        if outcome.code:
            return Verdict(WRONG, f"one of the two failed: {outcome.errors!r:.300}")
    for folder in scene.folders(runs):
        bad = scene.checked(folder, scene.asked(folder, bench.shared / "data"))
        if bad is not None:
            return bad
    again = bench.call(*other, engine=Scripted())
    bad = raw(again)
    if bad is not None or again.code:
        return bad or Verdict(WRONG, f"then failed: {again.errors!r:.300}")
    if again.asked:
        return Verdict(WRONG, f"{len(again.asked)} calls were needed once more")
    sets = [
        {(call["text"], cell) for call in outcome.asked for cell in call["cells"]}
        for outcome in outcomes
    ]
    both = len({text for text, _ in sets[0] & sets[1]})
    return Verdict(RIGHT, f"{both} rows computed by both")
