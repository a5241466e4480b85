"""TRIM-KV (arXiv 2512.03324) and, with budget=global, DBTrimKV (2605.09649): learned gates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .budgets import GLOBAL
from .checks import BUFFER, require, require_choice, require_decode
from .files import pinned
from .gates import Gate, load
from .holding import Step
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
    budget: uniform = TRIM-KV; global = DBTrimKV, one ranking of all layers and heads.

    decode: buffer evicts whenever `buffer` tokens are over the budget, as published; hold after
    every token; grow selects once, after the prompt. Gates read the new tokens too, and every score
    is that of the moment: (t + 1 - i) log beta_i after t tokens. With budget=global each eviction
    ranks the entries of all layers and heads anew, so that numbers move between them; their total
    stays layers x heads x budget.

    The released code (ngocbh/trimkv at 0456bc4) evicts after a forward pass that leaves layers x
    heads x buffer_size entries or more over that total, keeps the best by one torch.topk and
    protects no token. Four things differ here. There a head may lose its last entry, by default
    (floor_budget_ratio, later min_tokens_per_head); here each keeps its best one, as it does of a
    prompt, so that no layer is left without a cache. There ties fall as topk leaves them; here the
    newer entry of a head goes, and heads keep equals in turn. There a prompt less than buffer_size
    over the budget stays whole; here it is evicted to the budget. Later code there (ed920f3) can
    look several tokens ahead.
    """

    name: ClassVar[str] = "trimkv"
    title: ClassVar[str] = "TRIM-KV"
    learned: ClassVar[bool] = True
    gates: str | None = None
    strategy: str = "alpha"
    decode: str = "grow"
    buffer: int = BUFFER

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        require_decode(self)
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

    @property
    def competes(self) -> bool:
        """With budget=global, as DBTrimKV ranks."""
        return self.period > 0 and self.budget == GLOBAL

    @property
    def follows(self) -> bool:
        """Gates read every new token."""
        return self.period > 0

    @property
    def recalls(self) -> int:
        """Nothing is asked of queries; the norms of keys are."""
        return 1 if self.period and self.strategy == "knorm_alpha" else 0

    def ready(self) -> TrimKV:
        """The same with the digest of its gates behind their place."""
        self._gates()
        return replace(self, gates=pinned("gates", str(self.gates)))

    def measure(self, view: LayerView) -> Tensor:
        """(L + 1 - i) log beta_i, float32 [B, Hkv, L]."""
        place = torch.arange(view.length, device=view.keys.device)
        return self._left(self._log_beta(view), place, view.length, view.keys)

    def remember(self, view: LayerView, measured: Tensor) -> Tensor:
        """log beta of each entry."""
        return self._log_beta(view)

    def carry(self, step: Step) -> Tensor:
        """The same, what the gate says of the new tokens among it."""
        assert step.hidden is not None
        assert step.carried is not None
        assert isinstance(step.layer, int)  # it looks at one layer at a time
        about = step.layer, step.num_layers, step.positions.shape[1]
        fresh = self._gate(step.hidden, *about)(step.hidden)  # [C, Hkv, new]
        index = step.positions - (step.seen - step.new)
        own = fresh.gather(-1, index.clamp(0, step.new - 1))
        return torch.where(index < 0, step.carried, own)

    def standing(self, step: Step, carried: Tensor | None) -> Tensor:
        """(t + 1 - i) log beta_i after t tokens."""
        assert carried is not None
        return self._left(carried, step.positions, step.seen, step.keys)

    def _left(self, log_beta: Tensor, place: Tensor, seen: int, keys: Tensor | None) -> Tensor:
        left = log_beta * (seen + 1 - place)
        if self.strategy == "knorm_alpha":
            assert keys is not None
            left = left + keys.float().norm(dim=-1).clamp_min(1e-12).log()
        return left

    def _gates(self, device: torch.device | str = "cpu") -> tuple[Gate, ...]:
        allowed = "the safetensors file, or its folder, of gates that were trained for this model"
        require(self.gates is not None, self.name, "gates", self.gates, allowed)
        return load(str(self.gates), device)

    def _log_beta(self, view: LayerView) -> Tensor:
        """float32 [B, Hkv, L], computed once for a view."""
        hidden = view.hidden
        if hidden is None:
            raise ValueError(
                "trimkv: needs the hidden states that enter attention and the view has none; pass "
                "LayerView.hidden or choose another method."
            )
        gate = self._gate(hidden, view.layer, view.num_layers, view.kv_heads)
        found: Tensor = view.once(("log_beta", self.gates), lambda: gate(hidden))
        return found

    def _gate(self, hidden: Tensor, layer: int, num_layers: int, heads: int) -> Gate:
        gates = self._gates(hidden.device)
        gate = gates[layer] if layer < len(gates) else gates[0]
        found = (len(gates), gate.width, gate.heads)
        wanted = (num_layers, hidden.shape[-1], heads)
        if found != wanted:
            raise ValueError(
                f"trimkv: gates={self.gates} are for {found[0]} layers of {found[1]} units and "
                f"{found[2]} KV heads, this model has {wanted[0]}, {wanted[1]} and {wanted[2]}; "
                "name the gates that were trained for it."
            )
        return gate
