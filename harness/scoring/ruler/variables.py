"""RULER's variable tracking: a chain of assignments in noise, after one solved example.

Definition: NVIDIA/RULER scripts/data/synthetic/variable_tracking.py at c3f5e3b, one chain of four
hops. Names of a sample are distinct and never VAR.
"""

import string
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from harness.scoring.ruler.lengths import Sample, TokenCounter, generator
from harness.scoring.ruler.needles import NOISE

HOPS = 4
EXAMPLE_TOKENS = 500
HEAD = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
TAIL = "\nQuestion: Find all variables that are assigned the value {value} in the text above."
PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} "
    "variables are assigned the value {value}, they are: "
)


@dataclass(frozen=True)
class Tracking:
    """The task; its example has `lines` of noise and assignments at `places` in every sample."""

    lines: int
    places: tuple[int, ...]
    tokens = 30
    least = HOPS + 1

    def draw(self, rng: Random, index: int, size: int) -> Sample:
        """A chain in `size` lines of noise."""
        taken = {"VAR"}
        value, example_value = rng.sample(range(10_000, 99_999), 2)
        names = _names(rng, 3, taken)
        shown = _ask(names, example_value, self.lines, self.places)
        solved = f"{shown.input}{shown.answer_prefix} {' '.join(names)}\n\n"
        places = tuple(sorted(rng.sample(range(size), HOPS + 1)))
        asked = _ask(_names(rng, 5, taken), value, size, places)
        end = len(solved) + asked.context_end
        return Sample(solved + asked.input, end, asked.outputs, asked.answer_prefix)


def tracking(count: TokenCounter, seed: int) -> Tracking:
    """The task with the longest example of at least five lines within EXAMPLE_TOKENS."""
    rng = generator("vt example", seed, 0)
    names, lines = _names(rng, 3, {"VAR"}), HOPS + 1

    def tokens(lines: int) -> int:
        shown = _ask(names, 12_345, lines, tuple(range(HOPS + 1)))
        return count([shown.input + shown.answer_prefix])[0]

    while lines < EXAMPLE_TOKENS and tokens(lines + 1) <= EXAMPLE_TOKENS:
        lines += 1
    return Tracking(lines, tuple(sorted(rng.sample(range(lines), HOPS + 1))))


def _names(rng: Random, letters: int, taken: set[str]) -> list[str]:
    names: list[str] = []
    while len(names) < HOPS + 1:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names


def _ask(names: list[str], value: int, size: int, places: tuple[int, ...]) -> Sample:
    """The chain through the names, an assignment before the noise line at each place."""
    chain = [f"VAR {names[0]} = {value}"]
    chain += [f"VAR {name} = VAR {before} " for before, name in pairwise(names)]
    lines = [NOISE] * size
    for place, link in zip(reversed(places), reversed(chain), strict=True):
        lines.insert(place, link)
    context = "\n".join(lines).replace(". \n", ".\n")
    tail = TAIL.format(value=value)
    prefix = PREFIX.format(count=HOPS + 1, value=value)
    return Sample(HEAD + context + tail, len(HEAD) + len(context), names, prefix)
