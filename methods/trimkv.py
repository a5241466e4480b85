"""TRIM-KV (arXiv 2512.03324) and, with budget=global, DBTrimKV (2605.09649): learned gates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .checks import require, require_choice
from .files import pinned
from .gates import Gate, load
from .scoring import ScoringPolicy
from .view import LayerView


@dataclass(frozen=True, kw_only=True)
class TrimKV(ScoringPolicy):
    """Score entry i after L tokens by (L + 1 - i) log beta_i: what is left of it by then.

    beta_i in (0, 1), one a KV head, is what a trained gate makes of the hidden state that enters
    the layer's attention. No query is looked at, so the score is the same whatever is asked.

    gates: a safetensors file, or a folder of them, with tensors as TRIM-KV's checkpoints name them
    (layers.<n>.self_attn.retention_gate.linear1.weight and so on). They fit one model only.
    strategy: alpha as above; knorm_alpha adds the log of the key's norm.
    budget: uniform = TRIM-KV; global = DBTrimKV, one ranking of all layers and heads, of which each
    head here keeps at least one entry. The released code also evicts while it decodes, every
    `buffer_size` tokens; here the prompt is evicted once and new tokens stay.
    """

    name: ClassVar[str] = "trimkv"
    title: ClassVar[str] = "TRIM-KV"
    learned: ClassVar[bool] = True
    gates: str | None = None
    strategy: str = "alpha"

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        require_choice(self.name, "strategy", self.strategy, ("alpha", "knorm_alpha"))
        text = self.gates is None or isinstance(self.gates, str)
        require(text, self.name, "gates", self.gates, "the place of trained gates")
        allowed = "a rule that takes scores below zero, as all of these are"
        require(self.budget != "adaptive", self.name, "budget", self.budget, allowed)

    @property
    def sees_hidden(self) -> bool:
        """The gates read hidden states."""
        return True

    @property
    def comparable(self) -> bool:
        """Every score is the log of a share that is left."""
        return True

    def ready(self) -> TrimKV:
        """The same with the digest of its gates behind their place."""
        self._gates()
        return replace(self, gates=pinned("gates", str(self.gates)))

    def measure(self, view: LayerView) -> Tensor:
        """(L + 1 - i) log beta_i, float32 [B, Hkv, L]."""
        hidden = self._hidden(view)
        kept = self._gate(view, hidden.shape[-1])(hidden) * _ages(view)
        if self.strategy == "knorm_alpha":
            kept = kept + view.keys.float().norm(dim=-1).clamp_min(1e-12).log()
        return kept

    def _gates(self, device: torch.device | str = "cpu") -> tuple[Gate, ...]:
        allowed = "the safetensors file, or its folder, of gates that were trained for this model"
        require(self.gates is not None, self.name, "gates", self.gates, allowed)
        return load(str(self.gates), device)

    def _hidden(self, view: LayerView) -> Tensor:
        if view.hidden is None:
            raise ValueError(
                "trimkv: needs the hidden states that enter attention and the view has none; pass "
                "LayerView.hidden or choose another method."
            )
        return view.hidden

    def _gate(self, view: LayerView, width: int) -> Gate:
        gates = self._gates(view.keys.device)
        gate = gates[view.layer] if view.layer < len(gates) else gates[0]
        found = (len(gates), gate.width, gate.heads)
        wanted = (view.num_layers, width, view.kv_heads)
        if found != wanted:
            raise ValueError(
                f"trimkv: gates={self.gates} are for {found[0]} layers of {found[1]} units and "
                f"{found[2]} KV heads, this model has {wanted[0]}, {wanted[1]} and {wanted[2]}; "
                "name the gates that were trained for it."
            )
        return gate


def _ages(view: LayerView) -> Tensor:
    """L + 1 - i for each position i."""
    return view.length + 1 - torch.arange(view.length, device=view.keys.device)
