"""Checks and slices of what a model's forward takes.

Knows the names of transformers' inputs. It must not know eviction methods or caches.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

# Inputs with one entry a token; everything else (pixels, grids, sizes) belongs to the images.
_PER_TOKEN = ("input_ids", "token_type_ids", "mm_token_type_ids")
_DROPPED = ("attention_mask", "position_ids")

Grid = tuple[int, int, int]


def check(inputs: dict[str, Tensor]) -> None:
    """ValueError unless the inputs are one prompt without padding."""
    ids = inputs["input_ids"]
    if ids.dim() != 2 or ids.shape[0] != 1:
        raise ValueError(
            f"input_ids has shape {tuple(ids.shape)}; give one prompt at a time, shape [1, length]."
        )
    mask = inputs.get("attention_mask")
    if mask is not None and not bool((mask == 1).all()):
        raise ValueError("attention_mask hides tokens; give one prompt without padding.")


def first_part(inputs: dict[str, Tensor], boundary: int) -> dict[str, Tensor]:
    """The inputs of the first `boundary` tokens, images included."""
    part = {name: value for name, value in inputs.items() if name not in _DROPPED}
    for name in _PER_TOKEN:
        if name in part:
            part[name] = part[name][:, :boundary]
    return part


def check_boundary(modality: Tensor, boundary: int) -> None:
    """ValueError when image tokens [L] follow the boundary: images are processed whole and once."""
    length = modality.shape[0]
    if not 0 < boundary <= length:
        raise ValueError(
            f"the cache would be evicted after token {boundary} of {length}; give a longer prompt"
            " or another protocol."
        )
    if bool(modality[boundary:].any()):
        raise ValueError(
            f"evicting after token {boundary} of {length} would separate image tokens from the "
            "prompt before them; put the images first or choose another protocol."
        )


def position_ids(model: PreTrainedModel, inputs: dict[str, Tensor], modality: Tensor) -> Tensor:
    """Positions of all prompt tokens: [1, L], or [3, 1, L] from models with M-RoPE and images."""
    given = inputs.get("position_ids")
    if given is not None:
        return given
    ids = inputs["input_ids"]
    rope_index = _rope_index(model)
    images = any(name.endswith("_grid_thw") for name in inputs)
    if rope_index is None or not images:
        return torch.arange(ids.shape[1], device=ids.device)[None]
    known = {"mm_token_type_ids": modality[None].to(ids), **inputs}
    names = inspect.signature(rope_index).parameters
    positions, _ = rope_index(
        **{n: v for n, v in known.items() if n in names and n not in _DROPPED}
    )
    return positions


def grids(config: Any, inputs: Mapping[str, Tensor], modality: Tensor) -> list[Grid]:
    """First token, rows and columns of each image; [] where some tokens [L] are not in a grid."""
    places = modality.nonzero()[:, 0].tolist()
    runs = [i for i, place in enumerate(places) if i == 0 or places[i - 1] != place - 1]
    known = _named_sizes(config, inputs)
    sizes = _square_sizes(inputs, runs, len(places)) if known is None else known
    found, at = [], 0
    for rows, columns in sizes:
        own = places[at : at + rows * columns]
        at += rows * columns
        if at > len(places) or own[-1] - own[0] != len(own) - 1:
            return []
        found.append((own[0], rows, columns))
    return found if at == len(places) else []


def _named_sizes(config: Any, inputs: Mapping[str, Tensor]) -> list[tuple[int, int]] | None:
    """Rows and columns of each image as the processor says; None where it says nothing."""
    patches = inputs.get("image_grid_thw")
    if patches is None:
        return None
    vision = getattr(config, "vision_config", None)
    merge = getattr(vision, "spatial_merge_size", None)
    if merge is None:
        return []
    return [(rows // merge, columns // merge) for _, rows, columns in patches.tolist()]


def _square_sizes(
    inputs: Mapping[str, Tensor], runs: Sequence[int], count: int
) -> list[tuple[int, int]]:
    """Square pictures, one a run of a square number of tokens; [] where they are cut or padded."""
    pixels = inputs.get("pixel_values")
    if pixels is None or pixels.dim() != 4 or len(pixels) != len(runs) or "image_sizes" in inputs:
        return []
    lengths = [end - begin for begin, end in zip(runs, [*runs[1:], count], strict=True)]
    sides = [isqrt(length) for length in lengths]
    square = pixels.shape[2] == pixels.shape[3] and [side**2 for side in sides] == lengths
    return [(side, side) for side in sides] if square else []


def has_several_axes(model: PreTrainedModel) -> bool:
    """Whether a token's rotary position is several numbers (M-RoPE)."""
    text = model.config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    return _rope_index(model) is not None or "mrope_section" in rope


def _rope_index(model: PreTrainedModel) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """The model's own rule for positions of image tokens, if it has one."""
    inner = getattr(model, "model", None)
    return getattr(model, "get_rope_index", None) or getattr(inner, "get_rope_index", None)
