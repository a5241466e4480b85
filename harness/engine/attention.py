"""The attention function every model of this project runs with, and who listens to it.

Registered through transformers' AttentionInterface, so no model file is patched. Outside a session
it is plain SDPA. It must not know eviction methods: it hands each call to the listener of the
current session.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "evictbench"

# Extra terms that some models add to the logits and SDPA here would silently leave out.
_EXTRA_TERMS = ("s_aux", "softcap", "position_bias")


class Listener(Protocol):
    """Sees each attention call of a forward pass and may answer it."""

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> Tensor | None:
        """Output [B, q, H, dv] of query [B, H, q, d], key [B, Hkv, n, d] and value [B, Hkv, n, dv].

        None leaves the call to SDPA.
        """


_listener: ContextVar[Listener | None] = ContextVar("evictbench_listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Route the attention calls of this thread to `listener` until the block ends."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Signature of transformers' attention functions; shapes as in `Listener.attend`."""
    listener = _listener.get()
    if listener is not None:
        for term in _EXTRA_TERMS:
            if kwargs.get(term) is not None:
                raise ValueError(
                    f"{type(module).__name__} adds {term} to its attention, which eviction does "
                    "not support; choose a model with plain softmax attention."
                )
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        output = listener.attend(module, query, key, value, attention_mask, scale)
        if output is not None:
            return output, None
    shown, key, value = _expanded(module, query, key, value)
    return sdpa_attention_forward(
        shown, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )


def _expanded(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Any, Tensor, Tensor]:
    """What SDPA is shown of the module, and keys and values with a head for each query head where
    it would otherwise hold all weights: no fused CUDA kernel takes grouped heads in float32.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    if groups == 1 or not key.is_cuda or key.dtype != torch.float32 or query.shape[2] == 1:
        return module, key, value
    plain = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
    return plain, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


# Without a mask function under the same name every mask would arrive as None.
AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
