"""Questions about a scene as SmolLM2's tokens, with what is to be predicted and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from harness.drawing import world
from harness.drawing.world import Scene
from harness.embedded.questions import KINDS, Question, ask, prompt

LETTERS = "ABCD"
MARK = "?"
PICTURE = 64  # tokens


class Words:
    """The processor's tokenizer and chat template, as far as training needs them."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer = processor.tokenizer
        said = processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": "QUESTION"}],
                }
            ],
            add_generation_prompt=True,
            tokenize=False,
        )
        before, after = said.split("<image>")
        self.prefix = self.encode(before)
        self.start, self.end = after.split("QUESTION")  # around a question's text
        self.letters = [self.encode(letter)[0] for letter in LETTERS]
        self.stop = self.tokenizer.eos_token_id

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, nothing added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def of(self, word: str) -> list[int]:
        """The tokens that stand for an answer: " red"; "2", a digit; " top" and " left"."""
        if word.isdigit():
            return self.encode(word)[:1]
        return [self.encode(f" {part}")[0] for part in word.split("-")]


def answers() -> tuple[str, ...]:
    """All that a question of any kind can be answered with."""
    named = (world.COLORS, world.SHAPES, world.DIGITS, world.WORDS, world.CORNERS, world.COUNTS)
    styles = (world.BACKGROUNDS, world.BRIGHTNESS)
    sides = ("left", "right", "above", "below")
    return ("yes", "no", *sides, *(name for names in (*named, *styles) for name in names))


@dataclass(frozen=True)
class Row:
    """What follows the picture in a prompt; positions count from the row's start."""

    ids: list[int]
    kind: str
    mark: int  # the question mark
    word: list[int]  # one or two tokens of the answer's content
    letter: int = -1  # token of the right letter; -1 on rows without options
    last: int = -1  # the token that predicts the letter
    option: int = -1  # the last token of the right option


def bare(question: Question, words: Words) -> Row:
    """The question alone, up to its mark; without its hint, which would pad all others."""
    ids = words.encode(words.start + question.text)
    return Row(ids, question.kind, len(ids) - 1, words.of(question.answer))


def whole(question: Question, words: Words) -> Row:
    """The prompt as the chat template has it, with the right letter behind it."""
    mark = len(words.encode(words.start + _head(question))) - 1
    text = words.start + prompt(question)
    ids = words.encode(text + words.end)
    assert words.tokenizer.decode(ids[mark]) == MARK
    right = question.options.index(question.answer)
    until = text.index(f"\n{LETTERS[right]}. ") + len(f"\n{LETTERS[right]}. {question.answer}")
    letter = words.letters[right]
    return Row(
        [*ids, letter],
        question.kind,
        mark,
        words.of(question.answer),
        letter,
        len(ids) - 1,
        len(words.encode(text[:until])) - 1,
    )


def _head(question: Question) -> str:
    return f"{question.hint} {question.text}" if question.hint else question.text


def draw(
    scene: Scene,
    words: Words,
    rng: Random,
    counts: tuple[int, int],
    weights: tuple[dict[str, float], dict[str, float]],
) -> list[Row]:
    """Questions about a scene: so many without options, then so many with them.

    `weights` says for either how often each kind is asked.
    """
    out: list[Row] = []
    for count, asked, made in zip(counts, weights, (bare, whole), strict=True):
        rows: list[Row] = []
        while len(rows) < count:
            question = ask(scene, rng.choices(list(asked), list(asked.values()))[0], rng)
            if question is not None:
                rows.append(made(question, words))
        out += rows
    return out


@dataclass
class Batch:
    """Rows padded on the right, `per_scene` consecutive ones for each scene."""

    ids: Tensor  # [rows, T]
    mark: Tensor  # [rows]
    word: Tensor  # [rows, 2], the same token twice where the answer has one
    letter: Tensor  # [rows], -1 on rows without options
    last: Tensor
    option: Tensor
    kind: Tensor  # index into KINDS
    per_scene: int
    tokens: int  # without padding


def collate(rows: Sequence[Row], per_scene: int, pad: int) -> Batch:
    """Pad rows to the longest."""
    width, kinds = max(len(row.ids) for row in rows), list(KINDS)
    return Batch(
        torch.tensor([row.ids + [pad] * (width - len(row.ids)) for row in rows]),
        torch.tensor([row.mark for row in rows]),
        torch.tensor([(row.word * 2)[:2] for row in rows]),
        torch.tensor([row.letter for row in rows]),
        torch.tensor([row.last for row in rows]),
        torch.tensor([row.option for row in rows]),
        torch.tensor([kinds.index(row.kind) for row in rows]),
        per_scene,
        sum(len(row.ids) for row in rows),
    )
