"""What a layer shows to an eviction method.

Knows tensors only. It must not know models, prompts, caches or what a method does with them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from .kernels import by_triton, column_sums, window_attention, window_columns, window_lse
from .kernels.visible import visible_keys
from .recital import Recited

PART_BYTES = 1 << 27  # attention rows that exist at a time: 128 MiB, or those of one KV head
_ROWS = 256  # queries whose attention is summed at a time


class Rotation(Protocol):
    """Rotary positions of the tokens of a view, and of those to come."""

    def undo(self, queries: Tensor) -> Tensor:
        """The last queries [B, H, n, d] without their rotary positions, float32."""

    def ahead(self, vectors: Tensor, count: int) -> Tensor:
        """vectors [..., d] turned by the mean rotation of the next `count` positions, float32."""


@dataclass(frozen=True, eq=False)
class LayerView:
    """Keys, values and the last queries of one attention layer after the prompt was prefilled.

    keys [B, Hkv, L, d] and queries [B, H, Wq, d] are rotated already; values [B, Hkv, L, dv];
    queries holds the LAST Wq <= L positions. Query head h reads KV head h // (H / Hkv). `scaling`
    multiplies the logits. output_weight [C, H * dv] is the weight of the output projection.
    modality [B, L]: 0 text, 1 image. suffix: last tokens that follow the question (those of the
    chat template). `mask`: bool, broadcastable to [B, 1, Wq, L], True where a query may see a key;
    None means causal, query i of the last Wq sitting at position L - Wq + i. earlier: float32
    [B, H, n], what the first n keys collected from the first n queries, for methods that sum the
    attention of all queries where the view holds the last L - n of them only. answers: what
    the policy that looks `asks` of the layer, where somebody has read it already. hidden [B, L, C]:
    the hidden states that enter the attention module, where a policy `sees_hidden`. rotation: how
    queries were rotated, for methods that say `unrotates`. context: how many tokens there are up to
    the end of the context, which the question follows; None: the prompt marks none. recited: what
    keys of the context got while it was repeated, for policies with `recites`.

    ValueError when the shapes disagree or a mask hides every key from a query.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor
    scaling: float
    output_weight: Tensor | None = None
    layer: int = 0
    num_layers: int = 1
    modality: Tensor | None = None
    mask: Tensor | None = None
    suffix: int = 0
    earlier: Tensor | None = None
    answers: Sequence[float] | None = None
    hidden: Tensor | None = None
    rotation: Rotation | None = None
    context: int | None = None
    recited: Recited | None = None
    _memo: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse tensors that cannot belong to one layer."""
        for name in ("keys", "values", "queries"):
            if getattr(self, name).dim() != 4:
                shape = tuple(getattr(self, name).shape)
                raise ValueError(
                    f"{name} has shape {shape}; give [batch, heads, tokens, head_dim]."
                )
        batch, kv_heads, length, dim = self.keys.shape
        if self.values.shape[:3] != (batch, kv_heads, length) or length == 0:
            raise ValueError(
                f"keys {tuple(self.keys.shape)} and values {tuple(self.values.shape)} differ; give "
                "one value for each key, and at least one."
            )
        _, heads, rows, query_dim = self.queries.shape
        if self.queries.shape[0] != batch or query_dim != dim or heads % kv_heads or rows > length:
            raise ValueError(
                f"queries {tuple(self.queries.shape)} do not fit keys {tuple(self.keys.shape)}; "
                "give the last Wq <= L queries of H heads, H a multiple of the KV heads."
            )
        if not 0 <= self.layer < self.num_layers:
            raise ValueError(f"layer={self.layer} is outside 0..{self.num_layers - 1}.")
        if not 0 <= self.suffix < length:
            raise ValueError(f"suffix={self.suffix} is outside 0..{length - 1}.")
        if self.context is not None and not 0 <= self.context <= length:
            raise ValueError(f"context={self.context} is outside 0..{length}.")
        if self.recited is not None:
            shape, first = tuple(self.recited.attention.shape), self.recited.first
            if shape[:2] != (batch, heads) or not 0 <= first < first + shape[-1] <= length:
                raise ValueError(
                    f"recited is attention of shape {shape} from token {first} on; give [{batch}, "
                    f"{heads}, n] within the {length} tokens."
                )
        self._check_optional(heads)

    def _check_optional(self, heads: int) -> None:
        weight, columns = self.output_weight, heads * self.values.shape[-1]
        if weight is not None and (weight.dim() != 2 or weight.shape[1] != columns):
            raise ValueError(
                f"output_weight has shape {tuple(weight.shape)}; give [hidden, {columns}], the "
                "weight of the output projection."
            )
        if self.modality is not None and self.modality.shape != (self.batch, self.length):
            raise ValueError(
                f"modality has shape {tuple(self.modality.shape)}; give one mark for each token, "
                f"[{self.batch}, {self.length}]."
            )
        if self.hidden is not None and self.hidden.shape[:-1] != (self.batch, self.length):
            raise ValueError(
                f"hidden has shape {tuple(self.hidden.shape)}; give one state for each token, "
                f"[{self.batch}, {self.length}, C]."
            )
        self._check_earlier(heads)
        if self.mask is None:
            return
        rows = self.queries.shape[2]
        wanted = (self.batch, 1, rows, self.length)
        fits = self.mask.dim() == 4 and all(
            m in (1, w) for m, w in zip(self.mask.shape, wanted, strict=True)
        )
        if self.mask.dtype != torch.bool or not fits:
            raise ValueError(
                f"mask is {self.mask.dtype} of shape {tuple(self.mask.shape)}; give a bool tensor "
                f"that broadcasts to {wanted}."
            )
        if not bool(self.mask.any(-1).all()):
            raise ValueError("mask hides every key from some query; leave at least one visible.")

    def _check_earlier(self, heads: int) -> None:
        if self.earlier is None:
            return
        known = self.earlier.shape[-1]
        if self.earlier.shape != (self.batch, heads, known) or not 0 < known < self.length:
            raise ValueError(
                f"earlier has shape {tuple(self.earlier.shape)}; give [{self.batch}, {heads}, n] "
                f"sums of the first n keys, n from 1 to {self.length - 1}."
            )
        if self.mask is not None:
            raise ValueError("earlier sums are of causal attention; leave out the mask.")

    @property
    def batch(self) -> int:
        """Number of prompts B."""
        return self.keys.shape[0]

    @property
    def kv_heads(self) -> int:
        """Number of KV heads Hkv."""
        return self.keys.shape[1]

    @property
    def length(self) -> int:
        """Number of prompt tokens L."""
        return self.keys.shape[2]

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """compute() at the first call with this key, the stored result afterwards.

        Several policies look at one view, and most of them need the same attention rows.
        """
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]

    def last_rows(self, rows: int) -> int:
        """How many of the last `rows` queries exist: min(rows, L). ValueError if the view holds
        fewer."""
        rows = min(rows, self.length)
        if self.queries.shape[2] < rows:
            raise ValueError(
                f"the view holds the last {self.queries.shape[2]} queries and the method needs "
                f"{rows}; capture as many as policy.queries says."
            )
        return rows

    def attention(self, rows: int) -> Tensor:
        """Softmax rows of the last min(rows, L) queries, float32 [B, H, rows, L]; computed once."""
        rows = self.last_rows(rows)
        widest = self._memo.get("attention")
        if widest is None or widest.shape[2] < rows:
            mask = None if self.mask is None else self.mask[:, :, -rows:]
            widest = window_attention(self.queries[:, :, -rows:], self.keys, self.scaling, mask)
            self._memo["attention"] = widest
        return widest[:, :, widest.shape[2] - rows :]

    def observed(self, window: int, anchor: str) -> Tensor:
        """Softmax rows of the observation window, float32 [B, H, rows, L], rows <= window.

        anchor: end = the last queries, question = the last ones before the suffix.
        """
        rows, behind = self.watched(window, anchor)
        return self.attention(rows + behind)[:, :, :rows]

    def watched(self, window: int, anchor: str) -> tuple[int, int]:
        """Rows of the observation window, and how many queries are behind it.

        ValueError if the view holds fewer.
        """
        behind = self.suffix if anchor == "question" else 0
        return self.last_rows(window + behind) - behind, behind

    def logits(self, window: int, anchor: str) -> Tensor:
        """What `observed` is the softmax of, float32 [B, H, rows, L]; -inf: the key is unseen."""
        queries, mask, behind = self._watched_queries(window, anchor)
        rows = queries.shape[2]
        stacked = (queries.float() * self.scaling).unflatten(1, (self.kv_heads, -1)).flatten(2, 3)
        found = torch.matmul(stacked, self.keys.float().transpose(2, 3))
        found = found.view(self.batch, -1, rows, self.length)
        seen = visible_keys(rows, self.length, behind, mask, self.keys.device)
        return found.masked_fill_(~seen, -torch.inf)

    def observed_parts(self, window: int, anchor: str) -> Iterator[Tensor]:
        """The same in parts of some heads [B, h, rows, L], of which the kernels make one at a time:
        for a long prompt all rows would take more memory than its cache.
        """
        if not by_triton(self.queries, self.keys, self.values):
            yield self.observed(window, anchor)
            return
        queries, mask, behind = self._watched_queries(window, anchor)
        group = queries.shape[1] // self.kv_heads
        size = 4 * self.batch * group * queries.shape[2] * self.length  # bytes a KV head
        step = max(1, PART_BYTES // size)
        lse = self._window_lse(window, anchor)
        for start in range(0, self.kv_heads, step):
            own = slice(start * group, (start + step) * group)
            parts = queries[:, own], self.keys[:, start : start + step]
            yield window_attention(*parts, self.scaling, mask, behind, lse[:, own])

    def columns(
        self, window: int, anchor: str, weights: Tensor | None = None, past: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What each key collects from the observation window, float32 [B, H, L].

        weights: float32 [rows], what each query counts; None: 1. past: also return what the first
        `past` of these sums take from the values, float32 [B, H, dv].
        """
        queries, mask, behind = self._watched_queries(window, anchor)
        lse = attention = None
        if by_triton(self.queries, self.keys, self.values):
            lse = self._window_lse(window, anchor)
        else:
            attention = self.observed(window, anchor)  # shared by all policies of the view
        values = None if past is None else self.values
        parts = queries, self.keys, self.scaling, weights
        return window_columns(*parts, mask, behind, lse, values, past, attention)

    def collected(self, blind: int | None = None) -> Tensor:
        """What each key collects from all L queries, float32 [B, H, L]; blind: as of `column_sums`.

        ValueError if the view holds fewer queries and has no sums of the others, or they cannot be
        used.
        """
        if self.earlier is None:
            self.last_rows(self.length)
            return column_sums(self.queries, self.keys, self.scaling, self.mask, blind)
        if blind is not None:
            raise ValueError("earlier sums are of causal attention; capture all queries instead.")
        known = self.earlier.shape[-1]
        rows = self.last_rows(self.length - known)
        total = pad(self.earlier, (0, rows))
        for part in self.queries[:, :, -rows:].split(_ROWS, dim=2):
            rows -= part.shape[2]
            seen = self.length - rows
            keys = self.keys[:, :, :seen]
            total[..., :seen] += window_columns(part, keys, self.scaling, None)[0]
        return total

    def _watched_queries(self, window: int, anchor: str) -> tuple[Tensor, Tensor | None, int]:
        """Queries of the observation window, their mask, and how many queries are behind it."""
        rows, behind = self.watched(window, anchor)
        first = self.queries.shape[2] - behind - rows
        mask = self.mask
        if mask is not None and mask.shape[2] > 1:
            mask = mask[:, :, first : first + rows]
        return self.queries[:, :, first : first + rows], mask, behind

    def _window_lse(self, window: int, anchor: str) -> Tensor:
        queries, mask, behind = self._watched_queries(window, anchor)
        parts = queries, self.keys, self.scaling, mask, behind
        lse: Tensor = self.once(("lse", window, anchor), lambda: window_lse(*parts))
        return lse
