"""Turns questions about scenes into token rows, with what to predict and where to look.

A row is what follows the image in a prompt. Two targets beside the answer letter make the letter
learnable: the answer's word at the question mark, before the options are read (seeing), and hints
of where attention should go (binding). Neither is part of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random

import torch
from torch import Tensor

from harness.drawing.world import Scene
from harness.embedded.questions import KINDS, Question, ask, prompt
from scripts.tiny_vlm.build import tokenizer

PREFIX_TEXT = "USER: "
IMAGE_TOKENS = 64


@cache
def _tokenizer():
    return tokenizer()


@cache
def encode(text: str) -> tuple[int, ...]:
    """Token ids of a text, no special tokens added."""
    return tuple(_tokenizer()(text, add_special_tokens=False)["input_ids"])


def prefix_ids() -> list[int]:
    """Tokens before the image: beginning of text, USER, colon."""
    return [_tokenizer().bos_token_id, *encode(PREFIX_TEXT)]


@dataclass
class Row:
    """One question as tokens; positions count from the row's start."""

    ids: list[int]
    mark: int  # the question mark
    content: int  # token id of the answer's word
    cells: tuple[int, ...]
    kind: str
    letter: int = -1  # token id of the answer's letter; -1 on rows without options
    option: int = -1  # position of the right option's word
    options: list[int] = field(default_factory=list)  # positions of all options' words

    @property
    def tail(self) -> tuple[int, int]:
        """From the token after the options up to, not including, the letter; empty if bare."""
        return (max(self.options) + 1, len(self.ids) - 2) if self.options else (0, 0)


def bare_row(question: Question) -> Row:
    """The question alone, up to its mark."""
    ids = [*encode("\n"), *encode(question.text)]
    return Row(ids, len(ids) - 1, encode(question.answer)[0], question.cells, question.kind)


def full_row(question: Question) -> Row:
    """The whole prompt with its answer letter and the end of text, as the chat template has it."""
    text = f"\n{prompt(question)} ASSISTANT:"
    ids = list(encode(text))
    head = f"{question.hint} {question.text}" if question.hint else question.text
    mark = len(encode("\n")) + len(encode(head)) - 1
    first = mark + len(encode(" There are several options:")) + 4  # newline, letter, point, word
    options = [first + 4 * i for i in range(len(question.options))]
    index = question.options.index(question.answer)
    letter = encode("ABCD"[index])[0]
    ids += [letter, _tokenizer().eos_token_id]
    return Row(
        ids,
        mark,
        encode(question.answer)[0],
        question.cells,
        question.kind,
        letter,
        options[index],
        options,
    )


def rows(scene: Scene, rng: Random, count: int, full: bool, weights: dict[str, float]) -> list[Row]:
    """`count` questions about a scene; `weights` says how often each kind is asked."""
    out: list[Row] = []
    kinds, share = list(weights), list(weights.values())
    while len(out) < count:
        question = ask(scene, rng.choices(kinds, share)[0], rng)
        if question is not None:
            out.append(full_row(question) if full else bare_row(question))
    return out


@dataclass
class Batch:
    """Padded rows, `per_scene` consecutive rows for each scene."""

    ids: Tensor  # [rows, T]
    mark: Tensor  # [rows]
    last: Tensor  # [rows] the token that predicts the letter; -1 on bare rows
    tail: Tensor  # [rows, 2] first token after the options, and the letter's position
    content: Tensor
    letter: Tensor
    option: Tensor
    options: Tensor  # [rows, 4], -1 pads
    cells: Tensor  # bool [rows, tokens of the image]
    kinds: Tensor  # index into the kinds of question
    per_scene: int

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        tensors = {n: v.to(device) for n, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)


def collate(
    items: list[Row],
    per_scene: int,
    image_tokens: int = IMAGE_TOKENS,
    kinds: Sequence[str] = tuple(KINDS),
) -> Batch:
    """Pad rows on the right."""
    width = max(len(row.ids) for row in items)
    cells = torch.zeros(len(items), image_tokens, dtype=torch.bool)
    for index, row in enumerate(items):
        cells[index, list(row.cells)] = True
    return Batch(
        ids=torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in items]),
        mark=torch.tensor([row.mark for row in items]),
        last=torch.tensor([len(row.ids) - 3 if row.letter >= 0 else -1 for row in items]),
        tail=torch.tensor([row.tail for row in items]),
        content=torch.tensor([row.content for row in items]),
        letter=torch.tensor([row.letter for row in items]),
        option=torch.tensor([row.option for row in items]),
        options=torch.tensor([row.options + [-1] * (4 - len(row.options)) for row in items]),
        cells=cells,
        kinds=torch.tensor([kinds.index(row.kind) for row in items]),
        per_scene=per_scene,
    )
