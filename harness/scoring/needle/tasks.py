"""Needle in a haystack: a sentence at a depth of a long text, asked for afterwards.

Protocol: gkamradt/LLMTest_NeedleInAHaystack at 7b90d28: its needles, questions, instructions, the
place (the sentence end before the depth) and the even spread of several needles. Two things differ:
the instruction stands before the text, not in a system message, and an answer is right where it
contains the needle's words, where the published code asks another model.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random
from typing import Any

from datasets import Features, Value

from harness.errors import UserError
from harness.scoring import sources
from harness.scoring.needle import grid
from harness.scoring.ruler.lengths import Filling, Sample, TokenCounter, generator
from harness.scoring.ruler.needles import NOISE
from harness.scoring.ruler.prompts import COLUMNS

HEAD = (
    "You are a helpful AI bot that answers questions for a user. "
    "Keep your response short and direct\n\n"
)
TAIL = "\n\n{question} Don't give information outside the document or repeat your findings"
SINGLE = "eat a sandwich and sit in Dolores Park on a sunny day"
SINGLE_NEEDLE = f"\nThe best thing to do in San Francisco is {SINGLE}.\n"
SINGLE_QUESTION = "What is the best thing to do in San Francisco?"
MULTI_NEEDLE = " {} are one of the secret ingredients needed to build the perfect pizza. "
MULTI_QUESTION = "What are the secret ingredients needed to build the perfect pizza?"
# The first three are the published ones.
INGREDIENTS = (
    "Figs", "Prosciutto", "Goat cheese", "Walnuts", "Pears", "Capers", "Olives", "Truffles",
    "Artichokes", "Anchovies",
)  # fmt: skip
HAYSTACKS = ("essays", "noise")


@dataclass(frozen=True)
class Haystack:
    """The task as a recipe: `size` counts sentences, sample i has depth i // samples."""

    sentences: Sequence[str]
    depths: Sequence[float]
    samples: int
    needles: int
    seed: int
    tokens: int = 64
    least: int = field(default=10)

    def draw(self, rng: Random, index: int, size: int) -> Sample:
        """The first sample of a depth begins where the text does, others somewhere in it."""
        depth, repeat = self.depths[index // self.samples], index % self.samples
        begin = generator("needle", self.seed, repeat).randrange(len(self.sentences))
        begin = begin if repeat else 0
        text = [self.sentences[(begin + i) % len(self.sentences)] for i in range(size)]
        context = _hide(text, _needles(self.needles), depth)
        question, answers = SINGLE_QUESTION, [SINGLE]
        if self.needles > 1:
            question, answers = MULTI_QUESTION, list(INGREDIENTS[: self.needles])
        tail = TAIL.format(question=question)
        return Sample(HEAD + context + tail, len(HEAD) + len(context), answers)


class Needle:
    """The generator `needle`: options length (tokens), depths, samples (a depth), needles,
    haystack (essays or noise), sources.
    """

    version = 1
    features = Features({**COLUMNS, "depth": Value("float64")})
    advice = ", or set tasks.<task>.data.haystack=noise, which needs none"
    defaults: Mapping[str, Any] = {
        "depths": grid.DEPTHS,
        "samples": 1,
        "needles": 1,
        "haystack": "essays",
    }

    def needs(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """The essays, unless the haystack is noise; UserError for another one."""
        grid.one_of("haystack", options["haystack"], HAYSTACKS)
        return ("essays",) if options["haystack"] == "essays" else ()

    def total(self, options: Mapping[str, Any]) -> int:
        """A row a sample and depth."""
        return len(grid.depths(options)) * int(options["samples"])

    def rows(
        self, options: Mapping[str, Any], tokenizer: Any, seed: int
    ) -> Iterator[dict[str, Any]]:
        """The rows at a length, depth by depth; UserError where an option is wrong."""
        needles = options["needles"]
        if type(needles) is not int or needles not in range(1, len(INGREDIENTS) + 1):
            raise UserError(f"data.needles={needles} is not from 1 to {len(INGREDIENTS)}.")
        depths, samples = grid.depths(options), int(options["samples"])
        text = f" {NOISE}"
        if self.needs(options):
            given = options.get("sources") or {}
            text = sources.read("essays", given, self.advice).decode()
        recipe = Haystack(_sentences(text), depths, samples, needles, seed)
        name, length = str(options["task"]), int(options["length"])
        count, total = TokenCounter(tokenizer), self.total(options)
        for row in Filling(recipe, name, count, length, seed).rows(total):
            yield {**row, "depth": depths[row["index"] // samples]}


def _sentences(text: str) -> list[str]:
    """Cut behind each . ! or ? that a space follows; the space begins the next sentence."""
    return re.split(r"(?<=[.!?])(?=\s)", text)


def _needles(count: int) -> list[str]:
    if count == 1:
        return [SINGLE_NEEDLE]
    return [MULTI_NEEDLE.format(name) for name in INGREDIENTS[:count]]


def _hide(text: Sequence[str], needles: Sequence[str], depth: float) -> str:
    """The first needle at the depth, the others evenly behind it, each at a sentence's end."""
    ends = [0, *accumulate(len(sentence) for sentence in text)]
    parts, done = [], 0
    for number, needle in enumerate(needles):
        wanted = (depth + number * (100 - depth) / len(needles)) / 100 * ends[-1]
        place = max(i for i, end in enumerate(ends) if end <= wanted + 1e-6)
        parts += [*text[done:place], needle]
        done = place
    return "".join([*parts, *text[done:]])
