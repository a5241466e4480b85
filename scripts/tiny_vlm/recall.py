"""Stage 5: the language model learns to find words in long texts, without losing the pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn

from scripts.tiny_vlm import attention_hints, language, reading
from scripts.tiny_vlm.attention_hints import PackedHint
from scripts.tiny_vlm.language import Pool
from scripts.tiny_vlm.reading import Packed, Segments
from scripts.tiny_vlm.wiring import BIND, ECHO, FETCH, MATCH, SAID, UNSAID


@dataclass(frozen=True)
class Reading:
    """How one stage of texts runs; it moves on when every kind's accuracy passes `goal`."""

    lengths: tuple[int, ...]
    kinds: tuple[str, ...]
    tokens: int  # a step, about
    questions: int  # a text
    goal: float
    max_steps: int
    rate: float  # learning rate
    pictures: int = 3  # every so many steps also a step of pictures
    decay: bool = False
    horizon: int = 0  # steps until a falling rate is down; 0 is max_steps
    partial: bool = False
    most_weight: float = 2.3  # of a kind among the texts that are drawn
    hint_weight: float = 0.3
    most_hints: int = 96
    every: int = 50  # steps between measurements
    spoken: bool = False  # hint at what has been said, too


Pairs = list[list[tuple[int, tuple[int, ...]]]]  # of each row: a token, and what it looks at


def looking(
    layer: int,
    heads: tuple[int, ...],
    wanted: Pairs,
    visible: Tensor,
    generator: torch.Generator,
    most: int = 96,
) -> PackedHint | None:
    """Where `heads` of a layer should look, for at most `most` tokens a row; None for no token."""
    size = min(most, max(map(len, wanted)))
    if not size:
        return None
    keys = visible.shape[-1]
    at = torch.full((len(wanted), size), -1)
    mask = torch.zeros(len(wanted), size, keys, dtype=torch.bool)
    for row, pairs in enumerate(wanted):
        order = torch.randperm(len(pairs), generator=generator)[:size].tolist()
        for index, pick in enumerate(order):
            at[row, index] = pairs[pick][0]
            mask[row, index, list(pairs[pick][1])] = True
    seen = visible.gather(1, at.clamp_min(0)[..., None].expand(-1, -1, keys))
    return PackedHint(layer, heads, at, mask, seen)


def hints(
    packed: Packed, visible: Tensor, generator: torch.Generator, most: int, spoken: bool
) -> list[PackedHint]:
    """Value to its key, tokens behind a key to the key, and those to the value.

    most: tokens a row and hint. spoken: also from each token to itself, and from a word of an
    answer in any order to all that is said of it.
    """
    fetched: Pairs = [[] for _ in packed.binds]
    for row, at, key in packed.fetch.tolist():
        fetched[row].append((at, (key,)))
    bound = [[(at, (key,)) for at, key in pairs] for pairs in packed.binds]

    def hint(layer: int, heads: tuple[int, ...], wanted: Pairs) -> PackedHint | None:
        return looking(layer, heads, wanted, visible, generator, most)

    echoed = [
        packed.looks[i] if kind in reading.ECHOED else packed.repeats[i]
        for i, kind in enumerate(packed.kinds)
    ]
    matched = [[] if k in reading.ECHOED else packed.looks[i] for i, k in enumerate(packed.kinds)]
    found = [hint(*BIND, bound), hint(*FETCH, fetched), hint(*ECHO, echoed)]
    found += [hint(*place, matched) for place in (UNSAID if spoken else MATCH)]
    if spoken:
        found.append(hint(*SAID, packed.said))
    return [item for item in found if item is not None]


def forward(model: nn.Module, packed: Segments, mask: Tensor) -> tuple[Tensor, ...]:
    """Hidden states after each layer, [B, S, d]; mask bool [B, S, S]."""
    text = model.model.language_model
    return text(
        inputs_embeds=text.embed_tokens(packed.ids),
        position_ids=packed.positions,
        attention_mask=mask[:, None],
        use_cache=False,
        output_hidden_states=True,
    ).hidden_states[1:]


def partial(packed: Segments, visible: Tensor, generator: torch.Generator) -> Tensor:
    """`visible`, in which the answers of a third of the questions see down to 10 % of the rest."""
    rows, width = packed.ids.shape
    most = int(packed.segments.max()) + 1
    rate = 0.9 * torch.rand(rows, most, generator=generator)
    rate *= torch.rand(rows, most, generator=generator) < 0.33
    rate = rate.gather(1, packed.segments.clamp_min(0))  # [B, S] by query
    lost = torch.rand(rows, most, width, generator=generator)
    pick = packed.segments.clamp_min(0)[..., None].expand(-1, -1, width)
    hidden = lost.gather(1, pick) < rate[..., None]
    hidden &= packed.lasts[:, :, None] & ~packed.lasts[:, None, :]
    return visible & ~hidden


