"""Changes of a model's tensors and of the files that hold them.

Knows safetensors; must not know what a change is good for.
"""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME = "model.safetensors"
INDEX = "model.safetensors.index.json"
State = dict[str, Any]
Change = Callable[[State, random.Random], Any]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3373192\n"


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


def _drop(*parts: str) -> Change:
    return lambda state, rng: {k: v for k, v in state.items() if not any(p in k for p in parts)}


def _drop_any(count: int) -> Change:
    def change(state: State, rng: random.Random) -> None:
        for name in rng.sample(sorted(state), count):
            del state[name]

    return change


def _renamed(old: str, new: str) -> Change:
    return lambda state, rng: {k.replace(old, new): v for k, v in state.items()}


def _each(part: str, act: Callable[[Any], Any]) -> Change:
    def change(state: State, rng: random.Random) -> None:
        names = [name for name in state if part in name]
        assert names, part
        for name in names:
            state[name] = act(state[name])

    return change


def _poison(part: str, value: float, count: int | None = None) -> Change:
    """Put a value into some entries of a tensor, or into all."""

    def change(state: State, rng: random.Random) -> None:
        names = sorted(name for name in state if part in name)
        assert names, part
        tensor = state[rng.choice(names)]
        flat = tensor.view(-1)
        for place in range(len(flat)) if count is None else rng.sample(range(len(flat)), count):
            flat[place] = value

    return change


def _row(part: str, rows: tuple[int, ...], value: float) -> Change:
    def change(state: State, rng: random.Random) -> None:
        (name,) = [name for name in state if part in name]
        for row in rows:
            state[name][row] = value

    return change


def _extra(name: str) -> Change:
    def change(state: State, rng: random.Random) -> None:
        state[name] = next(iter(state.values())).clone()

    return change


def _rebalanced(power: int) -> Change:
    """The same function in exact arithmetic, with larger numbers on the way."""

    def change(state: State, rng: random.Random) -> None:
        for name in [name for name in state if "language_model.model.layers.2." in name]:
            if "up_proj" in name:
                state[name] = state[name].float() * 2.0**power
            if "down_proj" in name:
                state[name] = state[name].float() * 2.0**-power

    return change


def _float32(state: State, rng: random.Random) -> State:
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


