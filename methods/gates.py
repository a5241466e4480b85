"""Retention gates: small networks that say how long a token's entry is worth keeping.

Read from safetensors alone. Must not know what is done with what they say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import linear, logsigmoid, silu

from .files import Stamps, found

_NAME = re.compile(r"(?:^|\.)layers\.(\d+)\.(?:self_attn\.)?retention_gate\.(.+)$")


@dataclass(frozen=True)
class Gate:
    """The gate of a layer: linear maps (weight [out, in], bias [out] or None), SiLU between them.

    bias [Hkv] is added at the end.
    """

    maps: tuple[tuple[Tensor, Tensor | None], ...]
    bias: Tensor

    @property
    def width(self) -> int:
        """Size of the hidden states that it reads."""
        return self.maps[0][0].shape[1]

    @property
    def heads(self) -> int:
        """Number of KV heads that it speaks of."""
        return self.maps[-1][0].shape[0]

    def __call__(self, hidden: Tensor) -> Tensor:
        """log beta, at most 0, float32 [B, Hkv, L], of hidden states [B, L, width]."""
        state = hidden.float()
        for place, (weight, bias) in enumerate(self.maps):
            state = linear(silu(state) if place else state, weight, bias)
        return logsigmoid(state + self.bias).transpose(1, 2)


def load(place: str, device: torch.device | str = "cpu") -> tuple[Gate, ...]:
    """The gates of a file, or of a folder's *.safetensors, by layer, float32 on a device.

    place: may end as `files.pinned` makes it. ValueError, one sentence, where there are none, where
    they do not fit together, and where they are others than the pinned ones.
    """
    where, stamps = found("gates", place)
    return _load(where, stamps, str(device))


@lru_cache(maxsize=4)
def _load(place: str, stamps: Stamps, device: str) -> tuple[Gate, ...]:
    layers: dict[int, dict[str, Tensor]] = {}
    for file, _, _ in stamps:
        try:
            for layer, part, tensor in _tensors(file):
                layers.setdefault(layer, {})[part] = tensor.to(device)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"gates={place}: {file} cannot be read as safetensors ({error}); download or train "
                "the gates again."
            ) from error
    if sorted(layers) != list(range(len(layers))) or not layers:
        raise ValueError(
            f"gates={place} holds gates of {len(layers)} layers that are not 0, 1, 2 and so on; "
            "give a file with tensors named layers.<n>.self_attn.retention_gate.*."
        )
    return tuple(_gate(place, number, layers[number]) for number in range(len(layers)))


def _tensors(file: str) -> Iterator[tuple[int, str, Tensor]]:
    with safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118, it is no mapping
            if named := _NAME.search(name):
                yield int(named[1]), named[2], opened.get_tensor(name).float()


def _gate(place: str, layer: int, parts: dict[str, Tensor]) -> Gate:
    count = sum(part.endswith(".weight") for part in parts)
    names = [f"linear{n}" for n in range(1, count + 1) if f"linear{n}.weight" in parts]
    maps = tuple((parts[f"{name}.weight"], parts.get(f"{name}.bias")) for name in names)
    used = {f"{name}.weight" for name in names} | {f"{name}.bias" for name in names} | {"bias"}
    if not names or set(parts) - used or not _fits(maps, parts.get("bias")):
        raise ValueError(
            f"gates={place}: the gate of layer {layer} ({', '.join(sorted(parts))}) is no chain of "
            "linear maps of numbers; download or train the gates again."
        )
    last = maps[-1][0]
    return Gate(maps, parts.get("bias", last.new_zeros(last.shape[0])))


def _fits(maps: tuple[tuple[Tensor, Tensor | None], ...], last: Tensor | None) -> bool:
    """Whether each map takes what the one before it gives, and all of them are numbers."""
    if any(weight.dim() != 2 for weight, _ in maps):
        return False
    biases = [*maps, (maps[-1][0], last)]
    return (
        all(one.shape[0] == other.shape[1] for (one, _), (other, _) in pairwise(maps))
        and all(bias is None or bias.shape == weight.shape[:1] for weight, bias in biases)
        and all(bool(t.isfinite().all()) for pair in biases for t in pair if t is not None)
    )
