"""Stage 8: the language model learns to read out pictures, thing after thing.

A cell that begins a thing holds the thing before it; the last word of a thing finds that cell and
says what stands there. A colour finds its own thing and says its shape. While the question is read
the same heads look at all things alike: eviction methods choose by what the last queries look at.
Lists are said in between, so that they are not forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor, nn

from harness.drawing.poster import read_out, said, sample_poster
from harness.drawing.wall import CELLS, Placed, Wall
from harness.embedded.scenes import ACROSS, QUESTION
from harness.embedded.scenes import draw as draw_benchmark
from scripts.tiny_vlm import attention_hints, language, lists, recall
from scripts.tiny_vlm.attention_hints import PackedHint
from scripts.tiny_vlm.lists import Listing, Lists, Pairs
from scripts.tiny_vlm.reading import BOS, EOS, WORD, encode, padded
from scripts.tiny_vlm.tower import features
from scripts.tiny_vlm.wiring import BIND, MATCH

LOOK = ((2, (0, 1)), (4, (0, 1)))  # heads that look at what a word itself stands for
MOST = {"shapes": 8, "digits": 8, "words": 8}


@dataclass(frozen=True)
class ReadingOut:
    """How one stage of pictures runs; it moves on when every size's accuracy passes `goal`."""

    across: tuple[int, ...]  # tiles of a side; drawn evenly
    things: tuple[int, int]  # the fewest and the most of a picture
    reading: Listing  # lists, so that they are not forgotten
    max_steps: int
    rate: float  # learning rate
    tokens: int = 2400  # a step, about
    other: int = 3  # every so many steps also a step of lists
    goal: float = 0.97
    hint_weight: float = 0.3
    names_weight: float = 0.1  # of naming the picture's words while the question is read
    partial: float = 0.0  # share of pictures that are also read out from a part
    guided: bool = True  # whether things and answers are told where to look; questions always are
    decay: bool = False
    every: int = 50  # steps between measurements


@dataclass
class Shown(Lists):
    """Rows of a picture and its question, once or twice; `shown` are the tower's features."""

    shown: Tensor = field(default_factory=lambda: torch.empty(0))  # [B, tiles, 64, width]
    looked: list[Pairs] = field(default_factory=list)  # a word of the answer to its own thing
    surveyed: list[Pairs] = field(default_factory=list)  # a word of the question to any thing


