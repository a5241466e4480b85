"""What enters the attention module that runs, for policies that read hidden states.

It must not know policies, or what is made of the states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from harness.engine.layout import AttentionLayer


class Hidden:
    """The hidden states [B, q, C] that entered the last of some layers; None outside a pass."""

    def __init__(self) -> None:
        self.now: Tensor | None = None

    @contextmanager
    def hearing(self, layers: Sequence[AttentionLayer]) -> Iterator[None]:
        """Note them until the block ends."""

        def note(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.now = named["hidden_states"] if "hidden_states" in named else given[0]

        hooks = [layer.module.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.now = None
