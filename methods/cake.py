"""CAKE (arXiv 2503.12491): layers ask for budget by how their attention spreads and shifts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from .checks import require_number
from .dispersion import dispersion
from .policy import over_group
from .snapkv import SnapKV
from .view import LayerView


@dataclass(frozen=True, kw_only=True)
class Cake(SnapKV):
    """Score a token by mean + gamma * variance of the attention that the last queries pay to it.

    Pooled and reduced over heads as SnapKV's score. budget=layers, the method's own rule and open
    to every method with a window: a layer asks by H^(1 / tau1) * V^(1 / tau2), where H is the
    entropy of what the window attends to before itself and V how much that varies over the queries
    of the window, both summed over heads. The authors tuned tau1 and tau2 for each model and
    budget, from 0.4 to 2.3; 1 is what their code falls back to.

    Scores are made for the mean budget of the layers. The released code evicts a layer as soon as
    later ones are read, which leaves the same entries; keeps prompts whole that exceed the budget
    by no more than the window; while decoding evicts by the newest query's attention, pooled over
    neighbours in the cache, where order is by score: here new tokens stay.
    """

    name: ClassVar[str] = "cake"
    title: ClassVar[str] = "CAKE"
    comparable_if: ClassVar[str] = ""
    value_norm: bool = field(default=False, init=False)
    gamma: float = 200.0
    tau1: float = 1.0
    tau2: float = 1.0
    budget: str = "layers"

    def __post_init__(self) -> None:
        """Refuse values the method has no meaning for."""
        super().__post_init__()
        require_number(self.name, "gamma", self.gamma, 0, 1e6)
        require_number(self.name, "tau1", self.tau1, 0.01, 100)
        require_number(self.name, "tau2", self.tau2, 0.01, 100)

    @property
    def temperatures(self) -> tuple[float, float]:
        """Those that were given."""
        return self.tau1, self.tau2

    def measure(self, view: LayerView) -> Tensor:
        """Mean + gamma * variance over the window, one for each KV head."""
        seen = dispersion(view, self.window, self.window_anchor)
        return over_group(seen.mean + self.gamma * seen.variance, view.kv_heads, self.group)
