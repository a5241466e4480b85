"""ReST-KV (arXiv 2605.08840): how far the output moves when a token is dropped, smoothed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .budgets import protected_window
from .checks import WINDOW, require, require_choice, require_count, require_flag, require_number
from .kernels import joint_reconstruction, output_factors, reconstruction
from .policy import Plan, Scored, over_group
from .smoothing import TEMPORAL, adaptive_windows, drift, pool, pool_adaptive, temporal_weights
from .view import LayerView
from .windowed import WindowPolicy

# Variants that differ only in these share a measurement.
_SMOOTHING = {
    *("spatial", "kernel", "scale", "relative_scale"),
    *("budget", "pyramid_beta", "adaptive_floor", "protect", "boundary_share"),
}


@dataclass(frozen=True, kw_only=True)
class RestKV(WindowPolicy):
    """Score a token by a / (1 - a) * || W_O (o - v) ||^tau, smoothed over queries and tokens.

    Defaults are the published setting.

    temporal, alpha: how the window's rows are weighted, see smoothing.temporal_weights.
    metric: after = weight the attention rows, then one metric, with o summed over the keys before
        the window and not renormalised; before = one metric a row, with its o over all keys, then
        weight them.
    project: measure after the output projection, which needs LayerView.output_weight.
    tau: exponent of the distance. normalize: divide by the length of the (projected) o.
    spatial, kernel: adaptive, avg (zeros beyond the ends), max or none, over `kernel` tokens (odd).
        The adaptive window is at least `kernel` wide and repeats end values.
    scale: tokens of drift (smoothing.drift) for each step the adaptive window widens and moves;
        relative_scale=c makes it c times the prompt length. Drift is at most L minus the kept past
        tokens: where that is below the scale the window IS a fixed pool, and no drift is computed.
    group: mean or max over the query heads of a KV head before pooling (of drifts, always the
        mean), or joint: the exact change that dropping the token causes in all of them together.

    Where the released code errs, the default does what the paper means: each batch item has a drift
    of its own, no drift means no shift, tau and normalize always act, and 1 - a is kept above 1e-6.
    official=True follows the released code in all of these but the last. Where a small budget
    protects fewer tokens than `window`, all `window` queries still score; o excludes the whole
    window, or nothing if the prompt is not longer than the window.
    """

    name: ClassVar[str] = "restkv"
    title: ClassVar[str] = "ReST-KV"
    comparable_if: ClassVar[str] = "normalize=true with official=false"
    temporal: str = "ema"
    alpha: float = 0.3
    metric: str = "after"
    project: bool = True
    tau: float = 1.0
    normalize: bool = False
    spatial: str = "adaptive"
    kernel: int = 5
    scale: float = 2000
    relative_scale: float | None = None
    group: str = "mean"
    official: bool = False

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        require_choice(self.name, "temporal", self.temporal, TEMPORAL)
        require_number(self.name, "alpha", self.alpha, 1e-6, 1)
        require_choice(self.name, "metric", self.metric, ("after", "before"))
        require_number(self.name, "tau", self.tau, 0.01, 100)
        require_choice(self.name, "spatial", self.spatial, ("adaptive", "avg", "max", "none"))
        require_count(self.name, "kernel", self.kernel, 1, WINDOW)
        require(self.kernel % 2 == 1, self.name, "kernel", self.kernel, "an odd number")
        require_number(self.name, "scale", self.scale, 0.01, 1e9)
        if self.relative_scale is not None:
            require_number(self.name, "relative_scale", self.relative_scale, 1e-4, 1e4)
        require_choice(self.name, "group", self.group, ("mean", "max", "joint"))
        for flag in ("project", "normalize", "official"):
            require_flag(self.name, flag, getattr(self, flag))
        plain = self.tau == 1.0 and not self.normalize
        allowed = "mean or max, or tau=1 and normalize=false with joint"
        require(self.group != "joint" or plain, self.name, "group", self.group, allowed)

    @property
    def comparable(self) -> bool:
        """Only as shares of the layer's own output; the released code does not always take them."""
        return self.normalize and not self.official

    def measure(self, view: LayerView) -> Tensor:
        """Importance before spatial smoothing; variants that differ only in that share it."""
        measured = {name: value for name, value in self.params.items() if name not in _SMOOTHING}
        key = (self.name, *measured.values())
        importance: Tensor = view.once(key, lambda: self._importance(view))
        return importance

    def plan(self, view: LayerView, count: int) -> Plan:
        """The window is protected; only an active drift depends on the kept past tokens."""
        window = protected_window(self.window, count)
        past = count - window
        inert = view.length - past < self._scale(view) and not self.official
        return Plan(0, window, 0 if inert or self.spatial != "adaptive" else past)

    def rescore(self, view: LayerView, measured: Tensor, plans: Sequence[Plan]) -> Scored:
        """Smooth over neighbouring tokens what lies before each protected window."""
        windows = [plan.window for plan in plans]
        if self.spatial == "none":
            return super().rescore(view, measured, plans)
        if self.spatial != "adaptive":
            return Scored(pool(measured, windows, self.spatial, self.kernel), [None] * len(plans))
        if not any(plan.past for plan in plans):
            return Scored(pool(measured, windows, "edge", self.kernel), [0.0] * len(plans))
        # Over all L keys nothing drifts: what an inert plan beside an active one needs.
        kernels, shifts = self.windows(view, [plan.past or view.length for plan in plans])
        differs = (kernels != self.kernel) | (shifts != 0)
        share = differs.float().mean((1, 2)).unbind()
        return Scored(pool_adaptive(measured, windows, kernels, shifts), share)

    def windows(self, view: LayerView, past: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Width and shift in tokens of the adaptive window where `past` tokens are kept before the
        protected window; int64 [past, B, Hkv].
        """
        key = ("drift", self.window, self.window_anchor, *past)
        parts = view.observed_parts(self.window, self.window_anchor)
        moved: Tensor = view.once(key, lambda: drift(parts, past))
        moved = moved.unflatten(2, (view.kv_heads, -1)).mean(-1)
        return adaptive_windows(moved, self._scale(view), self.kernel, self.official)

    def _scale(self, view: LayerView) -> float:
        return self.scale if self.relative_scale is None else self.relative_scale * view.length

    def _importance(self, view: LayerView) -> Tensor:
        rows = self.rows(view)
        device = view.keys.device
        weights = temporal_weights(self.temporal, rows, float(self.alpha), device)
        factors = self._factors(view)
        if self.metric == "after":
            unseen = view.suffix if self.window_anchor == "question" else 0
            past = view.length - unseen - rows or view.length
            mean, outputs = self.columns(view, weights, past)
            return self._change(view, mean, outputs, factors, self.group)
        total = torch.zeros((), device=device)
        for row, alone in enumerate(torch.eye(rows, device=device)):
            attention, outputs = self.columns(view, alone, view.length)
            change = self._change(view, attention, outputs, factors, "none")
            total = total + weights[row] * change
        return total if self.group == "joint" else over_group(total, view.kv_heads, self.group)

    def _factors(self, view: LayerView) -> Tensor | None:
        if not self.project:
            return None
        if view.output_weight is None:
            raise ValueError(
                "restkv: project=True needs the weight of the output projection and the view has "
                "none; pass LayerView.output_weight or set project=false."
            )
        joint = self.group == "joint"
        return output_factors(view.output_weight, view.kv_heads if joint else view.queries.shape[1])

    def _change(
        self,
        view: LayerView,
        a: Tensor,
        outputs: Tensor | None,
        factors: Tensor | None,
        group: str,
    ) -> Tensor:
        """Metric of one attention row a [B, H, L] with its output [B, H, dv]: float32, [B, H, L]
        with group=none, else [B, Hkv, L].
        """
        assert outputs is not None  # `past` was given
        if self.group == "joint":
            return joint_reconstruction(a, outputs, view.values, factors)
        after = self.metric == "after"
        without_tau = self.official and not (after and self.project)
        tau = 1.0 if without_tau else float(self.tau)
        normalize = self.normalize and not (self.official and after)
        return reconstruction(a, outputs, view.values, factors, tau, normalize, group)
