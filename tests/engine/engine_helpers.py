"""Policies made for the tests, and a way to see every logit the engine decodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.engine import Branch, BranchResult, Engine, Generation
from harness.engine import decode as decode_module
from harness.engine.layout import prepare
from harness.models.prompts import Prompt
from methods import LayerView, Selection


@dataclass(eq=False)
class Scatter:
    """Keeps random positions, different in each layer and KV head, and remembers them."""

    seed: int
    window: int | None = 4
    decode: str = "grow"
    positions: str = "original"
    more: int = 0  # tokens that every further layer keeps beyond the budget
    views: list[LayerView] = field(default_factory=list)
    kept: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    params: dict[str, object] = field(default_factory=dict)
    adds: bool = False
    recites: int | None = None
    waits: bool = False
    sees_hidden: bool = False
    unrotates: bool = False
    merge: str = "none"

    def asks(self, view: LayerView) -> None:
        return None

    def queries(self, suffix: int, behind: int = 0) -> int | None:
        return self.window

    def select_many(self, view: LayerView, budgets: list[int]) -> list[Selection]:
        self.views.append(view)
        generator = torch.Generator().manual_seed(1000 * self.seed + view.layer)
        order = torch.rand(view.keys.shape[1], view.keys.shape[2], generator=generator).argsort(-1)
        found = []
        for budget in budgets:
            positions = order[:, : budget + self.more * view.layer].sort(-1).values
            self.kept[view.layer, budget] = positions
            found.append(Selection(positions[None], min(4, budget), None))
        return found

    def mask(self, rank: int, budget: int, length: int) -> Tensor:
        """bool [Hkv, length], True where kept."""
        positions = self.kept[rank, budget]
        return torch.zeros(positions.shape[0], length, dtype=torch.bool).scatter_(
            1, positions, True
        )


class Trace:
    """What every cell holds before each forward pass of the decoder: sets of token positions."""

    def __init__(self, monkeypatch):
        self.passes = []  # (layers {index: [cells][heads] positions}, new tokens)
        original = decode_module.forward

        def note(model, layout, cache, positions, **inputs):
            layers = {}
            for layer in layout.layers:
                tiles, heads = cache.layers[layer.index].tiles, cache.layers[layer.index].heads
                held = [[] for _ in range(len(tiles.counts))]
                for owner, places in zip(tiles.owner.tolist(), tiles.places.tolist(), strict=True):
                    held[owner] += [place for place in places if place >= 0]
                assert [len(places) for places in held] == tiles.counts.tolist()
                layers[layer.index] = [held[i : i + heads] for i in range(0, len(held), heads)]
            self.passes.append((layers, inputs["input_ids"].shape[1]))
            return original(model, layout, cache, positions, **inputs)

        monkeypatch.setattr(decode_module, "forward", note)

    def masks(self, cell, boundary, length):
        """bool [Hkv, rows, length] a layer: what each token from the boundary on may see."""
        found = {}
        for index in self.passes[0][0]:
            heads = len(self.passes[0][0][index][cell])
            mask = torch.zeros(heads, length - boundary, length, dtype=torch.bool)
            row = 0
            for layers, new in self.passes:
                first = boundary + row
                for _ in range(new):
                    for head, places in enumerate(layers[index][cell]):
                        mask[head, row, places] = True
                        mask[head, row, first : boundary + row + 1] = True
                    row += 1
            found[index] = mask
        return found


def run_with_logits(
    monkeypatch,
    engine: Engine,
    prompt: Prompt,
    branches: list[Branch],
    tokens: int,
) -> tuple[list[BranchResult], Tensor]:
    """Results, and logits [steps, cells, V] of every forward pass of the decoder."""
    seen: list[Tensor] = []
    original = decode_module.forward

    def record(*args, **kwargs):
        output = original(*args, **kwargs)
        seen.append(output.clone())
        return output

    with monkeypatch.context() as patch:
        patch.setattr(decode_module, "forward", record)
        results = engine.run(prompt, branches, Generation(tokens))
    # The engine decodes the largest cells first (a stable sort by what was asked for), and those
    # that choose what they read in a batch behind the others.
    length = results[0].evictable_tokens
    counts = [length if b.policy is None else _asked(b, length) for b in branches]
    chosen = [b.cache is not None and b.cache.share is not None for b in branches]
    order = sorted(range(len(results)), key=lambda i: (chosen[i], -counts[i]))
    back = [order.index(i) for i in range(len(results))]
    steps = len(seen) // len(set(chosen))
    batches = [torch.stack(seen[at : at + steps]) for at in range(0, len(seen), steps)]
    return results, torch.cat(batches, 1)[:, back]


def _asked(branch: Branch, length: int) -> int:
    return branch.budget or length - int(branch.ratio * length + 1e-9)


def stop_some(
    monkeypatch, engine: Engine, prompt: Prompt, branches: list[Branch], every: int
) -> set[int]:
    """Let cells stop at different steps; those that go on must not notice. Lengths of answers."""
    free = engine.run(prompt, branches, Generation(14))
    stops = frozenset(result.token_ids[k % 9] for k, result in enumerate(free[::every]))
    with monkeypatch.context() as patch:
        patch.setattr(engine.decoder, "stop_ids", stops)
        stopped = engine.run(prompt, branches, Generation(14))
    for before, after in zip(free, stopped, strict=True):
        ends = [i for i, token in enumerate(before.token_ids) if token in stops]
        assert after.token_ids == (before.token_ids[: ends[0] + 1] if ends else before.token_ids)
    return {len(result.token_ids) for result in stopped}


def random_gates(model: torch.nn.Module, folder: Path, seed: int, size: float) -> str:
    """A file of random retention gates, one for each layer of a model that can be compressed."""
    text, generator = model.config.get_text_config(), torch.Generator().manual_seed(seed)
    store = {}
    for rank in range(len(prepare(model).layers)):
        shapes = {
            "linear1.weight": (9, text.hidden_size),
            "linear2.weight": (text.num_key_value_heads, 9),
            "bias": (text.num_key_value_heads,),
        }
        for name, shape in shapes.items():
            tensor = size * torch.randn(shape, generator=generator)
            store[f"layers.{rank}.self_attn.retention_gate.{name}"] = tensor
    save_file(store, folder / "gates.safetensors")
    return str(folder / "gates.safetensors")
