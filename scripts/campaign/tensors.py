"""Changes of a model's tensors and of the files that hold them.

Knows safetensors; must not know what a change is good for.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

EMBEDDED = Path(__file__).resolve().parents[2] / "harness" / "embedded" / "tiny_vlm"
NAME = "model.safetensors"
INDEX = "model.safetensors.index.json"
State = dict[str, Any]
Change = Callable[[State, random.Random], Any]


def load(folder: Path) -> State:
    """All tensors by name."""
    from safetensors.torch import load_file

    return dict(load_file(folder / NAME))


def save(state: State, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors; they must not share memory."""
    from safetensors.torch import save_file

    save_file({k: v.clone().contiguous() for k, v in state.items()}, path, metadata)


def rewrite(folder: Path, change: Change, rng: random.Random) -> None:
    """Load, change and save."""
    state = load(folder)
    changed = change(state, rng)
    save(state if changed is None else changed, folder / NAME, {"format": "pt"})


def shard(folder: Path, parts: int) -> dict[str, Any]:
    """Split the weights into several files; returns the index, which is written."""
    state = load(folder)
    names = sorted(state)
    where: dict[str, str] = {}
    for part in range(parts):
        file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        mine = {name: state[name] for name in names[part::parts]}
        save(mine, folder / file, {"format": "pt"})
        where |= dict.fromkeys(mine, file)
    (folder / NAME).unlink()
    size = sum(t.numel() * t.element_size() for t in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index))
    return index


def drop(*parts: str) -> Change:
    """Leave out tensors whose names hold one of these."""
    return lambda state, rng: {k: v for k, v in state.items() if not any(p in k for p in parts)}


def drop_any(count: int) -> Change:
    """Leave out some at random."""

    def change(state: State, rng: random.Random) -> None:
        for name in rng.sample(sorted(state), count):
            del state[name]

    return change


def renamed(old: str, new: str) -> Change:
    """Other names."""
    return lambda state, rng: {k.replace(old, new): v for k, v in state.items()}


def each(part: str, act: Callable[[Any], Any]) -> Change:
    """Change every tensor whose name holds a part."""

    def change(state: State, rng: random.Random) -> None:
        names = [name for name in state if part in name]
        assert names, part
        for name in names:
            state[name] = act(state[name])

    return change


def poison(part: str, value: float, count: int | None = None) -> Change:
    """Put a value into some entries of a tensor, or into all."""

    def change(state: State, rng: random.Random) -> None:
        names = sorted(name for name in state if part in name)
        assert names, part
        tensor = state[rng.choice(names)]
        flat = tensor.view(-1)
        for place in range(len(flat)) if count is None else rng.sample(range(len(flat)), count):
            flat[place] = value

    return change


def fill(part: str, rows: tuple[int, ...], value: float) -> Change:
    """Fill rows of the one tensor whose name holds a part."""

    def change(state: State, rng: random.Random) -> None:
        (name,) = [name for name in state if part in name]
        for row in rows:
            state[name][row] = value

    return change


def extra(name: str) -> Change:
    """One tensor more."""

    def change(state: State, rng: random.Random) -> None:
        state[name] = next(iter(state.values())).clone()

    return change


def rebalanced(power: int) -> Change:
    """The same function in exact arithmetic, with larger numbers on the way."""

    def change(state: State, rng: random.Random) -> None:
        for name in [name for name in state if "language_model.model.layers.2." in name]:
            if "up_proj" in name:
                state[name] = state[name].float() * 2.0**power
            if "down_proj" in name:
                state[name] = state[name].float() * 2.0**-power

    return change


def float32(state: State, rng: random.Random) -> State:
    """The same numbers in single precision."""
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