def loss_of(model: nn.Module, states: tuple[Tensor, ...], packed: Packed) -> tuple[Tensor, Tensor]:
    """-log of the mass on right next words, and whether each best word is a right one, bool [n]."""
    logits = model.lm_head(states[-1][packed.row, packed.at])
    right = packed.wanted.clamp_min(0)
    chosen = logits.log_softmax(-1).gather(1, right).masked_fill(packed.wanted < 0, -torch.inf)
    each = -chosen.logsumexp(-1)
    loss = each[packed.answer].mean() + 0.5 * each[~packed.answer].mean().nan_to_num()
    if len(packed.fetch):
        row, at, key = packed.fetch.unbind(1)
        norm = model.model.language_model.norm
        held = model.lm_head(norm(states[FETCH[0]][row, at]))
        loss = loss + 0.3 * nn.functional.cross_entropy(held, packed.ids[row, key])
    hits = (logits.argmax(-1, keepdim=True) == packed.wanted).any(-1)
    return loss, hits


def draw(rng: Random, stage: Reading, length: int, weights: dict[str, float]) -> Packed:
    """One step's texts, all about `length` tokens long."""
    size = length + 40 * stage.questions
    items = [
        reading.draw_text(rng.choices(list(weights), list(weights.values()))[0], rng, length)
        for _ in range(max(2, stage.tokens // size))
    ]
    return reading.pack(items, rng, stage.questions)


@torch.no_grad()
def accuracy(model: nn.Module, stage: Reading, seed: int, length: int) -> dict[str, float]:
    """Share of right next words in answers (with the right words before them), by kind."""
    rng, out = Random(seed), {}
    attention_hints.set_hints([])
    for kind in stage.kinds:
        packed = reading.pack([reading.draw_text(kind, rng, length) for _ in range(8)], rng, 4)
        _, hits = loss_of(model, forward(model, packed, packed.visible()), packed)
        words = packed.answer & (packed.wanted[:, 0] != reading.EOS)
        out[kind] = hits[words].float().mean().item()
    return out


def train(
    model: nn.Module,
    pool: Pool,
    held_out: Pool,
    stage: Reading,
    rng: Random,
    log: Callable[[str], None],
    save: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Run one stage; returns the last accuracies, of pictures (the mean) as well."""
    parameters = [
        *model.model.language_model.parameters(),
        *model.model.multi_modal_projector.parameters(),
        *model.lm_head.parameters(),
    ]
    optimizer = torch.optim.AdamW(parameters, lr=stage.rate, betas=(0.9, 0.98), weight_decay=0.01)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / 50)
        left = 1 - step / (stage.horizon or stage.max_steps)
        return warm * max(0.02, left) if stage.decay else warm

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    weights, known = dict.fromkeys(stage.kinds, 1.0), {}
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    start, tokens = time.perf_counter(), 0
    shown = language.Stage(True, 8, 6, 1, 1, 1, partial=True)
    evenly = dict.fromkeys(language.KINDS, 1.0)
    for step in range(stage.max_steps):
        packed = draw(rng, stage, rng.choice(stage.lengths), weights)
        visible = packed.visible()
        hinted = hints(packed, visible, generator, stage.most_hints, stage.spoken)
        attention_hints.set_hints(hinted)
        mask = partial(packed, visible, generator) if stage.partial else visible
        loss, _ = loss_of(model, forward(model, packed, mask), packed)
        hint = torch.as_tensor(attention_hints.collect())
        total = loss + stage.hint_weight * hint
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        tokens += packed.ids.numel()
        if step % stage.pictures == 0:
            hidden, batch = language.draw_batch(pool, rng, shown, evenly)
            attention_hints.set_hints(language.hints(batch))
            seen = language.partial_view(batch, generator)
            other, _ = language.losses(model, language.forward(model, hidden, batch, seen), batch)
            (other + 0.2 * attention_hints.collect()).backward()
            tokens += batch.ids.numel() + len(hidden) * 67
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % stage.every == stage.every - 1 or step == stage.max_steps - 1:
            known = accuracy(model, stage, 1, max(stage.lengths))
            weights = {k: min(stage.most_weight, 0.3 + 2 * (1 - v)) for k, v in known.items()}
            pictures = language.accuracy(model, held_out, True, seed=1, count=8)
            known["pictures"] = sum(pictures.values()) / len(pictures)
            said = " ".join(f"{kind} {value:.2f}" for kind, value in known.items())
            log(
                f"texts of {max(stage.lengths)} step {step + 1} loss {loss.item():.3f} hints "
                f"{hint.item():.2f} {time.perf_counter() - start:.0f} s "
                f"{tokens / 1e6:.1f} M tokens | {said}"
            )
            if save is not None:
                save()
            if not stage.decay and min(known.values()) > stage.goal:
                break
    attention_hints.set_hints([])
    return known