def places(things: list[Placed], first: int) -> list[tuple[int, ...]]:
    """Where each thing is in a prompt whose image begins at `first`."""
    return [tuple(first + cell + cell // CELLS for cell in thing.cells()) for thing in things]


def pack(walls: list[Wall], shown: Tensor, rng: Random, partial: float = 0.0) -> Shown:
    """A row for each picture: the question answered whole, and from a part of it if `partial`."""
    rows, predictions, names, hidden = [], [], [], []
    pairs: tuple[list[Pairs], ...] = ([], [], [], [], [])
    named = torch.zeros(len(walls), len(WORD))
    before = [BOS, *encode("USER:")]
    question = [*encode(f"\n{QUESTION}"), *encode("ASSISTANT:")]
    number = 0
    for index, wall in enumerate(walls):
        tiles = len(wall.tiles)
        tile = [WORD["<image>"]] * CELLS
        ids = [*before, *tile, *([WORD["\n"], *tile] * (tiles - 1))]
        end, things = len(ids), read_out(wall)
        at = places(things, len(before))
        words = [[WORD[w] for w in said(thing)] for thing in things]
        flat = [w for each in words for w in each]
        named[index, flat] = 1 / len(flat)
        positions, segments, lasts = list(range(end)), [0] * end, [False] * end
        binds: Pairs = []
        for each, earlier in zip(at, [(len(before) - 1,), *at], strict=False):
            starts = each[:1] if len(each) == 4 else each  # a word's two cells both begin it
            binds += [(cell, earlier) for cell in starts]
        matched: Pairs = []
        looked: Pairs = []
        surveyed: Pairs = []
        for segment, whole in enumerate([True, False][: 2 if partial > rng.random() else 1], 1):
            base = len(ids)
            last = base + len(question) - 1
            kept = list(range(len(things)))
            if not whole:
                rate = 0.9 * rng.random()
                lost = {x for x in (*range(end), *range(base, last)) if rng.random() < rate}
                kept = [k for k in kept if at[k][0] not in lost] or kept[:1]
                lost -= set(at[kept[0]])
                hidden.append((index, segment, sorted(lost)))
            answer = [*(w for k in kept for w in words[k]), EOS]
            for step, word in enumerate(answer):
                predictions.append((index, last + step, word, 0, whole, number))
            if whole:
                binds.append((base + 1, at[-1]))
                names += [(index, x) for x in range(base, last)]
                surveyed += [(x, rng.choice(at)) for x in range(base, last + 1)]
                here = last
                for k in kept:
                    matched.append((here, at[k][:1] if len(at[k]) == 4 else at[k]))
                    looked += [(here + 1 + i, at[k]) for i in range(len(words[k]))]
                    here += len(words[k])
                matched.append((here, (base + 1,)))
            ids += [*question, *answer]
            size = len(question) + len(answer)
            positions += range(end, end + size)
            segments += [segment] * size
            lasts += [x >= last for x in range(base, base + size)]
            number += 1
        for column, found in zip(pairs, (binds, matched, [], looked, surveyed), strict=True):
            column.append(found)
        rows.append((ids, positions, segments, lasts))
    row, spot, wanted, kinds, wholes, asked = map(torch.tensor, zip(*predictions, strict=True))
    return Shown(
        *padded(rows),
        *(row, spot, wanted, kinds, wholes, asked, torch.tensor(names), named, hidden),
        *pairs[:3],
        shown,
        *pairs[3:],
    )


def draw(model: nn.Module, rng: Random, stage: ReadingOut) -> Shown:
    """One step's pictures, all of one size."""
    across = rng.choice(stage.across)
    count = max(1, stage.tokens // (across**2 * (CELLS + 1) + 70))
    walls = []
    for _ in range(count):
        low, high = stage.things
        size = rng.randint(low, high)
        kinds = [kind for kind, most in MOST.items() for _ in range(most)]
        picked = rng.sample(kinds, size)
        walls.append(sample_poster(rng, across, **{kind: picked.count(kind) for kind in MOST}))
    return pack(walls, seen(model, walls), rng, stage.partial)


def seen(model: nn.Module, walls: list[Wall]) -> Tensor:
    """The tower's features of pictures of one size, [B, tiles, 64, width]."""
    hidden = features(model, [tile for wall in walls for tile in wall.tiles]).clone()
    return hidden.unflatten(0, (len(walls), -1))


def forward(model: nn.Module, packed: Shown, mask: Tensor) -> tuple[Tensor, ...]:
    """Hidden states after each layer, [B, S, d]; mask bool [B, S, S]."""
    text = model.model.language_model
    first = len(encode("USER:")) + 1
    image = language.shown(model, packed.shown)
    embedded = text.embed_tokens(packed.ids)
    after = embedded[:, first + image.shape[1] :]
    return text(
        inputs_embeds=torch.cat((embedded[:, :first], image, after), 1),
        position_ids=packed.positions,
        attention_mask=mask[:, None],
        use_cache=False,
        output_hidden_states=True,
    ).hidden_states[1:]


def hints(
    packed: Shown, visible: Tensor, generator: torch.Generator, guided: bool
) -> list[PackedHint]:
    """Words of the question to all things; if `guided`, things to what stands before them, and
    words of the answer to the next thing and to their own.
    """
    matched, looked = packed.surveyed, packed.surveyed
    if guided:
        looked = [a + b for a, b in zip(looked, packed.looked, strict=True)]
        first = [dict(pairs) for pairs in packed.matched]  # the prompt's last token begins there
        rows = zip(matched, first, strict=True)
        matched = [[*begun.items(), *(p for p in a if p[0] not in begun)] for a, begun in rows]
    found = [recall.looking(*place, matched, visible, generator) for place in MATCH]
    found += [recall.looking(*place, looked, visible, generator) for place in LOOK]
    if guided:
        found.append(recall.looking(*BIND, packed.binds, visible, generator))
    return [item for item in found if item is not None]


@torch.no_grad()
def accuracy(model: nn.Module, sizes: tuple[int, ...], seed: int, count: int = 4) -> dict:
    """Shares by tiles across: next words that are right, and answers that are right throughout.

    The right words stand before each, so a whole answer is right where greedy decoding's is.
    """
    rng, out = Random(seed), {}
    attention_hints.set_hints([])
    for across in sizes:
        walls = [draw_benchmark(rng, across) for _ in range(count)]
        packed = pack(walls, seen(model, walls), rng)
        _, hits = lists.loss_of(model, forward(model, packed, packed.visible()), packed, 0.0)
        whole = [bool(hits[packed.asked == n].all()) for n in packed.asked.unique()]
        words = round(hits.float().mean().item(), 3)
        out[f"tiles {across}"] = {"words": words, "answers": round(sum(whole) / count, 3)}
    return out


def train(
    model: nn.Module,
    stage: ReadingOut,
    rng: Random,
    log: Callable[[str], None],
    save: Callable[[], None] | None = None,
) -> dict:
    """Run one stage; returns the last accuracies by tiles across, and those of lists."""
    parameters = [
        *model.model.language_model.parameters(),
        *model.model.multi_modal_projector.parameters(),
        *model.lm_head.parameters(),
    ]
    optimizer = torch.optim.AdamW(parameters, lr=stage.rate, betas=(0.9, 0.98), weight_decay=0.01)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / 50)
        return warm * max(0.02, 1 - step / stage.max_steps) if stage.decay else warm

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    sizes = tuple(across for across in ACROSS.values() if across <= max(stage.across))
    start, tokens, known = time.perf_counter(), 0, {}
    for step in range(stage.max_steps):
        packed = draw(model, rng, stage)
        visible = packed.visible()
        attention_hints.set_hints(hints(packed, visible, generator, stage.guided))
        states = forward(model, packed, visible)
        loss, _ = lists.loss_of(model, states, packed, stage.names_weight)
        hint = torch.as_tensor(attention_hints.collect())
        optimizer.zero_grad(set_to_none=True)
        (loss + stage.hint_weight * hint).backward()
        if step % stage.other == 0:
            remember(model, stage.reading, rng)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        tokens += packed.ids.numel()
        if step % stage.every == stage.every - 1 or step == stage.max_steps - 1:
            known = accuracy(model, sizes, seed=1)
            right = min(each["words"] for each in known.values())
            known |= lists.accuracy(model, stage.reading.words[1:], seed=1)
            told = " ".join(f"{k} {v['words']:.2f}/{v['answers']:.2f}" for k, v in known.items())
            log(
                f"pictures of {max(stage.across)} step {step + 1} loss {loss.item():.3f} hints "
                f"{hint.item():.2f} {time.perf_counter() - start:.0f} s "
                f"{time.process_time():.0f} s of CPU {tokens / 1e6:.1f} M tokens | {told}"
            )
            if save is not None:
                save()
            if not stage.decay and right > stage.goal:
                break
    attention_hints.set_hints([])
    return known


def remember(model: nn.Module, reading: Listing, rng: Random) -> None:
    """Add the gradient of some lists."""
    attention_hints.set_hints([])
    packed = lists.draw(rng, reading)
    states = recall.forward(model, packed, packed.visible())
    loss, _ = lists.loss_of(model, states, packed, reading.names_weight)
    loss.backward()
