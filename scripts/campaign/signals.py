"""Signals at random moments: one sentence that the same command goes on, and it does.

Some come in the first tenths of a second of a fresh interpreter.
"""

import signal

from scripts.campaign import kills, scene
from scripts.campaign.bench import Bench
from scripts.campaign.engine import Scripted
from scripts.campaign.outcome import RIGHT, SENTENCE, TRACEBACK, WRONG, Outcome, Verdict, raw

EARLY, LATER = 15, 30
COUNT = EARLY + LATER
SAMPLE = (EARLY,)
CODES = {signal.SIGTERM: (143,), signal.SIGHUP: (143, 129), signal.SIGINT: (130,)}
READY = 0.05  # seconds to the first line of the program
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


prepare = kills.prepare


def run(number: int, bench: Bench) -> tuple[str, Verdict]:
    """Send a signal, look at how the run ended, then let the same command end."""
    which = SIGNALS[number % len(SIGNALS)]
    early = number < EARLY
    runs, struck = bench.folder / "runs", []
    argv = scene.settings(bench.shared, runs)
    usual = float((bench.shared / "seconds").read_text())
    after = bench.random.uniform(0.0, 0.3 if early else usual)
    said = f"{which.name} after {after:.3f} s{' of a fresh interpreter' if early else ''}"

    def during(pid: int) -> None:
        struck.append(kills.strike(pid, after, which))

    if early:
        broken = bench.fresh(*argv, during=during)
        return said, _ended(broken, which, struck[0])
    broken = bench.call(*argv, engine=Scripted(), pause=kills.PAUSE, during=during)
    verdict = _ended(broken, which, struck[0])
    if verdict.label not in (RIGHT, SENTENCE):
        return said, verdict
    last = bench.call(*argv, engine=Scripted(), pause=kills.PAUSE)
    done = kills.finished(bench, runs, last, [broken])
    return said, verdict if done.label == RIGHT else done


def _ended(outcome: Outcome, which: signal.Signals, struck: float) -> Verdict:
    """Right where it had ended before or not begun; else a sentence and the signal's exit code."""
    if outcome.code == -which and (outcome.begun is None or struck < outcome.begun + READY):
        return Verdict(RIGHT, "ended by the signal before the program began")
    if "init_import_site" in outcome.err:  # Python's own start: none of our lines has run
        return Verdict(RIGHT, "ended by the signal before the program began")
    bad = raw(outcome)
    if bad is not None:
        return bad
    if outcome.code == 0:
        return Verdict(RIGHT, "had ended before")
    if outcome.code not in CODES[which]:
        return Verdict(WRONG, f"exit {outcome.code}: {outcome.err!r:.200}")
    if outcome.left:
        return Verdict(WRONG, f"temporary files stay: {[path.name for path in outcome.left]}")
    told = " ".join(outcome.lines)
    if "same command" not in told:
        return Verdict(WRONG, f"does not say that the same command goes on: {told!r:.200}")
    if len(outcome.lines) > 1:
        return Verdict(TRACEBACK, f"more than a sentence: {told!r:.300}")
    return Verdict(SENTENCE, told[:200])
