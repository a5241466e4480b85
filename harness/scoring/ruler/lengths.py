"""Fills a prompt up to a number of tokens: counts, finds the size that fits, draws the samples.

Knows tokenizers and anything that draws a sample of a given size; must not know the tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from jinja2 import TemplateError

from harness.errors import UserError

BATCH = 2**19  # tokens counted at once: a fast tokenizer spreads the texts over the processors
MARK = "evictbench"
SLACK, LOW = 0.99, 0.95  # of the tokens there are: what is aimed at, and what is long enough
TRIES = 4


@dataclass(frozen=True)
class Sample:
    """What a prompt asks; the long context ends at character `context_end` of `input`."""

    input: str
    context_end: int
    outputs: list[str]
    answer_prefix: str = ""


class Recipe(Protocol):
    """Draws samples of any size, in units of its haystack (words, lines, documents)."""

    @property
    def tokens(self) -> int:
        """How many are generated."""

    @property
    def least(self) -> int:
        """The smallest size."""

    def draw(self, rng: Random, index: int, size: int) -> Sample:
        """Sample number `index` at a size; the same generator state gives the same sample."""


class TokenCounter:
    """Tokens of texts as a model reads them, special tokens included.

    `reserve` is what the tokenizer's chat template adds, in full sixteens because a template may
    hold the date; 0 without a template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.reserve = -(-self._template() // 16) * 16

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text."""
        options = {"return_attention_mask": False, "verbose": False}
        if getattr(self._tokenizer, "is_fast", False):
            options["return_token_type_ids"] = False
        return [len(ids) for ids in self._tokenizer(list(texts), **options)["input_ids"]]

    def _template(self) -> int:
        template = getattr(self._tokenizer, "chat_template", None)
        for content in (MARK, [{"type": "text", "text": MARK}]) if template else ():
            messages = [{"role": "user", "content": content}]
            try:
                text = self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            except (TemplateError, TypeError, AttributeError):  # it lacks this form of content
                continue
            if MARK in text:
                whole, mark = self([text, MARK])
                return max(0, whole - mark)
        if template:
            raise UserError(
                "The chat template of the tokenizer shows no text of a user, so the room it takes "
                "is unknown: choose a model whose template takes a user message."
            )
        return 0


def generator(name: str, seed: int, index: int | str) -> Random:
    """A sample's own random numbers, whatever was drawn before and wherever."""
    return Random(f"{name}/{seed}/{index}")


class Filling:
    """Draws samples of a recipe that fill a length, prompt and answer together.

    One size serves all samples, the largest that leaves sample 0 SLACK short of the length; those
    that come out too long or clearly too short are drawn again at a size of their own.
    """

    def __init__(self, recipe: Recipe, name: str, count: TokenCounter, length: int, seed: int):
        """Take the recipe, the task's name, its counter, the length in tokens and the seed."""
        self.recipe, self.name, self.count = recipe, name, count
        self.length, self.seed = length, seed
        self.extra = recipe.tokens + count.reserve

    def rows(self, samples: int) -> Iterator[dict[str, Any]]:
        """Rows in the columns `prompts.COLUMNS`.

        Raises:
            UserError: a sample does not fit even at its smallest size.
        """
        self.base = self._tokens(self.recipe.least)
        if self.base > self._room:
            raise self._refusal(samples)
        size = self._largest()
        step = max(1, BATCH // self.length)
        for start in range(0, samples, step):
            drawn = [self._draw(i, size) for i in range(start, min(start + step, samples))]
            for index, (sample, found) in enumerate(
                zip(drawn, self._measure(drawn), strict=True), start
            ):
                if not LOW * self._room <= found <= self._room:
                    fitting = self._fit(index, size, sample, found)
                    if fitting is None:
                        raise self._refusal(samples)
                    sample, found = fitting
                row = {"index": index, **vars(sample), "length": found + self.extra}
                yield {**row, "max_length": self.length}

    @property
    def _room(self) -> int:
        return self.length - self.extra

    def _draw(self, index: int, size: int) -> Sample:
        return self.recipe.draw(generator(self.name, self.seed, index), index, size)

    def _measure(self, drawn: Sequence[Sample]) -> list[int]:
        return self.count([sample.input + sample.answer_prefix for sample in drawn])

    def _tokens(self, size: int) -> int:
        return self._measure([self._draw(0, size)])[0]

    def _largest(self) -> int:
        """The size of sample 0 to within 1 in 256, given that the least fits."""
        goal = SLACK * self._room
        low, high = self.recipe.least, 2 * self.recipe.least
        while self._tokens(high) <= goal:
            low, high = high, 2 * high
            if high > 8 * (self.length + self.recipe.least):
                raise UserError(
                    f"{self.name} cannot be made with this tokenizer, which turns its text into "
                    "almost no tokens: use the tokenizer of a model that reads English."
                )
        while high - low > max(1, low // 256):
            middle = (low + high) // 2
            low, high = (middle, high) if self._tokens(middle) <= goal else (low, middle)
        return low

    def _fit(self, index: int, size: int, sample: Sample, found: int) -> tuple[Sample, int] | None:
        """A sample near the length: a few steps by the tokens a unit has, then the least size."""
        least, best = self.recipe.least, None
        for _ in range(TRIES):
            if found <= self._room and (best is None or found > best[1]):
                best = (sample, found)
            if LOW * self._room <= found <= self._room:
                return best
            unit = max(1.0, (found - self.base) / max(1, size - least))
            change = round((SLACK * self._room - found) / unit)
            size = max(least, size + (min(change, -1) if found > self._room else change))
            sample = self._draw(index, size)
            found = self._measure([sample])[0]
        if best is None:
            sample = self._draw(index, least)
            found = self._measure([sample])[0]
            best = (sample, found) if found <= self._room else None
        return best

    def _refusal(self, samples: int) -> UserError:
        least = [self._draw(index, self.recipe.least) for index in range(min(samples, 32))]
        needed = -(-(max(self._measure(least)) + self.extra + 16) // 64) * 64
        return UserError(
            f"{self.name} does not fit in {self.length} tokens: its instructions, what must stand "
            f"in the context and {self.recipe.tokens} tokens of answer need about {needed} with "
            f"this tokenizer, so use lengths from {needed}."
        )
