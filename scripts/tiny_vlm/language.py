"""Stages 3 and 4: the language model learns to see (answer words), then to choose (letters).

The image is read once a scene; its keys and values are shared by all questions about the scene.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from harness.drawing import world
from harness.embedded.questions import KINDS
from scripts.tiny_vlm import attention_hints, lessons
from scripts.tiny_vlm.attention_hints import Hint
from scripts.tiny_vlm.lessons import Batch
from scripts.tiny_vlm.tower import features

# The way to a letter: look at the picture, hold the answer's word at the question mark, fetch it to
# the last token, match it with an option.
LOOK, FETCH, MATCH = 2, 4, 5


@dataclass
class Pool:
    """Scenes with the frozen tower's features of their pictures."""

    scenes: list[world.Scene]
    hidden: Tensor  # [n, 64, width]

    @classmethod
    def draw(cls, model: nn.Module, rng: Random, count: int) -> Pool:
        scenes = [world.sample_scene(rng) for _ in range(count)]
        return cls(scenes, features(model, scenes).clone())


def shown(model: nn.Module, hidden: Tensor) -> Tensor:
    """Image tokens of a prompt, with a newline between two tiles, [scenes, 65 tiles - 1, d]."""
    image = model.model.multi_modal_projector(hidden)
    if image.dim() == 3:
        return image
    (newline,) = lessons.encode("\n")
    line = model.get_input_embeddings().weight[newline].expand(*image.shape[:2], 1, -1)
    return torch.cat((image, line), 2).flatten(1, 2)[:, :-1]


