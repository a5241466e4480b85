"""Taking rotary positions off keys and queries, and putting others on.

Uses the model's own rotation and frequencies, whatever their scaling. It must not know policies or
how entries are stored.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from harness.engine.inputs import has_several_axes
from harness.engine.layout import Layout

_TABLES = 512  # lengths whose turns are kept where they depend on it

Turns = tuple[Tensor, Tensor]  # cosines and sines [B, q, rotary_dim], as the model applies them

REINDEXING = (
    "positions=cache gives cached keys new 1-D rotary positions",
    "use positions=original",
)


class Rotary:
    """The 1-D rotary positions of one model.

    use: what they are needed for and what to do without, see `REINDEXING`. ValueError, one
    sentence, for a model that has none, or other ones.
    """

    def __init__(
        self, model: PreTrainedModel, layout: Layout, use: tuple[str, str] = REINDEXING
    ) -> None:
        """Find the model's rotation and check that it is x cos + rotate_half(x) sin."""
        self.use = use
        reason = _unsuitable(model, layout)
        if reason:
            raise ValueError(_refusal(model, reason, use))
        self.module: nn.Module = model.get_decoder().rotary_emb
        self._half: Callable[[Tensor], Tensor] = _code_of(layout).rotate_half
        self.interleaved = self._pairs_neighbours(model)
        self.by_length = _kind(self.module) in ("dynamic", "longrope")
        self.now: Turns | None = None
        self._tables: dict[int, Turns] = {}
        self._check_cached_keys(model)

    def _pairs_neighbours(self, model: PreTrainedModel) -> bool:
        """Whether rotate_half pairs neighbouring elements; False: those of the two halves."""
        turned = self._half(torch.arange(1.0, 5.0)).tolist()
        if turned not in ([-2.0, 1.0, -4.0, 3.0], [-3.0, -4.0, 1.0, 2.0]):
            raise ValueError(_refusal(model, "rotates its keys in another way", self.use))
        return turned[0] == -2.0

    def _check_cached_keys(self, model: PreTrainedModel) -> None:
        """Keys of one token at two positions must be equal once their turns are undone."""
        device = model.device
        width = model.get_input_embeddings().weight.shape[1]
        token = torch.linspace(-1, 1, width, device=device, dtype=model.dtype)
        cache = DynamicCache(config=model.config)
        with torch.no_grad(), self.following():
            model.get_decoder()(
                inputs_embeds=token.expand(1, 2, -1),
                position_ids=torch.tensor([[2, 9]], device=device),
                past_key_values=cache,
                use_cache=True,
            )
            assert self.now is not None  # the decoder has just turned two keys
            cos, sin = (each[:, None] for each in self.now)
        first, second = self.undo(cache.layers[0].keys, (cos, sin)).unbind(2)
        exact = 1e-4 if model.dtype == torch.float32 else 3e-2
        if float((first - second).abs().max()) > exact * float(first.abs().max()):
            reason = "changes its keys after they were rotated"
            raise ValueError(_refusal(model, reason, self.use))

    @contextmanager
    def following(self) -> Iterator[None]:
        """Keep in `now` what the model's forward passes turn their queries and keys by."""

        def note(_module: nn.Module, _inputs: object, output: Turns) -> None:
            self.now = output

        handle = self.module.register_forward_hook(note)
        try:
            yield
        finally:
            handle.remove()
            self.now = None

    def table(self, length: int, device: torch.device) -> Turns:
        """Turns of positions 0..length - 1 in a sequence of that length, float32 [length, dim]."""
        found = [n for n in self._tables if n == length or (n > length and not self.by_length)]
        if found:
            return self._tables[found[0]]
        # A copy, without the hook of `following`. Some scalings remember the longest sequence they
        # have seen; a single token makes them forget it.
        module = copy.deepcopy(self.module)
        longest = length if self.by_length else max(2 * length, 256)
        positions = torch.arange(longest, device=device)[None]
        like = torch.empty(0, dtype=torch.float32, device=device)
        module.forward(like, positions[:, :1])
        cos, sin = module.forward(like, positions)
        if not self.by_length or len(self._tables) == _TABLES:
            self._tables.clear()
        self._tables[longest] = (cos[0].float(), sin[0].float())
        return self._tables[longest]

    def undo(self, rotated: Tensor, turns: Turns) -> Tensor:
        """rotated [..., n, d] without its turns [..., n, dim], float32."""
        cos, sin = (each.float() for each in turns)
        turned, rest = rotated.float().split_with_sizes(_sizes(rotated, cos), dim=-1)
        # Dividing takes off what YaRN and others multiply cosines and sines by as well.
        plain = (turned * cos - self._half(turned) * sin) / (cos * cos + sin * sin)
        return torch.cat([plain, rest], dim=-1)

    def turn(self, plain: Tensor, turns: Turns) -> Tensor:
        """plain [..., n, d] with turns [..., n, dim], float32."""
        cos, sin = (each.float() for each in turns)
        still, rest = plain.float().split_with_sizes(_sizes(plain, cos), dim=-1)
        return torch.cat([still * cos + self._half(still) * sin, rest], dim=-1)


