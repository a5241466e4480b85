"""Sparse attention in the pass over a prompt, layer by layer.

It must not know eviction methods, cells or how a pattern chooses.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from harness.engine.layout import Layout
from harness.engine.passes import Stopwatch
from harness.sparse import Pattern, attend, share
from methods import Policy


class Sparsity:
    """Answers the attention calls of one pass over a prompt from its first token on.

    Layers of full attention, and those that use their keys, compute the blocks that the pattern
    chooses. Others (vision towers, sliding windows, recurrent states) are left as they are.
    """

    def __init__(self, layout: Layout, pattern: Pattern) -> None:
        self.layout, self.pattern = layout, pattern
        self.searching = Stopwatch()
        self._shares: dict[int, Tensor | float] = {}  # by index of the layer
        self._causal: Tensor | None = None  # the last mask that was looked at

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> Tensor | None:
        """Output [1, L, H, dv] of query [1, H, L, d], key [1, Hkv, L, d] and value [1, Hkv, L, dv];
        None leaves the call to SDPA. ValueError, one sentence, where attention is not causal.
        """
        if not (self.layout.find(module) or id(module) in self.layout.shared):
            return None
        index = getattr(module, "layer_idx", None)
        assert isinstance(index, int)  # by which the layout found it
        self._require_causal(module, query, key, mask)
        if self.pattern.covers(query.shape[2]):
            self._shares[index] = 1.0
            return None
        with self.searching.running(query.device):
            blocks = self.pattern.blocks(query[0], key[0], scaling)
        self._shares[index] = share(blocks)
        return attend(query, key, value, blocks, scaling).transpose(1, 2)

    def _require_causal(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None
    ) -> None:
        rows, columns = query.shape[2], key.shape[2]
        assert rows == columns  # such a prompt is read in one pass
        if mask is None or mask is self._causal:
            return
        self._causal = mask
        wanted = torch.ones(rows, columns, dtype=torch.bool, device=mask.device).tril()
        seen = mask if mask.dtype == torch.bool else mask == 0
        if not bool((seen == wanted).all()):
            raise ValueError(
                f"{type(module).__name__} does not read this prompt causally (images that see "
                "themselves both ways, or hidden tokens), and a sparse prefill does; use "
                "prefill=dense."
            )

    def computed(self) -> dict[int, float]:
        """By index of the layer, the share of the causal pairs of blocks that was computed."""
        read = torch.stack(
            [torch.as_tensor(one, dtype=torch.double) for one in self._shares.values()]
        )
        return dict(zip(self._shares, read.tolist(), strict=True))


def check_rows(
    pattern: Pattern | None, policies: Iterable[Policy], suffix: int = 0, behind: int = 0
) -> None:
    """ValueError, one sentence, for a policy that needs attention which a sparse prefill does not
    compute. suffix, behind: last prompt tokens that follow the question, and the context.
    """
    for policy in policies if pattern else ():
        assert pattern is not None
        if policy.needs_all_rows:
            raise ValueError(
                f"{policy.name} needs the attention of all queries, which prefill={pattern.name} "
                "does not compute; use prefill=dense, or a method with an observation window."
            )
        window = policy.queries(suffix, behind) or 0
        if window > pattern.last:
            raise ValueError(
                f"{policy.name} watches the last {window} queries, and prefill={pattern.name} "
                f"attends densely from the last {pattern.last} only; give last={window}, a "
                f"parameter of {pattern.name}, or prefill=dense."
            )
