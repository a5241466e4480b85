"""How important each attention head of a model is, measured once and read from a file.

Safetensors or JSON alone. Must not know what is done with it.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .files import Stamps, found

TENSOR = "head_scores"
_HEAD = re.compile(r"(\d+)-(\d+)")
_WANTED = f"one tensor {TENSOR} [layers, heads], or JSON with a list of scores for each layer-head"


def load(place: str) -> Tensor:
    """Importance of each query head, float64 [layers, H] on the CPU, none negative.

    place: a safetensors file with a tensor head_scores, a folder with one, or JSON as the code of
    HeadKV writes it: {"<layer>-<head>": [scores of prompts]}, of which the mean is taken. It may
    end as `files.pinned` makes it. ValueError, one sentence, for anything else.
    """
    return _load(*found("importance", place))


@lru_cache(maxsize=4)
def _load(place: str, stamps: Stamps) -> Tensor:
    held = [read for file, _, _ in stamps if (read := _read(place, file)) is not None]
    if len(held) != 1 or not _sound(held[0]):
        raise ValueError(
            f"importance={place} holds no numbers from 0 on, some above 0, for every head of every "
            f"layer; give {_WANTED}."
        )
    return held[0]


def _read(place: str, file: str) -> Tensor | None:
    try:
        if file.endswith(".json"):
            return _of_json(json.loads(Path(file).read_text(encoding="utf-8")))
        with safe_open(file, "pt") as opened:
            if TENSOR not in opened.keys():  # noqa: SIM118, it is no mapping
                return None
            read: Tensor = opened.get_tensor(TENSOR).double()
            return read
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"importance={place}: {file} cannot be read ({error}); give {_WANTED}."
        ) from error


def _of_json(told: Any) -> Tensor | None:
    """The mean of each list, [layers, H]; None where some head is missing or has no scores."""
    places = {}
    for name, scores in told.items() if isinstance(told, dict) else ():
        named = _HEAD.fullmatch(name)
        if named is None or not isinstance(scores, list) or not all(map(_number, scores)):
            return None
        places[int(named[1]), int(named[2])] = scores
    layers, heads = (1 + max((place[i] for place in places), default=-1) for i in (0, 1))
    if not places or len(places) != layers * heads or not all(places.values()):
        return None
    means = [[_mean(places[i, j]) for j in range(heads)] for i in range(layers)]
    return torch.tensor(means, dtype=torch.float64)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mean(scores: list[float]) -> float:
    return float(sum(scores) / len(scores))


def _sound(read: Tensor) -> bool:
    finite = read.dim() == 2 and bool(read.isfinite().all())
    return finite and bool((read >= 0).all()) and bool((read > 0).any())
