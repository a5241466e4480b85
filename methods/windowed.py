"""What methods share that score by the attention of an observation window."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from .checks import WINDOW, require_choice, require_count
from .dispersion import dispersion
from .scoring import ScoringPolicy
from .view import LayerView


@dataclass(frozen=True, kw_only=True)
class WatchingPolicy(ScoringPolicy):
    """A policy that watches some last queries of a prompt; `width` says how many.

    window_anchor: end = the last queries of the prompt; question = the last ones of the question,
    before the suffix of the chat template. budget=layers is CAKE's rule (arXiv 2503.12491), see
    `preference`.
    """

    window_anchor: str = "end"

    def __post_init__(self) -> None:
        """Refuse values no window has a meaning for."""
        super().__post_init__()
        require_choice(self.name, "window_anchor", self.window_anchor, ("end", "question"))

    @abstractmethod
    def width(self, view: LayerView) -> int:
        """The window in this prompt."""

    def rows(self, view: LayerView) -> int:
        """How many queries are watched: `width`, or as many as there are."""
        return view.watched(self.width(view), self.window_anchor)[0]

    def columns(
        self, view: LayerView, weights: Tensor | None = None, past: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What each key collects from the observation window, see LayerView.columns."""
        return view.columns(self.width(view), self.window_anchor, weights, past)

    @property
    def prefers(self) -> bool:
        """By the window."""
        return True

    @property
    def temperatures(self) -> tuple[float, float]:
        """How weakly entropy and shift count in the preference of a layer: as their roots."""
        return 1.0, 1.0

    def preference(self, view: LayerView) -> Tensor:
        """Entropy of what the window attends to before itself, times how much that shifts."""
        one, other = self.temperatures
        seen = dispersion(view, self.width(view), self.window_anchor)
        return seen.entropy ** (1 / one) * seen.shift ** (1 / other)


@dataclass(frozen=True, kw_only=True)
class WindowPolicy(WatchingPolicy):
    """A policy that watches the last `window` queries and protects as many tokens.

    window: observation window in queries, and protected window in tokens. What is protected are the
    last tokens, wherever the window is anchored.
    """

    window: int = 32

    def __post_init__(self) -> None:
        """Refuse values no window has a meaning for."""
        super().__post_init__()
        require_count(self.name, "window", self.window, 1, WINDOW)

    def queries(self, suffix: int, behind: int = 0) -> int:
        """The window, and the suffix behind it where that is not watched."""
        return self.window + (suffix if self.window_anchor == "question" else 0)

    def width(self, view: LayerView) -> int:
        """The window, whatever the prompt."""
        return self.window