@dataclass(frozen=True, eq=False)
class Turned:
    """The rotary positions of a prompt's tokens, `turns` [1, L, dim], and of those to come."""

    rotary: Rotary
    turns: Turns

    def undo(self, queries: Tensor) -> Tensor:
        """The last queries [B, H, n, d] without their rotary positions, float32."""
        cos, sin = (each[:, None, each.shape[1] - queries.shape[2] :] for each in self.turns)
        return self.rotary.undo(queries, (cos, sin))

    def ahead(self, vectors: Tensor, count: int) -> Tensor:
        """vectors [..., d] turned by the mean rotation of the next `count` positions, float32."""
        length = self.turns[0].shape[1]
        table = self.rotary.table(length + count, vectors.device)
        cos, sin = (each[length : length + count].mean(0) for each in table)
        return self.rotary.turn(vectors, (cos, sin))


def moves_frequencies(model: PreTrainedModel) -> bool:
    """Whether frequencies are made anew while decoding, at another place in memory."""
    module = getattr(model.get_decoder(), "rotary_emb", None)
    return module is not None and _kind(module) == "dynamic"


def depends_on_length(model: PreTrainedModel) -> bool:
    """Whether the keys of a token depend on how long its sequence is."""
    module = getattr(model.get_decoder(), "rotary_emb", None)
    return module is not None and _kind(module) in ("dynamic", "longrope")


def switches_at(model: PreTrainedModel) -> int | None:
    """The tokens from which on a model with LongRoPE rotates a whole pass otherwise; else None."""
    module = getattr(model.get_decoder(), "rotary_emb", None)
    if module is None or _kind(module) != "longrope":
        return None
    text = model.config.get_text_config(decoder=True)
    return int(text.rope_parameters["original_max_position_embeddings"])


def forget_lengths(model: PreTrainedModel) -> None:
    """Let dynamic frequencies start anew, which otherwise depend on the longest prompt so far."""
    module = getattr(model.get_decoder(), "rotary_emb", None)
    if module is not None and _kind(module) == "dynamic":
        like = torch.empty(0, dtype=torch.float32, device=model.device)
        module(like, torch.zeros(1, 1, dtype=torch.long, device=model.device))


def _refusal(model: PreTrainedModel, reason: str, use: tuple[str, str]) -> str:
    return f"{use[0]}, and {type(model).__name__} {reason}; {use[1]}."


def _sizes(vectors: Tensor, cos: Tensor) -> list[int]:
    return [cos.shape[-1], vectors.shape[-1] - cos.shape[-1]]


def _unsuitable(model: PreTrainedModel, layout: Layout) -> str | None:
    """Why the model's positions cannot be re-indexed, or None."""
    text = model.config.get_text_config(decoder=True)
    if has_several_axes(model):
        return "uses M-RoPE, where a position is three numbers"
    if len(layout.layers) != text.num_hidden_layers:
        return "has layers of another kind between its full-attention ones"
    without = [getattr(layer.module, "use_rope", True) for layer in layout.layers]
    if not all(without) or not all(getattr(text, "no_rope_layers", None) or [True]):
        return "has layers without rotary positions"
    code, module = _code_of(layout), getattr(model.get_decoder(), "rotary_emb", None)
    functions = ("apply_rotary_pos_emb", "rotate_half")
    if module is None or not all(hasattr(code, name) for name in functions):
        return "has no rotary positions where this project can find them"
    if not _plain_rotation(copy.deepcopy(module), code):
        return "rotates its keys in another way"
    return None


def _plain_rotation(module: nn.Module, code: ModuleType) -> bool:
    """Whether the model's own function is x cos + rotate_half(x) sin, and can be undone."""
    device = next(iter(module.buffers())).device
    positions = torch.tensor([[3, 7]], device=device)
    try:
        turns = module(torch.empty(0, dtype=torch.float32, device=device), positions)
        cos, sin = (each.float()[:, None] for each in turns)
        x = torch.linspace(-1, 1, cos.numel(), device=device).view(cos.shape)
        applied, _ = code.apply_rotary_pos_emb(x, x, *turns)
        half = code.rotate_half
        back = (applied * cos - half(applied) * sin) / (cos * cos + sin * sin)
        return torch.allclose(applied, x * cos + half(x) * sin, atol=1e-5) and torch.allclose(
            back, x, atol=1e-5
        )
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False  # another signature is another rotation


def _kind(module: nn.Module) -> str:
    kind = getattr(module, "rope_type", "default")
    return kind if isinstance(kind, str) else "default"


def _code_of(layout: Layout) -> ModuleType:
    """The module of code that defines the attention layers."""
    return sys.modules[type(layout.layers[0].module).__module__]
