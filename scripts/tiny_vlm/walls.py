"""Stage 6: the language model learns to find one thing among many in a picture of many tiles.

No head is told where to look here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor, nn

from harness.drawing.wall import CELLS, Wall, sample_wall
from harness.embedded.wall_questions import KINDS, ask
from scripts.tiny_vlm import attention_hints, language, lessons, recall
from scripts.tiny_vlm.language import Pool
from scripts.tiny_vlm.lessons import Batch, Row
from scripts.tiny_vlm.tower import features


@dataclass(frozen=True)
class Looking:
    """How one stage of walls runs."""

    across: tuple[int, ...]  # tiles of a side; drawn evenly
    tiles: int  # a step, about
    questions: int  # a wall
    max_steps: int
    rate: float  # learning rate
    reading: recall.Reading  # texts, so that they are not forgotten
    other: int = 3  # every so many steps also a step of texts, and one of short pictures
    every: int = 100
    decay: bool = False


def tokens(across: int) -> int:
    """Image tokens of a wall: 64 a tile, and a newline between two."""
    return across * across * (CELLS + 1) - 1


def rows(wall: Wall, rng: Random, count: int, weights: dict[str, float]) -> list[Row]:
    """`count` whole questions about a wall; `weights` says how often each kind is asked."""
    out: list[Row] = []
    kinds, share = list(weights), list(weights.values())
    while len(out) < count:
        question = ask(wall, rng.choices(kinds, share)[0], rng)
        if question is not None:
            at = tuple(cell + cell // CELLS for cell in question.cells)
            out.append(lessons.full_row(replace(question, cells=at)))
    return out


def draw(
    model: nn.Module, rng: Random, across: int, count: int, each: int, weights: dict[str, float]
) -> tuple[Tensor, Batch]:
    """Features [count, tiles, 64, width] of new walls, and their questions."""
    walls = [sample_wall(rng, across) for _ in range(count)]
    hidden = features(model, [tile for wall in walls for tile in wall.tiles]).clone()
    asked = [row for wall in walls for row in rows(wall, rng, each, weights)]
    batch = lessons.collate(asked, each, tokens(across), list(KINDS))
    return hidden.unflatten(0, (count, across * across)), batch.to(hidden.device)


@torch.no_grad()
def accuracy(
    model: nn.Module, across: int, seed: int, walls: int = 16, each: int = 12
) -> dict[str, float]:
    """Share of letters that are right, by kind, on new walls."""
    rng, kinds = Random(seed), list(KINDS)
    right, total = torch.zeros(len(kinds)), torch.zeros(len(kinds))
    attention_hints.set_hints([])
    for _ in range(walls):
        hidden, batch = draw(model, rng, across, 1, each, dict.fromkeys(kinds, 1.0))
        _, hits = language.losses(model, language.forward(model, hidden, batch), batch)
        right.index_add_(0, batch.kinds.cpu(), hits["letter"].float().cpu())
        total.index_add_(0, batch.kinds.cpu(), torch.ones(len(batch.kinds)))
    return {k: float(r / n) for k, r, n in zip(kinds, right, total, strict=True) if n}


def train(
    model: nn.Module,
    pool: Pool,
    held_out: Pool,
    stage: Looking,
    rng: Random,
    log: Callable[[str], None],
    save: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Run one stage; returns the last accuracies on the largest walls, and of what was known."""
    language_model, projector = model.model.language_model, model.model.multi_modal_projector
    parameters = [
        *language_model.parameters(),
        *projector.parameters(),
        *model.lm_head.parameters(),
    ]
    optimizer = torch.optim.AdamW(parameters, lr=stage.rate, betas=(0.9, 0.98), weight_decay=0.01)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / 50)
        return warm * max(0.02, 1 - step / stage.max_steps) if stage.decay else warm

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    weights, known = dict.fromkeys(KINDS, 1.0), {}
    texts = dict.fromkeys(stage.reading.kinds, 1.0)
    start = time.perf_counter()
    for step in range(stage.max_steps):
        across = rng.choice(stage.across)
        count = max(1, min(6, stage.tiles // across**2))
        hidden, batch = draw(model, rng, across, count, stage.questions, weights)
        seen = language.partial_view(batch, generator)
        loss, _ = language.losses(model, language.forward(model, hidden, batch, seen), batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if step % stage.other == 0:
            remember(model, pool, stage.reading, rng, generator, texts)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % stage.every == stage.every - 1 or step == stage.max_steps - 1:
            known = accuracy(model, max(stage.across), seed=1)
            weights |= {kind: 0.3 + 2 * (1 - value) for kind, value in known.items()}
            before = kept(model, held_out, stage.reading)
            texts = {kind: 0.3 + 2 * (1 - before[kind]) for kind in texts}
            known |= {f"before: {kind}": value for kind, value in before.items()}
            said = " ".join(f"{kind} {value:.2f}" for kind, value in known.items())
            log(
                f"walls of {max(stage.across)} step {step + 1} loss {loss.item():.3f} "
                f"{time.perf_counter() - start:.0f} s | {said}"
            )
            if save is not None:
                save()
    return known


def remember(
    model: nn.Module,
    pool: Pool,
    reading: recall.Reading,
    rng: Random,
    generator: torch.Generator,
    weights: dict[str, float],
) -> None:
    """Add the gradient of some texts and of some short pictures."""
    packed = recall.draw(rng, reading, rng.choice(reading.lengths), weights)
    mask = recall.partial(packed, packed.visible(), generator)
    loss, _ = recall.loss_of(model, recall.forward(model, packed, mask), packed)
    loss.backward()
    shown = language.Stage(True, 8, 6, 1, 1, 1, partial=True)
    hidden, batch = language.draw_batch(pool, rng, shown, dict.fromkeys(language.KINDS, 1.0))
    seen = language.partial_view(batch, generator)
    loss, _ = language.losses(model, language.forward(model, hidden, batch, seen), batch)
    loss.backward()


def kept(model: nn.Module, held_out: Pool, reading: recall.Reading) -> dict[str, float]:
    """Accuracy on texts by kind, and the mean on short pictures."""
    known = recall.accuracy(model, reading, 1, max(reading.lengths))
    pictures = language.accuracy(model, held_out, True, seed=1, count=8)
    return known | {"pictures": sum(pictures.values()) / len(pictures)}
