"""Trains projector and adapter on questions; the picture is read once for all of a scene.

The answer's content is asked for at the question mark, its letter at the end of the prompt. What is
known at the question mark only above the layer that looks for the right option comes too late for
the letter. So two heads, thrown away afterwards, ask for the content behind an early layer and
where the letter is predicted, and some kinds of questions may look for their option later.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import rotate_half

from harness.embedded.questions import KINDS
from scripts.smol_vlm import rows
from scripts.smol_vlm.rows import PICTURE, Batch, Words, answers
from scripts.tiny_vlm.language import Pool

# Layers count from 0. Behind these the content is asked for too: at "?", and before the letter.
EARLY, MOVED = 16, 25
# The attention of these is told of the right option, in one KV group; kinds that come late, later.
HINTED, LATE, GROUP = 20, 26, 1
LATE_KINDS = ("location", "count", "relation")
HINT, HEAD, WORD, LETTER, END = 0.3, 0.5, 1.0, 1.0, 0.1  # weights of the losses
MOST_HIDDEN = 0.9
EQUAL = dict.fromkeys(KINDS, 1.0)  # how often each kind is asked


@dataclass(frozen=True)
class Stage:
    """How a stage runs; its learning rate falls from `fall` of the steps on, if at all."""

    name: str
    steps: int
    bares: int  # questions without options, a scene
    wholes: int  # questions with options, a scene
    scenes: int = 2  # a step and process
    rate: float = 1e-3
    goal: float = 2.0  # ends the stage once so many of the content words are right
    fall: float = 1.0
    partial: float = 1.0  # from this share of the steps on half the rows see part of the prompt


class Head(nn.Module):
    """Reads the answer's content off hidden states; only training has it. It starts at zero."""

    def __init__(self, words: Words, width: int) -> None:
        super().__init__()
        tokens = sorted({token for answer in answers() for token in words.of(answer)})
        self.register_buffer("tokens", torch.tensor(tokens))
        self.linear = nn.Linear(width, len(tokens))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor, word: Tensor) -> Tensor:
        """-log p [rows] of the answers word [rows, 2], from states [rows, width]."""
        states = F.layer_norm(states.float(), states.shape[-1:])
        classes = torch.searchsorted(self.tokens, word)
        return -self.linear(states).log_softmax(-1).gather(1, classes).mean(1)


class Reader:
    """The model with what training asks of it: states of rows behind a picture, and queries."""

    def __init__(self, model: nn.Module, words: Words, bf16: bool) -> None:
        self.text = model.model.language_model
        self.projector = model.model.multi_modal_projector
        self.words, self.bf16 = words, bf16
        width = self.text.config.hidden_size
        self.heads = nn.ModuleDict({at: Head(words, width) for at in ("mark", "last")})
        self.queries: dict[int, Tensor] = {}
        self.behind: dict[int, Tensor] = {}
        for index in {EARLY, MOVED}:
            self.text.layers[index].register_forward_hook(partial(self._keep, self.behind, index))
        for index in {HINTED, LATE}:
            projection = self.text.layers[index].self_attn.q_proj
            projection.register_forward_hook(partial(self._keep, self.queries, index))

    @staticmethod
    def _keep(
        kept: dict[int, Tensor], index: int, module: nn.Module, inputs: Any, out: Tensor
    ) -> None:
        kept[index] = out

    def read(self, hidden: Tensor) -> DynamicCache:
        """Keys and values of the prefix and the picture, for each of hidden [scenes, 64, width]."""
        with torch.autocast(hidden.device.type, torch.bfloat16, enabled=self.bf16):
            before = torch.tensor(self.words.prefix, device=hidden.device)
            image = self.projector(hidden)
            start = self.text.embed_tokens(before).expand(len(hidden), -1, -1)
            cache = DynamicCache()
            embedded = torch.cat((start, image.to(start.dtype)), 1)
            self.text(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
        return cache

    def states(
        self, cache: DynamicCache, batch: Batch, mask: Tensor | None
    ) -> tuple[Tensor, DynamicCache]:
        """Last hidden states [rows, T, d] of rows behind their scene, and their cache."""
        past = len(self.words.prefix) + PICTURE
        own = DynamicCache()
        for index, layer in enumerate(cache.layers):
            pair = (x.repeat_interleave(batch.per_scene, 0) for x in (layer.keys, layer.values))
            own.update(*pair, index)
        positions = past + torch.arange(batch.ids.shape[1], device=batch.ids.device)
        with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=self.bf16):
            found = self.text(
                inputs_embeds=self.text.embed_tokens(batch.ids),
                position_ids=positions.expand(len(batch.ids), -1),
                past_key_values=own,
                attention_mask=mask,
                use_cache=True,
            )
        return found.last_hidden_state, own

    def logits(self, states: Tensor) -> Tensor:
        """Over the vocabulary, by the tied embeddings; float32."""
        with torch.autocast(states.device.type, torch.bfloat16, enabled=self.bf16):
            return F.linear(states, self.text.embed_tokens.weight).float()

    def away(self, batch: Batch, cache: DynamicCache) -> Tensor:
        """-log of the attention from the last token to the right option, mean over a KV group."""
        late = torch.tensor([kind in LATE_KINDS for kind in KINDS], device=batch.kind.device)
        early, later = (self._away(batch, cache, index) for index in (HINTED, LATE))
        return torch.where(late[batch.kind], later, early).mean()

    def _away(self, batch: Batch, cache: DynamicCache, index: int) -> Tensor:
        """The same [rows], at one layer."""
        width = self.text.layers[index].self_attn.head_dim
        asked = self.queries[index]
        heads = asked.shape[-1] // width
        several = heads // cache.layers[index].keys.shape[1]
        row = torch.arange(len(batch.ids))
        past = len(self.words.prefix) + PICTURE
        query = asked.view(*asked.shape[:2], heads, width)[row, batch.last].float()
        query = query[:, GROUP * several : (GROUP + 1) * several]
        angles = self.text.rotary_emb(query, (past + batch.last)[:, None])
        query = query * angles[0] + rotate_half(query) * angles[1]
        keys = cache.layers[index].keys[:, GROUP].float()
        scores = torch.einsum("nhd,nsd->nhs", query, keys) / width**0.5
        later = torch.arange(keys.shape[1])[None] > (past + batch.last)[:, None]
        scores = scores.masked_fill(later[:, None], float("-inf"))
        return -scores.log_softmax(-1)[row, :, past + batch.option].mean(1)


