"""Stage 7: the language model learns to say whole lists of a text again, word after word.

A word of the answer finds itself in the list and says what stands behind it, or before it. Some
questions are answered from a part of the list: then its lost words are left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn

from harness.embedded import lists
from harness.embedded.texts import Text
from harness.embedded.words import VALUES
from scripts.tiny_vlm import attention_hints, recall
from scripts.tiny_vlm.attention_hints import PackedHint
from scripts.tiny_vlm.reading import BOS, EOS, WORD, Segments, encode, padded
from scripts.tiny_vlm.wiring import BIND, ECHO, MATCH

KINDS = tuple(lists.ASKED)
SIZES = tuple(lists.LENGTHS)
_WORDS = frozenset(WORD[word] for word in VALUES)
Pairs = list[tuple[int, tuple[int, ...]]]  # a token of a row, and the tokens to look at


@dataclass(frozen=True)
class Listing:
    """How one stage of lists runs; it moves on when every kind's accuracy passes `goal`."""

    words: tuple[int, int]  # the fewest and the most of a list
    max_steps: int
    rate: float  # learning rate
    tokens: int = 2000  # a step, about
    goal: float = 0.95
    hint_weight: float = 0.3
    names_weight: float = 0.1  # of naming the list's words while the question is read
    partial: float = 0.0  # share of questions that are answered from a part of the list
    decay: bool = False
    every: int = 50  # steps between measurements


@dataclass
class Lists(Segments):
    """Rows of a text and its questions, padded on the right."""

    row: Tensor  # [n] of each prediction
    at: Tensor  # [n]
    wanted: Tensor  # [n] the next word
    kind: Tensor  # [n] index into KINDS
    whole: Tensor  # bool [n] whether nothing is hidden from it
    asked: Tensor  # [n] number of the question
    names: Tensor  # [m, 2] row and token of the questions' tokens
    named: Tensor  # [B, vocabulary] evenly spread over the list's words
    hidden: list[tuple[int, int, list[int]]]  # row, question and tokens lost to its answer
    binds: list[Pairs]
    matched: list[Pairs]
    echoed: list[Pairs]

    def visible(self) -> Tensor:
        """What each token may look at, bool [B, S, S]."""
        mask = super().visible()
        for row, question, lost in self.hidden:
            answers = (self.segments[row] == question) & self.lasts[row]
            rows = mask[row, answers]
            rows[:, lost] = False
            mask[row, answers] = rows
        return mask


def looks(kind: str, places: list[int], last: int) -> tuple[Pairs, Pairs]:
    """Where an answer's tokens look: at the next word itself, or at what it stands before.

    places: the list's words and its full stop. last: the prompt's last token; the answer follows.
    """
    if kind == "copy":
        return [(last + i, (place,)) for i, place in enumerate(places)], []
    if kind == "reverse":
        return [], [(last + i, (place,)) for i, place in enumerate(reversed(places))]
    return [], []


def pack(texts: list[Text], rng: Random, partial: float = 0.0) -> Lists:
    """A row for each text, with all its questions."""
    rows, predictions, names, hidden = [], [], [], []
    pairs: tuple[list[Pairs], ...] = ([], [], [])
    named = torch.zeros(len(texts), len(WORD))
    number = 0
    for index, text in enumerate(texts):
        ids = [BOS, *encode("USER:"), *encode(text.before)]
        end = len(ids)
        places = [at for at, token in enumerate(ids) if token in _WORDS]
        named[index, [ids[at] for at in places]] = 1 / len(places)
        places.append(places[-1] + 1)
        positions, segments, lasts = list(range(end)), [0] * end, [False] * end
        pairs[0].append([(at, (at - 1,)) for at in places])
        matched: Pairs = []
        echoed: Pairs = []
        for question, (kind, query) in enumerate(zip(KINDS, text.queries, strict=True), 1):
            base, prompt = len(ids), [*encode(query.after), *encode("ASSISTANT:")]
            last, whole = base + len(prompt) - 1, rng.random() >= partial
            kept = places[:-1]
            if not whole:
                rate = 0.9 * rng.random()
                lost = [at for at in (*range(end), *range(base, last)) if rng.random() < rate]
                kept = [at for at in kept if at not in set(lost)] or kept[:1]
                hidden.append((index, question, [at for at in lost if at != kept[0]]))
            said = [*lists.answer(kind, [ids[at] for at in kept]), EOS]
            for step, word in enumerate(said):
                predictions.append((index, last + step, word, KINDS.index(kind), whole, number))
            names += [(index, at) for at in range(base, last)]
            for found, wanted in zip((matched, echoed), looks(kind, places, last), strict=True):
                found += wanted if whole else []
            ids += [*prompt, *said]
            size = len(prompt) + len(said)
            positions += range(end, end + size)
            segments += [question] * size
            lasts += [at >= last for at in range(base, base + size)]
            number += 1
        pairs[1].append(matched)
        pairs[2].append(echoed)
        rows.append((ids, positions, segments, lasts))
    row, at, wanted, kinds, whole_ones, asked = map(torch.tensor, zip(*predictions, strict=True))
    return Lists(
        *padded(rows),
        *(row, at, wanted, kinds, whole_ones, asked, torch.tensor(names), named, hidden),
        *pairs,
    )


