"""RULER's eight needle tasks: magic values for keys, hidden in noise, essays or other needles.

Definition: NVIDIA/RULER scripts/data/synthetic/niah.py at c3f5e3b. Three things differ: keys and
values of a sample never repeat, so that a question has one answer; essays are cut into sentences by
a rule, not by a downloaded model, which moves a needle by a sentence at most where an abbreviation
stands; numbers are drawn for each sample alone.
"""

import re
import uuid
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from harness.scoring.ruler.lengths import Sample
from harness.scoring.ruler.words import pair

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
HEAD = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n"
)
TAIL = "\nWhat are all the special magic {kind} for {query} mentioned in the provided text?"
PREFIX = " The special magic {kind} for {query} mentioned in the provided text are"
DEPTHS = [round(100 * place / 39) for place in range(40)]  # percent


@dataclass(frozen=True)
class Needles:
    """A task: what the haystack is, what keys and values are, how many of each, how many asked.

    haystack: "noise" (lines), "needle" (other needles) or "essay" (words of `text`).
    keys, values: "words", "numbers" or "uuids".
    """

    haystack: str
    keys: str = "words"
    values: str = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1
    text: str = ""
    seed: int = 42
    tokens = 128

    @property
    def least(self) -> int:
        """As many places as needles."""
        return max(self.num_keys, self.num_queries) * self.num_values

    def draw(self, rng: Random, index: int, size: int) -> Sample:
        """A haystack of `size` lines, needles or words, and a question on needles in it."""
        taken: set[str] = set()
        count = max(self.num_keys, self.num_queries)
        keys = [_fresh(rng, self.keys, taken) for _ in range(count)]
        values = {
            k: [_fresh(rng, self.values, taken) for _ in range(self.num_values)] for k in keys
        }
        needles = [self._needle(key, value) for key in keys for value in values[key]]
        Random(self.seed).shuffle(needles)  # the same order in every sample, as published
        context = self._hide(rng, needles, size, taken)
        asked = [keys[i] for i in rng.sample(range(count), self.num_queries)]
        query = ", and ".join([", ".join(asked[:-1]), asked[-1]]) if len(asked) > 1 else asked[0]
        head, tail, prefix = (self._fill(text, query) for text in (HEAD, TAIL, PREFIX))
        answers = [value for key in asked for value in values[key]]
        return Sample(head + context + tail, len(head) + len(context), answers, prefix)

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(kind=self.values, key=key, value=value)

    def _fill(self, text: str, query: str) -> str:
        kind = self.values
        if self.num_queries * self.num_values == 1:
            text = text.replace("Some", "A").replace("are all", "is").replace("are", "is")
            kind = kind[:-1]
        return text.format(kind=kind, query=query)

    def _hide(self, rng: Random, needles: list[str], size: int, taken: set[str]) -> str:
        if self.haystack == "essay":
            return _among(sentences(self.text, size), needles, rng)
        lines = [NOISE] * size
        if self.haystack == "needle":
            lines = [
                self._needle(_fresh(rng, self.keys, taken), _fresh(rng, self.values, taken))
                for _ in range(size)
            ]
        places = sorted(rng.sample(range(size), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return "\n".join(lines)


def _fresh(rng: Random, kind: str, taken: set[str]) -> str:
    """A key or value that no needle of the sample has yet."""
    while (drawn := _draw(rng, kind)) in taken:
        pass
    taken.add(drawn)
    return drawn


def _draw(rng: Random, kind: str) -> str:
    if kind == "numbers":
        return str(rng.randint(1_000_000, 9_999_999))
    if kind == "words":
        return pair(rng)
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _among(found: tuple[str, ...], needles: list[str], rng: Random) -> str:
    """The sentences with each needle at a depth of its own."""
    depths = sorted(rng.sample(DEPTHS, len(needles)))
    places = [0, *(int(len(found) * depth / 100) for depth in depths), len(found)]
    parts = [" ".join(found[places[0] : places[1]])]
    for needle, start, end in zip(needles, places[1:], places[2:], strict=False):
        parts += [needle, " ".join(found[start:end])]
    return " ".join(parts)


@lru_cache(maxsize=4)
def sentences(text: str, words: int) -> tuple[str, ...]:
    """The first words of a text, begun again where it ends, cut behind each . ! or ? at a space."""
    all_words = _split(text)
    repeats = -(-words // len(all_words))
    start = " ".join((all_words * repeats)[:words])
    return tuple(re.split(r"(?<=[.!?])\s", start))


@lru_cache(maxsize=2)
def _split(text: str) -> list[str]:
    return text.split()