def partial_view(batch: Batch, past: int, generator: torch.Generator) -> Tensor:
    """A causal mask [rows, 1, T, keys] in which half the rows answer from part of the prompt.

    From the token that predicts the letter on, up to 90 % of what lies before is hidden: a lost
    token then gives a wrong letter, and not a text without one.
    """
    count, width = batch.ids.shape
    slot = torch.arange(past + width)
    causal = slot[None] <= (torch.arange(width) + past)[:, None]
    rate = MOST_HIDDEN * torch.rand(count, 1, generator=generator)
    rate *= torch.rand(count, 1, generator=generator) < 0.5
    lost = torch.rand(count, past + width, generator=generator) < rate
    lost &= slot < batch.last[:, None] + past
    answers = torch.arange(width) >= batch.last[:, None]
    return (causal & ~(lost[:, None] & answers[:, :, None]))[:, None]


def losses(
    reader: Reader, hidden: Tensor, batches: list[Batch], view: torch.Generator | None, hint: float
) -> tuple[Tensor, list[tuple[str, Tensor, Tensor]]]:
    """The loss of some rows, and what was right: (word or letter, hits, kinds) for each batch."""
    picture = reader.read(hidden)
    past = len(reader.words.prefix) + PICTURE
    total, weight, hits = hidden.new_zeros(()), 0.0, []
    away = hidden.new_zeros(())
    for batch in batches:
        row = torch.arange(len(batch.ids))
        full = bool((batch.last >= 0).all())
        mask = partial_view(batch, past, view) if full and view is not None else None
        states, cache = reader.states(picture, batch, mask)
        said = reader.logits(states[row, batch.mark])
        each = -said.log_softmax(-1).gather(1, batch.word).mean(1)
        total, weight = total + WORD * each.sum(), weight + WORD * len(row)
        read = reader.heads["mark"](reader.behind[EARLY][row, batch.mark], batch.word)
        total = total + HEAD * read.sum()
        hits.append(("word", _named(said, batch.word), batch.kind))
        if full:
            letter = reader.logits(states[row, batch.last])
            read = reader.heads["last"](reader.behind[MOVED][row, batch.last], batch.word)
            total = total + HEAD * read.sum()
            end = reader.logits(states[row, batch.last + 1])
            stop = torch.full_like(row, reader.words.stop)
            total = total + LETTER * F.cross_entropy(letter, batch.letter, reduction="sum")
            total = total + END * F.cross_entropy(end, stop, reduction="sum")
            weight += (LETTER + END) * len(row)
            hits.append(("letter", letter.argmax(-1) == batch.letter, batch.kind))
            if hint:
                away = reader.away(batch, cache)
    return total / weight + hint * away, hits


def _named(logits: Tensor, word: Tensor) -> Tensor:
    """Whether the tokens of the answer, one or two, are the most likely."""
    two = word[:, 0] != word[:, 1]
    best = logits.topk(2, -1).indices
    both = (best.sort(-1).values == word.sort(-1).values).all(-1)
    return torch.where(two, both, best[:, 0] == word[:, 0])


def draw(
    pool: Pool,
    words: Words,
    rng: Random,
    stage: Stage,
    weights: tuple[dict[str, float], dict[str, float]],
    pick: list[int],
) -> list[Batch]:
    """The rows of a step: those without options and those with, padded apart."""
    counts = (stage.bares, stage.wholes)
    drawn = [rows.draw(pool.scenes[i], words, rng, counts, weights) for i in pick]
    spans = [(0, stage.bares), (stage.bares, stage.bares + stage.wholes)]
    return [
        rows.collate([row for each in drawn for row in each[a:b]], b - a, words.stop)
        for a, b in spans
        if b > a
    ]


@torch.no_grad()
def counts(reader: Reader, pool: Pool, wholes: int, seed: int) -> dict[str, Tensor]:
    """Right answers and questions of each kind, [kinds, 2], for words and letters."""
    rng = Random(seed)
    found = {name: torch.zeros(len(KINDS), 2) for name in ("word", "letter")}
    stage = Stage("", 0, 8, wholes)
    for start in range(0, len(pool.scenes), 6):
        pick = list(range(start, min(start + 6, len(pool.scenes))))
        batches = draw(pool, reader.words, rng, stage, (EQUAL, EQUAL), pick)
        _, hits = losses(reader, pool.hidden[pick], batches, None, 0.0)
        for name, hit, kind in hits:
            found[name].index_add_(0, kind, torch.stack((hit.float(), torch.ones(len(hit))), 1))
    return found


def told(found: Tensor) -> dict[str, float]:
    """The share right by kind, and of all."""
    found = torch.cat((found, found.sum(0, keepdim=True)))
    share = found[:, 0] / found[:, 1].clamp_min(1)
    return dict(zip((*KINDS, "all"), [round(value, 3) for value in share.tolist()], strict=True))