def draw(rng: Random, stage: Listing) -> Lists:
    """One step's texts: all lists about as long, in more or less noise."""
    low, high = stage.words
    words = rng.randint(low, high)
    longest = lists.LENGTHS[SIZES[-1]] * words // SIZES[-1]
    texts: list[Text] = []
    tokens = 0
    while not texts or tokens < stage.tokens:
        size = max(low, words - rng.randint(0, 3))
        shortest = 2 * size + 50
        length = rng.randint(shortest, max(shortest, longest))
        texts.append(lists.draw(rng, size, length))
        tokens += length + 2 * size + 40
    return pack(texts, rng, stage.partial)


def hints(packed: Lists, visible: Tensor, generator: torch.Generator) -> list[PackedHint]:
    """Words of the list to what stands before them, words of the answer to the list."""
    found = [recall.looking(*BIND, packed.binds, visible, generator)]
    found.append(recall.looking(*ECHO, packed.echoed, visible, generator))
    found += [recall.looking(*place, packed.matched, visible, generator) for place in MATCH]
    return [item for item in found if item is not None]


def loss_of(model: nn.Module, states: tuple[Tensor, ...], packed: Lists, names: float):
    """Loss of the answers and of naming, and whether each next word is right, bool [n]."""
    logits = model.lm_head(states[-1][packed.row, packed.at])
    loss = nn.functional.cross_entropy(logits, packed.wanted)
    if names:
        row, at = packed.names.unbind(1)
        said = model.lm_head(states[-1][row, at])
        loss = loss + names * nn.functional.cross_entropy(said, packed.named[row])
    return loss, logits.argmax(-1) == packed.wanted


@torch.no_grad()
def accuracy(
    model: nn.Module, sizes: tuple[int, ...], seed: int, count: int = 6, length: int | None = None
) -> dict:
    """Shares by kind and words: next words that are right, and answers that are right throughout.

    The right words stand before each, so a whole answer is right where greedy decoding's is.
    length: tokens of a prompt with its answer; None: a benchmark's.
    """
    rng, out = Random(seed), {}
    attention_hints.set_hints([])
    for size in sizes:
        room = length or max(lists.LENGTHS[SIZES[-1]] * size // SIZES[-1], 2 * size + 50)
        packed = pack([lists.draw(rng, size, room) for _ in range(count)], rng)
        _, hits = loss_of(model, recall.forward(model, packed, packed.visible()), packed, 0.0)
        for index, kind in enumerate(KINDS):
            of = packed.kind == index
            whole = [bool(hits[packed.asked == n].all()) for n in packed.asked[of].unique()]
            words = round(hits[of].float().mean().item(), 3)
            out[f"{kind} {size}"] = {"words": words, "answers": round(sum(whole) / count, 3)}
    return out


def train(
    model: nn.Module,
    stage: Listing,
    rng: Random,
    log: Callable[[str], None],
    save: Callable[[], None] | None = None,
) -> dict:
    """Run one stage; returns the last accuracies by kind and words of the list."""
    parameters = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=stage.rate, betas=(0.9, 0.98), weight_decay=0.01)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / 50)
        return warm * max(0.02, 1 - step / stage.max_steps) if stage.decay else warm

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    sizes = tuple(size for size in SIZES if size <= stage.words[1]) or stage.words[1:]
    start, tokens, known = time.perf_counter(), 0, {}
    for step in range(stage.max_steps):
        packed = draw(rng, stage)
        visible = packed.visible()
        hinted = stage.hint_weight > 0
        attention_hints.set_hints(hints(packed, visible, generator) if hinted else [])
        states = recall.forward(model, packed, visible)
        loss, _ = loss_of(model, states, packed, stage.names_weight)
        hint = torch.as_tensor(attention_hints.collect())
        optimizer.zero_grad(set_to_none=True)
        (loss + stage.hint_weight * hint).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        tokens += packed.ids.numel()
        if step % stage.every == stage.every - 1 or step == stage.max_steps - 1:
            known = accuracy(model, sizes, seed=1)
            said = " ".join(f"{k} {v['words']:.2f}/{v['answers']:.2f}" for k, v in known.items())
            log(
                f"lists of {stage.words[1]} step {step + 1} loss {loss.item():.3f} hints "
                f"{hint.item():.2f} {time.perf_counter() - start:.0f} s "
                f"{time.process_time():.0f} s of CPU {tokens / 1e6:.1f} M tokens | {said}"
            )
            if save is not None:
                save()
            if not stage.decay and min(each["words"] for each in known.values()) > stage.goal:
                break
    attention_hints.set_hints([])
    return known
