"""Our methods under the rules of other codes, for comparing whole runs with theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import methods
from methods import LayerView, Selection, ladder
from tests.methods.golden_data import Case


@dataclass(eq=False)
class Chosen:
    """A policy that keeps of a layer what a function of it and of the budget says."""

    choose: Callable[[LayerView, int], Selection]
    window: int | None
    decode: str = "grow"
    positions: str = "original"
    params: dict[str, object] = field(default_factory=dict)
    adds: bool = False
    recites: int | None = None
    sees_hidden: bool = False
    unrotates: bool = False
    merge: str = "none"
    waits: bool = False

    def asks(self, view: LayerView) -> None:
        return None

    def queries(self, suffix: int, behind: int = 0) -> int | None:
        return self.window

    def select_many(self, view: LayerView, budgets: list[int]) -> list[Selection]:
        return [self.choose(view, budget) for budget in budgets]


def ragged(kept: Tensor) -> Selection:
    """A selection of what is True in bool [Hkv, L]; heads may keep different numbers."""
    counts = kept.sum(-1)
    order = (~kept).long().sort(dim=-1, stable=True).indices[:, : int(counts.max())]
    gaps = torch.arange(order.shape[1]) >= counts[:, None]
    return Selection(order.masked_fill(gaps, -1)[None], 0, counts=counts[None])


# kvpress: the prompt is evicted once, then a question and the answer are added.


def of_press(case: Case) -> methods.Policy:
    """Our method of that name; what a press protects and how it averages differ by parameters."""
    name, settings = case["press"].split("+")[-1], case["press_kwargs"]
    if name == "StreamingLLM":
        return methods.build("streaming_llm", sinks=settings["n_sink"], decode="grow")
    if name == "TOVA":
        return methods.build("tova", protect_last=True, decode="grow")
    if name == "ObservedAttention":
        return methods.build("h2o", recent=0, average="visible_mean", decode="grow")
    kernel = settings.get("kernel_size", 5)
    return methods.build("snapkv", window=settings["window_size"], kernel=kernel)


def at_ranks(policy: methods.Policy) -> methods.Policy:
    """The same, with rotary positions by the place in the cache, where it may not have them."""
    name, more = type(policy).__name__, [("positions", str, field(default="cache"))]
    kind = dataclasses.make_dataclass(name, more, bases=(type(policy),), frozen=True, kw_only=True)
    return kind(**{**policy.params, "positions": "cache"})


def with_counts(policy: methods.Policy, counts: list[int]) -> Chosen:
    """That many tokens of each layer; a window that takes all of them is protected whole."""

    def choose(view: LayerView, budget: int) -> Selection:
        count = counts[view.layer]
        order = scores_of(policy, view, count).sort(dim=-1, descending=True, stable=True).indices
        return Selection(order[None, :, :count].sort(dim=-1).values, policy.window or 0)

    return Chosen(choose, policy.window)


def shared_by_heads(policy: methods.Policy, alpha: float) -> Chosen:
    """kvpress's own AdaKV: each head keeps its best alpha * n, all heads share the rest."""

    def choose(view: LayerView, budget: int) -> Selection:
        scores = scores_of(policy, view, budget)
        safe = scores.topk(int(budget * alpha), dim=-1).indices
        scores = scores.scatter(-1, safe, torch.inf)
        best = scores.flatten().sort(descending=True, stable=True).indices
        kept = torch.zeros(scores.numel(), dtype=torch.bool)
        kept[best[: budget * len(scores)]] = True
        return ragged(kept.view(scores.shape))

    return Chosen(choose, policy.window)


@dataclass(frozen=True, kw_only=True)
class Released(methods.Policy):
    """LaCache as released: one ladder from the first token on, whatever the budget of the prompt.

    It raises its capacity at the first call, and a compaction may leave fewer entries than that.
    Ours keeps exactly its budget of the prompt: the latest evicted tokens come back.
    """

    climb: ladder.Climb
    decode: str = "hold"
    positions: str = "cache"

    def measure(self, view: LayerView) -> Tensor:
        """1 where the ladder has a rung."""
        scores = torch.ones(view.length)
        scores[self.climb.evicted(view.length)[view.layer]] = 0.0
        return scores.expand(1, view.kv_heads, -1)

    def evictions(self, held: methods.Held, grown: int, seen: int, num_layers: int) -> int:
        return len(self.climb.evicted(seen)[0])

    def standing(self, step: methods.Step, carried: Tensor | None) -> Tensor:
        dropped = torch.tensor(self.climb.evicted(step.seen)[step.layer], dtype=torch.long)
        return 1.0 - torch.isin(step.positions, dropped).float()


def scores_of(policy: methods.Policy, view: LayerView, budget: int) -> Tensor:
    """[Hkv, L], the whole window protected."""
    return policy.score(view, max(budget, (policy.window or 0) + 1))[0]
