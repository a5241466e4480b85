"""Who listens while cells decode: attention to their compacted caches, layer by layer.

It must not know how the caches were chosen, or what is written.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import Tensor, nn

from harness.engine.cache import CompactLayer
from harness.engine.caches import CellCache
from harness.engine.hidden import Hidden
from harness.engine.layout import Layout

TOGETHER = 8  # layers that evict at once: few operations for all, few weights that wait


class CompactAttention:
    """Listens to a decoding pass and answers for the compact layers."""

    def __init__(self, layout: Layout, cache: CellCache) -> None:
        self.layout = layout
        self.cache = cache
        self.last = False  # no pass follows, so nothing needs to be evicted any more
        self.states = Hidden()

    def hearing(self) -> AbstractContextManager[None]:
        """Note what enters attention where a policy that holds its budget reads it."""
        layers = [self.cache.layers[layer.index] for layer in self.layout.layers]
        holders = [holder for layer in layers for holder in layer.holders]
        wanted = any(holder.policy.sees_hidden for holder in holders)
        return self.states.hearing(self.layout.layers if wanted else ())

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> Tensor | None:
        """query [cells, H, q, d] of new tokens, key and value [cells, Hkv, q, d] -> [cells, q, H,
        dv].
        """
        layer = self.layout.find(module)
        if layer is not None:
            stored: CompactLayer = self.cache.layers[layer.index]
            if len(self.cache.later) == TOGETHER:
                self.cache.evict()
            own = self.last, self.cache.later, self.states.now, self.cache.contest
            return stored.attend(query, key, value, scaling, *own)
        donor = self.layout.shared.get(id(module))
        if donor is None:
            return None
        self.cache.evict()
        lent: CompactLayer = self.cache.layers[donor.index]
        return lent.share(query, scaling)