def forward(
    model: nn.Module, hidden: Tensor, batch: Batch, mask: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Hidden states after each layer for every row, [rows, T, d].

    hidden: [scenes, tiles, 64, width], or without tiles.
    mask: bool [rows, 1, T, keys], True where a token may look; None is causal.
    """
    text = model.model.language_model
    device = hidden.device
    before = torch.tensor(lessons.prefix_ids(), device=device).expand(len(hidden), -1)
    image = shown(model, hidden)
    cache = DynamicCache()
    text(
        inputs_embeds=torch.cat((text.embed_tokens(before), image), 1),
        past_key_values=cache,
        use_cache=True,
    )
    shared = DynamicCache()
    for index, layer in enumerate(cache.layers):
        keys, values = (x.repeat_interleave(batch.per_scene, 0) for x in (layer.keys, layer.values))
        shared.update(keys, values, index)
    length = before.shape[1] + image.shape[1]
    positions = length + torch.arange(batch.ids.shape[1], device=device)
    return text(
        inputs_embeds=text.embed_tokens(batch.ids),
        position_ids=positions.expand(len(batch.ids), -1),
        past_key_values=shared,
        attention_mask=mask,
        use_cache=True,
        output_hidden_states=True,
    ).hidden_states[1:]


def partial_view(batch: Batch, generator: torch.Generator) -> Tensor:
    """A causal mask in which half of the full rows answer from a random part of their context.

    The tokens from `last` on lose up to 90 % of what lies before them. Without this a lost token
    makes the model stop at once; with it, it guesses a letter.
    """
    rows, width = batch.ids.shape
    past = len(lessons.prefix_ids()) + batch.cells.shape[1]
    slot = torch.arange(past + width)
    causal = slot[None, :] <= (torch.arange(width) + past)[:, None]  # [T, keys]
    rate = 0.9 * torch.rand(rows, 1, generator=generator)
    rate *= torch.rand(rows, 1, generator=generator) < 0.5
    hidden = torch.rand(rows, past + width, generator=generator) < rate
    last = batch.last.cpu()[:, None]
    hidden &= slot < last + past
    answers = (torch.arange(width) >= last) & (last >= 0)  # [rows, T]
    mask = causal & ~(hidden[:, None] & answers[:, :, None])
    return mask[:, None].to(batch.ids.device)


def tail_tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    """Row and position of every token after the options, the letter's left out; two [m]."""
    position = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    inside = (position >= batch.tail[:, :1]) & (position < batch.tail[:, 1:])
    return inside.nonzero(as_tuple=True)


def _one_hot(at: Tensor, keys: int) -> Tensor:
    return torch.arange(keys, device=at.device)[None] == at[:, None]


def hints(batch: Batch) -> list[Hint]:
    """Where to look: word before the mark, answer cells, an option's letter, mark, right option."""
    before = len(lessons.prefix_ids())
    past = before + batch.cells.shape[1]
    keys = past + batch.ids.shape[1]
    everyone = torch.arange(len(batch.ids), device=batch.ids.device)
    out = [Hint(0, (0,), everyone, batch.mark, _one_hot(batch.mark - 1 + past, keys))]
    seen = everyone[batch.cells.any(1)]
    wanted = torch.zeros(len(seen), keys, dtype=torch.bool, device=seen.device)
    wanted[:, before:past] = batch.cells[seen]
    if len(seen):
        out.append(Hint(LOOK, (0, 1), seen, batch.mark[seen], wanted))
    row, at = tail_tokens(batch)
    if len(row):
        pick = torch.randperm(len(row), device=row.device)[: 3 * len(batch.ids)]
        row, at = row[pick], at[pick]
        out.append(Hint(FETCH, (0,), row, at, _one_hot(batch.mark[row] + past, keys)))
        out.append(Hint(MATCH, (0, 1), row, at, _one_hot(batch.option[row] + past, keys)))
        row, column = (batch.options >= 0).nonzero(as_tuple=True)
        word = batch.options[row, column]
        out.append(Hint(1, (2,), row, word, _one_hot(word - 2 + past, keys)))
    return out


def losses(
    model: nn.Module, states: tuple[Tensor, ...], batch: Batch
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the answer word, the letter and the end; hits per row.

    The word is read out before FETCH at the question mark, and before MATCH and the letter after it
    at every token behind the options: what looks back from there is what the answer needs, as in a
    model that has read much text. The last token counts as much as all others together.
    """
    rows = torch.arange(len(batch.ids), device=batch.ids.device)
    norm = model.model.language_model.norm
    logits = model.lm_head(norm(states[FETCH - 1][rows, batch.mark]))
    loss = F.cross_entropy(logits, batch.content)
    hits = {"content": logits.argmax(-1) == batch.content}
    full = rows[batch.last >= 0]
    if len(full):
        last, end = batch.last[full], torch.full_like(full, model.config.text_config.eos_token_id)
        row, at = tail_tokens(batch)
        fetched = model.lm_head(norm(states[MATCH - 1][row, at]))
        loss = loss + F.cross_entropy(fetched, batch.content[row])
        early = model.lm_head(states[-1][row, at])
        loss = loss + F.cross_entropy(early, batch.letter[row])
        letters = model.lm_head(states[-1][full, last])
        loss = loss + F.cross_entropy(letters, batch.letter[full])
        loss = loss + 0.2 * F.cross_entropy(model.lm_head(states[-1][full, last + 1]), end)
        hits["letter"] = letters.argmax(-1) == batch.letter[full]
    return loss, hits


@dataclass(frozen=True)
class Stage:
    """How one stage of lessons runs; it moves on when every kind passes `goal`."""

    full: bool
    scenes: int  # a step
    questions: int  # a scene
    goal: float
    max_steps: int
    rate: float  # learning rate
    decay: bool = False
    hint_weight: float = 0.2
    partial: bool = False  # answer from a random part of the context in half of the rows


def draw_batch(
    pool: Pool, rng: Random, stage: Stage, weights: dict[str, float]
) -> tuple[Tensor, Batch]:
    """Features and rows of one step."""
    pick = rng.sample(range(len(pool.scenes)), stage.scenes)
    rows = [
        row
        for index in pick
        for row in lessons.rows(pool.scenes[index], rng, stage.questions, stage.full, weights)
    ]
    return pool.hidden[pick], lessons.collate(rows, stage.questions).to(pool.hidden.device)


@torch.no_grad()
def accuracy(
    model: nn.Module, pool: Pool, full: bool, seed: int, count: int = 24
) -> dict[str, float]:
    """Share right of each kind on the pool's first scenes: letters if `full`, else answer words."""
    rng, kinds = Random(seed), list(KINDS)
    stage = Stage(full, len(pool.scenes), count, 0, 0, 0)
    right, total = torch.zeros(len(kinds)), torch.zeros(len(kinds))
    attention_hints.set_hints([])
    for start in range(0, len(pool.scenes), 16):
        part = Pool(pool.scenes[start : start + 16], pool.hidden[start : start + 16])
        stage = Stage(full, len(part.scenes), count, 0, 0, 0)
        hidden, batch = draw_batch(part, rng, stage, dict.fromkeys(kinds, 1.0))
        _, hits = losses(model, forward(model, hidden, batch), batch)
        hit = hits["letter" if full else "content"].float().cpu()
        right.index_add_(0, batch.kinds.cpu(), hit)
        total.index_add_(0, batch.kinds.cpu(), torch.ones_like(hit))
    return dict(zip(kinds, (right / total.clamp_min(1)).tolist(), strict=True))


def train(
    model: nn.Module,
    pool: Pool,
    held_out: Pool,
    stage: Stage,
    rng: Random,
    log: Callable[[str], None],
    every: int = 100,
) -> dict[str, float]:
    """Run one stage; asks more often what is not yet known. Returns the last accuracy by kind."""
    parameters = [
        *model.model.language_model.parameters(),
        *model.model.multi_modal_projector.parameters(),
    ]
    rate = stage.rate
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / 100)
        return warm * max(0.02, 1 - step / stage.max_steps) if stage.decay else warm

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    weights = dict.fromkeys(KINDS, 1.0)
    known: dict[str, float] = {}
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    start, tokens = time.perf_counter(), 0
    for step in range(stage.max_steps):
        hidden, batch = draw_batch(pool, rng, stage, weights)
        attention_hints.set_hints(hints(batch) if stage.hint_weight else [])
        mask = partial_view(batch, generator) if stage.partial else None
        loss, _ = losses(model, forward(model, hidden, batch, mask), batch)
        total = loss + stage.hint_weight * attention_hints.collect()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        tokens += batch.ids.numel() + len(hidden) * (lessons.IMAGE_TOKENS + 3)
        if step % every == every - 1:
            known = accuracy(model, held_out, stage.full, seed=1)
            weights = {kind: 0.3 + 2 * (1 - value) for kind, value in known.items()}
            said = " ".join(f"{kind} {value:.2f}" for kind, value in known.items())
            seconds = time.perf_counter() - start
            log(
                f"{'letters' if stage.full else 'words'} step {step + 1} loss {loss.item():.3f}"
                f" {seconds:.0f} s {tokens / 1e6:.1f} M tokens | {said}"
            )
            if not stage.decay and min(known.values()) > stage.goal:
                break
    attention_hints.set_hints([])
    return known
