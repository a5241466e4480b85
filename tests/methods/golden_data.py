"""Stored outputs of published code: how they are read, and what it means to equal them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import methods

ROOT = Path(__file__).parents[1] / "golden"
POOLS = {"adaptive": "adaptive", "avgpool": "avg", "maxpool": "max", "none": "none"}
Case = dict[str, Any]


@cache
def tensors(folder: str) -> dict[str, Tensor]:
    return load_file(ROOT / folder / "tensors.safetensors")


@cache
def inputs(name: str) -> dict[str, Tensor]:
    stored = load_file(ROOT / "inputs" / f"{name}.safetensors")
    return {key: tensor.float() for key, tensor in stored.items()}


def cases(folder: str) -> list[Case]:
    return json.loads((ROOT / folder / "cases.json").read_text())["cases"]


def view(name: str, per_query_head: bool = True, length: int | None = None) -> methods.LayerView:
    """The stored inputs as a layer; the published code expands keys and values to query heads."""
    stored = inputs(name)
    keys, values, queries = stored["k"][:, :, :length], stored["v"][:, :, :length], stored["q"]
    if length is not None:
        queries = queries[:, :, :length]
    if per_query_head:
        group = queries.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scaling = queries.shape[-1] ** -0.5
    return methods.LayerView(keys, values, queries, scaling, stored["Wo"])


def output(folder: str, case: Case, field: str) -> Tensor | None:
    return tensors(folder).get(f"{case['id']}.{field}")


def expect(condition: bool | Tensor, what: str) -> None:
    """Raise with one line; the counting command and the tests both show it."""
    if not bool(condition):
        raise AssertionError(what)


def expect_close(ours: Tensor, theirs: Tensor, what: str, rtol: float = 2e-5) -> None:
    worst = ((ours - theirs).abs() / theirs.abs().clamp_min(1e-30)).max()
    expect(torch.allclose(ours, theirs, rtol=rtol, atol=1e-12), f"{what}: off by {worst:.1e}")


def expect_same_sets(folder: str, case: Case, kept: Tensor, scores: Tensor) -> None:
    """Kept past positions equal the stored ones where the margin decides; ties by their scores."""
    theirs = output(folder, case, "idx").long()
    margin = output(folder, case, "rel_margin")
    expect(kept.shape == theirs.shape, f"kept {tuple(kept.shape)}, stored {tuple(theirs.shape)}")
    same = (kept == theirs.sort(-1).values).all(-1)
    expect((same | (margin <= 1e-4)).all(), "kept sets differ")
    ours, stored = scores.gather(-1, kept), scores.gather(-1, theirs)
    expect_close(ours.sort(-1).values, stored.sort(-1).values, "scores of the kept set")


def check_scored(
    folder: str,
    case: Case,
    policy: methods.Policy,
    layer: methods.LayerView,
    window: int,
    rtol: float = 2e-5,
) -> None:
    """Scores, sets, protected window and order of a method that ranks past tokens."""
    past = layer.length - window
    budget = case["n_past_kept"] + window
    scores = policy.score(layer, budget)
    expect(scores[..., past:].isinf().all(), "the window is not protected")
    expect_close(scores[..., :past], output(folder, case, "score"), "score", rtol)
    kept = policy.keep(layer, budget)
    recent = torch.arange(past, layer.length)
    expect((kept[..., case["n_past_kept"] :] == recent).all(), "the window is not kept last")
    expect_same_sets(folder, case, kept[..., : case["n_past_kept"]], scores)
