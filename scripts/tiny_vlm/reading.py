"""Turns long texts with questions into packed token rows, with what to predict and where to look.

A row is one text and several questions behind it. Each question sees the text and itself, at the
positions it would have alone. Every token behind the word that a question asks about should find
the answer, not only the last one: eviction methods choose by what the last queries look at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from harness.embedded import texts
from harness.embedded.texts import Query, Text
from harness.embedded.words import KEYS, LABELS, NAMES, VALUES, pieces
from scripts.tiny_vlm.build import vocabulary

WORD = {word: index for index, word in enumerate(vocabulary())}
BOS, EOS = WORD["<s>"], WORD["</s>"]
_VALUES, _NAMES, _KEYS, _LABELS = (
    frozenset(WORD[w] for w in group) for group in (VALUES, NAMES, KEYS, LABELS)
)
# How far before a word that answers lies the word that it belongs to, by kind of text.
OFFSETS = {"niah": 3, "needle": 2, "key_value": 2, "retrieval": 6, "count": 6, "few_shot": 5}
ECHOED = ("tracking", "retrieval")  # kinds whose key is looked up itself, for what it belongs to
SEVERAL = "several"  # those texts of niah whose keys have several values
SETS = texts.VALUES_EACH  # the most words of which any is right next


def encode(text: str) -> list[int]:
    """Token ids, as the tokenizer gives them without special tokens."""
    return [WORD.get(piece, WORD["<unk>"]) for piece in pieces(text)]


def draw_text(kind: str, rng: Random, length: int) -> Text:
    """A text for training: as many things hidden in it as chance has it and its length allows."""
    room = length - 65
    many = lambda each, most: rng.randint(1, max(1, min(most, room // each)))  # noqa: E731
    if kind == "niah" and rng.random() >= 0.4:
        return texts.niah(rng, length, many(14, 16))
    if kind in ("niah", SEVERAL):
        return texts.niah(rng, length, many(54, 3), texts.VALUES_EACH)
    if kind == "tracking":
        return texts.tracking(rng, length, many(32, 4))
    if kind == "needle":
        return texts.needle(rng, length, many(9, 16))
    if kind == "key_value":
        return texts.key_value(rng, length, many(11, 16))
    if kind == "retrieval":
        return texts.retrieval(rng, length, 1 + max(1, min(rng.randint(1, 8), (room - 50) // 13)))
    if kind == "count":
        paragraphs = 1 + max(1, min(rng.randint(1, 8), (room - 70) // 16))
        return texts.count(rng, length, paragraphs, rng.randint(1, paragraphs))
    return texts.few_shot(rng, length, rng.randint(2, 5))


def bindings(kind: str, ids: list[int]) -> list[tuple[int, int]]:
    """Pairs of positions in a text: a word that a question will look at, and what it belongs to."""
    if kind == "tracking":
        out = []
        for at, token in enumerate(ids):
            if token in _VALUES:
                out.append((at, at - 2))
            elif token in _NAMES and ids[at - 2] == WORD["="]:
                out.append((at, at - 3))
        return out
    wanted = {"retrieval": _KEYS, "count": _KEYS, "few_shot": _LABELS}.get(kind, _VALUES)
    return [(at, at - OFFSETS[kind]) for at, token in enumerate(ids) if token in wanted]


def repeats(kind: str, ids: list[int]) -> list[tuple[int, tuple[int, ...]]]:
    """Where passages are counted: each subject's word with its earlier places, else itself."""
    earlier: dict[int, list[int]] = {}
    out = []
    for at, _ in bindings(kind, ids) if kind == "count" else ():
        out.append((at, tuple(earlier.get(ids[at], [at]))))
        earlier.setdefault(ids[at], []).append(at)
    return out


@dataclass
class Steps:
    """What one question asks of its tokens; positions count from the question's first token."""

    ids: list[int]
    key: int  # position of the word asked about; -1 where there is none
    last: int  # the prompt's last token
    targets: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)  # any of these next
    looks: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)  # positions in the text
    said: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)  # at least itself


def steps(text: Text, query: Query, context: list[int], rng: Random) -> Steps:
    """Tokens, targets and wanted attention of one question. Answers in any order are shuffled."""
    prompt = encode(query.after)
    if text.wrapped:
        prompt += encode(f"ASSISTANT: {query.prefix}")
    said = [WORD[word] for word in query.outputs]
    if not query.ordered:
        rng.shuffle(said)
    out = Steps([*prompt, *said, EOS], -1, len(prompt) - 1)
    if query.key:
        out.key = prompt.index(WORD[query.key])
    where: dict[int, list[int]] = {}
    for at, _ in bindings(text.kind, context):
        where.setdefault(context[at], []).append(at)
    first = tuple(said) if not query.ordered else (said[0],)
    start = out.key + 1 if query.key else out.last
    seen = WORD[query.key] if text.kind in ECHOED else None
    for at in range(start, len(prompt)):
        out.said.append((at, (at,)))
        out.targets.append((at, first))
        shown = first if seen is None else (seen,)
        look = [place for word in shown for place in where.get(word, [])]
        if text.kind == "count":
            look = [place for places in where.values() for place in places]
        if look:
            out.looks.append((at, tuple(look)))
    for index in range(len(said)):
        at, left = out.last + 1 + index, said[index + 1 :]
        rest = (tuple(left) if not query.ordered else tuple(left[:1])) or (EOS,)
        out.targets.append((at, rest))
        look = where.get(said[index], []) if text.kind == "tracking" else []
        out.said.append((at, (at,) if query.ordered else tuple(range(out.last + 1, at + 1))))
        if not query.ordered and left:
            look = [p for w in left for p in where[w]]
        if look:
            out.looks.append((at, tuple(look)))
    return out