NAN, INF = float("nan"), float("inf")
V = "language_model.model.layers.2.self_attn.v_proj"
ANY: tuple[str, ...] = ()
# said, change, want, words, dtype, more
CASES: tuple[tuple[str, Change, str, tuple[str, ...], str, tuple[str, ...]], ...] = tuple(
    (said, change, want, words, *(rest or ("float32",)), ())
    for said, change, want, words, *rest in (
        *((f"missing: {n} tensors at random", _drop_any(n), "refuse", ANY) for n in (1, 1, 1, 1, 3, 40)),
        ("missing: v_proj of layer 2", _drop(V), "refuse", ("v_proj",)),
        ("missing: layer 3", _drop("language_model.model.layers.3."), "refuse", ("layers.3",)),
        ("missing: lm_head", _drop("lm_head"), "refuse", ("lm_head",)),
        ("missing: embeddings", _drop("embed_tokens"), "refuse", ("embed_tokens",)),
        ("missing: vision tower", _drop("vision_tower"), "refuse", ("vision_tower|vision",)),
        ("missing: projector", _drop("multi_modal_projector"), "refuse", ("projector",)),
        ("missing: last norm", _drop("language_model.model.norm."), "refuse", ("norm",)),
        ("missing: everything", lambda s, r: {"x": next(iter(s.values()))}, "refuse", ANY),
        ("missing: no tensors at all", lambda s, r: {}, "refuse", ANY),
        ("renamed: v_proj", _renamed("v_proj", "value"), "refuse", ("v_proj|value",)),
        ("renamed: all", lambda s, r: {f"net.{k}": v for k, v in s.items()}, "refuse", ANY),
        ("renamed: capitals", lambda s, r: {k.upper(): v for k, v in s.items()}, "refuse", ANY),
        ("renamed: lm_head", _renamed("lm_head", "head"), "refuse", ("lm_head",)),
        ("renamed: vision tower", _renamed("vision_tower", "visual"), "refuse", ANY),
        ("renamed: as older versions", _renamed("language_model.model.", "model.language_model."), "either", ANY),
        ("extra: a layer", _extra("language_model.model.layers.6.mlp.up_proj.weight"), "refuse", ("layers.6",)),
        ("extra: a tensor", _extra("mine.weight"), "refuse", ("mine",)),
        ("extra: a bias", _extra("language_model.model.layers.0.self_attn.q_proj.bias"), "refuse", ("bias",)),
        ("extra: rotary frequencies", _extra("language_model.model.rotary_emb.inv_freq"), "either", ANY),
        ("shape: transposed", _each(V, lambda t: t.T), "refuse", ("v_proj",)),
        ("shape: half a tensor", _each(V, lambda t: t[: len(t) // 2]), "refuse", ("v_proj",)),
        ("shape: smaller vocabulary", _each("lm_head", lambda t: t[:-1]), "refuse", ("lm_head",)),
        ("shape: larger vocabulary", _each("embed_tokens", lambda t: t.repeat(2, 1)), "refuse", ("embed_tokens",)),
        ("shape: a scalar", _each(V, lambda t: t.sum()), "refuse", ("v_proj",)),
        ("shape: an empty tensor", _each(V, lambda t: t[:0]), "refuse", ("v_proj",)),
        ("shape: one dimension more", _each(V, lambda t: t[None]), "refuse", ("v_proj",)),
        ("type: whole numbers", _each(V, lambda t: t.int()), "either", ANY),
        ("type: bool", _each(V, lambda t: t.bool()), "refuse", ANY),
        ("type: float32", _float32, "right", ANY),
        ("type: float64", _each(V, lambda t: t.double()), "right", ANY),
        *((f"{v} in one weight of {p}", _poison(p, v, 1), "finite", ANY)
          for v in (NAN, INF, -INF) for p in (V, "multi_modal_projector.linear_1.weight", "lm_head")),
        ("NaN everywhere in v_proj", _poison(V, NAN), "finite", ANY),
        ("NaN in a norm", _poison("language_model.model.norm", NAN, 1), "finite", ANY),
        ("NaN in the vision tower", _poison("vision_tower.encoder.layers.1.self_attn.q_proj.weight", NAN, 1), "finite", ANY),
        ("NaN in a position's embedding", _poison("position_embedding", NAN, 3), "finite", ANY),
        *((f"NaN in the embedding of words {n} to {n + 9}", _row("embed_tokens", tuple(range(n, n + 10)), NAN), "finite", ANY)
          for n in (5, 40, 80, 120, 160, 200, 240, 300, 360, 420, 480)),
        *((f"NaN in the output of words {n} to {n + 9}", _row("lm_head", tuple(range(n, n + 10)), NAN), "finite", ANY)
          for n in (0, 5, 100, 480)),
        ("infinite output of a word", _row("lm_head", (7,), INF), "finite", ANY),
        ("huge output of a word", _row("lm_head", (7,), 6e4), "either", ANY),
        *((f"rebalanced by 2^{p}", _rebalanced(p), "right", ANY) for p in (6, 20)),
        *((f"rebalanced by 2^{p}", _rebalanced(p), "finite", ANY, "float16") for p in (8, 12, 16, 24)),
        ("rebalanced by 2^20", _rebalanced(20), "finite", ANY, "bfloat16"),
        ("NaN in v_proj", _poison(V, NAN, 1), "finite", ANY, "float16"),
        ("NaN in v_proj", _poison(V, NAN, 1), "finite", ANY, "bfloat16"),
    )
)  # fmt: skip


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path, random.Random], None]:
    def edit(folder: Path, rng: random.Random) -> None:
        path = folder / NAME
        path.write_bytes(change(path.read_bytes()))

    return edit


def _header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path, random.Random], None]:
    """Change the JSON before the numbers, with its length made to fit."""

    def edit(content: bytes) -> bytes:
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        change(header)
        made = json.dumps(header).encode()
        return struct.pack("<Q", len(made)) + made + content[8 + size :]

    return _bytes(edit)


def _first(header: dict[str, Any]) -> dict[str, Any]:
    return header[sorted(k for k in header if k != "__metadata__")[0]]


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


def _sharded(
    parts: int, change: Callable[[Path, dict[str, Any]], object] | None = None
) -> Callable[[Path, random.Random], None]:
    def edit(folder: Path, rng: random.Random) -> None:
        index = shard(folder, parts)
        if change is not None:
            change(folder, index)
            if (folder / INDEX).exists():
                (folder / INDEX).write_text(json.dumps(index))

    return edit


def _part(number: int) -> str:
    return f"model-{number:05d}-of-00003.safetensors"


def _both(folder: Path, index: dict[str, Any]) -> None:
    import shutil

    from scripts.campaign.folders import EMBEDDED

    shutil.copy(EMBEDDED / NAME, folder / NAME)


