"""What a run of the program left, and the words of a verdict on it.

Knows exit codes and terminals; must not know what was tried.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RIGHT, SENTENCE, WRONG, TRACEBACK = "right", "one sentence", "WRONG", "traceback"
LABELS = (RIGHT, SENTENCE, WRONG, TRACEBACK)
BAD = (WRONG, TRACEBACK)

BAR = re.compile(r"^\s*(?:sweep|model)?:?\s*\d*%?\|?.*\|.*\d+/\d+ \[.*\]\s*$")
RAW = re.compile(
    r"Error\(|\w+Error\b|\w+Exception\b|object at 0x|<class '|NoneType|has no attribute|<function"
    r"|positional argument|keyword argument|'\w+' object|unsupported operand|Traceback|\bErrno\b"
)


@dataclass(frozen=True)
class Verdict:
    """One of LABELS, and why in a few words."""

    label: str
    why: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit code (negative: the signal), what it wrote, what it computed."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float
    hung: bool = False
    loaded: bool = False
    begun: float | None = None  # when Python came to the program
    asked: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    left: tuple[Path, ...] = ()

    @property
    def lines(self) -> list[str]:
        """What stands on the terminal's error stream, without progress bars."""
        lines = re.split(r"[\r\n]+", self.err)
        return [line for line in lines if line.strip() and not BAR.match(line)]

    @property
    def errors(self) -> list[str]:
        """The sentences that name an error."""
        return [line for line in self.lines if line.startswith("error: ")]


def raw(outcome: Outcome) -> Verdict | None:
    """The verdict on what no run may do: hang, show a traceback or a library's own words."""
    if outcome.hung:
        return Verdict(WRONG, f"no end after {outcome.seconds:.0f} s")
    for text in (outcome.err, outcome.out):
        if "Traceback (most recent call last)" in text:
            last = [line for line in text.splitlines() if line.strip()][-1]
            return Verdict(TRACEBACK, last[:300])
    for line in outcome.lines:
        if not re.match(r"error: |note: |stopped|warning: |preempted", line):
            return Verdict(TRACEBACK, f"raw output: {line[:300]}")
        if found := RAW.search(line):
            return Verdict(TRACEBACK, f"a library's words ({found[0]}): {line[:300]}")
    return None


def refused(outcome: Outcome, *words: str, loaded: bool = False, count: int = 1) -> Verdict:
    """One sentence: it ends, is alone, names `words`, and came before the model was loaded.

    Args:
        outcome: of a run that must be refused.
        words: what the sentence has to name, case aside; alternatives are parted by "|".
        loaded: whether the fault can be seen only once the model is there.
        count: sentences expected, one a job of a multirun.
    """
    bad = raw(outcome)
    if bad is not None:
        return bad
    if outcome.code == 0:
        return Verdict(WRONG, "accepted, exit 0")
    if outcome.code < 0:
        return Verdict(WRONG, f"ended by signal {-outcome.code}")
    if len(outcome.errors) != count:
        return Verdict(WRONG, f"{len(outcome.errors)} sentences: {outcome.errors!r:.300}")
    said = outcome.errors[-1]
    if not said.rstrip().endswith("."):
        return Verdict(WRONG, f"no sentence: {said[:300]}")
    if outcome.loaded and not loaded:
        return Verdict(WRONG, f"refused after the model was loaded: {said[:300]}")
    for word in words:
        if not any(each.lower() in said.lower() for each in word.split("|")):
            return Verdict(WRONG, f"does not name {word}: {said[:300]}")
    return Verdict(SENTENCE, said[:300])