@dataclass
class Segments:
    """Rows of a text with questions behind it: each question sees the text and itself."""

    ids: Tensor  # [B, S]
    positions: Tensor  # [B, S]
    segments: Tensor  # [B, S] 0 text, 1.. questions, -1 padding
    lasts: Tensor  # bool [B, S] from the last token of a prompt on

    def visible(self) -> Tensor:
        """What each token may look at, bool [B, S, S]."""
        same = self.segments[:, :, None] == self.segments[:, None, :]
        text = (self.segments == 0)[:, None, :]
        causal = torch.ones(self.ids.shape[1:] * 2, dtype=torch.bool).tril()
        return (same | text) & causal


@dataclass
class Packed(Segments):
    """Rows of a text and its questions, padded on the right."""

    row: Tensor  # [n] of each prediction
    at: Tensor  # [n]
    wanted: Tensor  # [n, SETS] tokens of which any is right, -1 pads
    answer: Tensor  # bool [n] whether it is part of the answer, not a hint on the way
    kind: Tensor  # [n] index into texts.KINDS
    kinds: list[str]  # of each text
    fetch: Tensor  # [m, 3] row, token behind the key, position of the key
    binds: list[list[tuple[int, int]]]
    repeats: list[list[tuple[int, tuple[int, ...]]]]
    said: list[list[tuple[int, tuple[int, ...]]]]
    looks: list[list[tuple[int, tuple[int, ...]]]]  # tokens behind a key, and what to look at


def padded(rows: list[tuple[list, list, list, list]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, positions, segments and lasts of rows, [B, S]: segment -1 where a row has ended."""
    width = max(len(row[0]) for row in rows)
    ids, positions, segments, lasts = (
        torch.tensor([[*row, *[fill] * (width - len(row))] for row in column])
        for column, fill in zip(zip(*rows, strict=True), (0, 0, -1, False), strict=True)
    )
    return ids, positions, segments, lasts.bool()


def pack(items: list[Text], rng: Random, most: int) -> Packed:
    """Rows of up to `most` questions each."""
    rows, kinds = [], list(texts.KINDS)
    predictions: list[tuple[int, int, tuple[int, ...], bool, int]] = []
    fetch, binds, again, looks, said = [], [], [], [], []
    for number, text in enumerate(items):
        context = ([BOS, *encode("USER:")] if text.wrapped else []) + encode(text.before)
        ids, positions = list(context), list(range(len(context)))
        segments, lasts = [0] * len(context), [False] * len(context)
        binds.append(bindings(text.kind, context))
        again.append(repeats(text.kind, context))
        seen: list[tuple[int, tuple[int, ...]]] = []
        spoken: list[tuple[int, tuple[int, ...]]] = []
        asked = rng.sample(text.queries, min(most, len(text.queries)))
        for index, query in enumerate(asked, 1):
            plan, base = steps(text, query, context, rng), len(ids)
            for at, wanted in plan.targets:
                part = at >= plan.last
                predictions.append((number, base + at, wanted, part, kinds.index(text.kind)))
            seen += [(base + at, look) for at, look in plan.looks]
            spoken += [(base + at, tuple(base + p for p in words)) for at, words in plan.said]
            if plan.key >= 0:
                answer = len(plan.ids) - 1
                for at in range(plan.key + 1, answer):
                    own = text.kind == "tracking" and at > plan.last  # the next hop starts there
                    fetch.append((number, base + at, base + (at if own else plan.key)))
            ids += plan.ids
            positions += range(len(context), len(context) + len(plan.ids))
            segments += [index] * len(plan.ids)
            lasts += [at >= plan.last for at in range(len(plan.ids))]
        looks.append(seen)
        said.append(spoken)
        rows.append((ids, positions, segments, lasts))
    row, at, sets, answer, kind = zip(*predictions, strict=True)
    ids, positions, segments, lasts = padded(rows)
    return Packed(
        ids=ids,
        positions=positions,
        segments=segments,
        lasts=lasts,
        row=torch.tensor(row),
        at=torch.tensor(at),
        wanted=torch.tensor([[*s, *[-1] * (SETS - len(s))] for s in sets]),
        answer=torch.tensor(answer),
        kind=torch.tensor(kind),
        kinds=[text.kind for text in items],
        fetch=torch.tensor(fetch).reshape(-1, 3),
        binds=binds,
        repeats=again,
        said=said,
        looks=looks,
    )