# said, change of the folder, want, words
FILES: tuple[tuple[str, Callable[[Path, random.Random], Any], str, tuple[str, ...]], ...] = (
    ("weights: empty", _bytes(lambda c: b""), "refuse", (NAME,)),
    ("weights: half", _bytes(lambda c: c[: len(c) // 2]), "refuse", (NAME,)),
    ("weights: without the last byte", _bytes(lambda c: c[:-1]), "refuse", (NAME,)),
    ("weights: a byte more", _bytes(lambda c: c + b"x"), "refuse", (NAME,)),
    ("weights: without the first byte", _bytes(lambda c: c[1:]), "refuse", (NAME,)),
    ("weights: header only", _bytes(lambda c: c[: 8 + struct.unpack("<Q", c[:8])[0]]), "refuse", (NAME,)),
    ("weights: 8 bytes", _bytes(lambda c: c[:8]), "refuse", (NAME,)),
    ("weights: LFS pointer", _bytes(lambda c: POINTER), "refuse", (NAME,)),
    ("weights: HTML", _bytes(lambda c: b"<html>404</html>"), "refuse", (NAME,)),
    ("weights: zeros", _bytes(lambda c: bytes(len(c))), "refuse", (NAME,)),
    ("weights: a pickle", _bytes(lambda c: b"\x80\x02}q\x00."), "refuse", (NAME,)),
    ("weights: a huge header", _bytes(lambda c: struct.pack("<Q", 2**62) + c[8:]), "refuse", (NAME,)),
    ("weights: no JSON", _bytes(lambda c: c[:8] + b"x" + c[9:]), "refuse", (NAME,)),
    ("weights: another shape in the header", _header(lambda h: _first(h).update(shape=[3, 5])), "refuse", (NAME,)),
    ("weights: unknown type", _header(lambda h: _first(h).update(dtype="F99")), "refuse", (NAME,)),
    ("weights: offsets beyond", _header(lambda h: _first(h).update(data_offsets=[0, 2**40])), "refuse", (NAME,)),
    ("weights: no metadata", _header(lambda h: h.pop("__metadata__", None)), "either", ()),
    ("weights: odd metadata", _header(lambda h: h.update(__metadata__={"format": "tf"})), "either", ()),
    ("weights: missing", lambda folder, rng: (folder / NAME).unlink(), "refuse", ("safetensors",)),
    ("weights: a folder", lambda folder, rng: ((folder / NAME).unlink(), (folder / NAME).mkdir()) and None, "refuse", (NAME,)),
    ("shards: three", _sharded(3), "right", ()),
    ("shards: one", _sharded(1), "right", ()),
    ("shards: one missing", _sharded(3, lambda f, i: (f / _part(2)).unlink()), "refuse", (_part(2),)),
    ("shards: one empty", _sharded(3, lambda f, i: (f / _part(2)).write_bytes(b"")), "refuse", (_part(2),)),
    ("shards: one an LFS pointer", _sharded(3, lambda f, i: (f / _part(3)).write_bytes(POINTER)), "refuse", (_part(3),)),
    ("shards: one cut", _sharded(3, lambda f, i: (f / _part(1)).write_bytes((f / _part(1)).read_bytes()[:-9])), "refuse", (_part(1),)),
    ("shards: no index", _sharded(3, lambda f, i: (f / INDEX).unlink()), "refuse", ("safetensors",)),
    ("shards: index without a tensor", _sharded(3, lambda f, i: i["weight_map"].pop("lm_head.weight")), "either", ()),
    ("shards: index without a file", _sharded(3, lambda f, i: [i["weight_map"].pop(k) for k, v in [*i["weight_map"].items()] if v == _part(2)]), "refuse", ()),
    ("shards: index that names too much", _sharded(3, lambda f, i: i["weight_map"].update(mine=_part(1))), "refuse", ()),
    ("shards: index that names a wrong file", _sharded(3, lambda f, i: i["weight_map"].update({"lm_head.weight": _part(2), **{k: _part(3) for k in [*i["weight_map"]][:1]}})), "either", ()),
    ("shards: index that names a lost file", _sharded(3, lambda f, i: i["weight_map"].update({"lm_head.weight": "gone.safetensors"})), "refuse", ("gone.safetensors",)),
    ("shards: index without a map", _sharded(3, lambda f, i: i.pop("weight_map")), "refuse", (INDEX,)),
    ("shards: index of another kind", _sharded(3, lambda f, i: i.update(weight_map=[1])), "refuse", (INDEX,)),
    ("shards: beside the whole", _sharded(3, _both), "either", ()),
)  # fmt: skip
