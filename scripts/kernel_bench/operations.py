"""The operations of the eviction methods: how each is run and what it is compared with.

"eager" is the published formula in plain torch (published.py). "sdpa" is torch's fused attention,
of the whole prompt beside a score and of the window beside one of its parts: what the model itself
pays for a layer, not another way to the same result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

import methods
from methods import kernels
from methods.kernels.gather_entries import gather_entries
from methods.kernels.row_lse import row_lse
from methods.smoothing import temporal_weights

from . import count, inputs, published, references
from .case import Baseline, Operation, Suite, Work
from .shapes import SMALL, Layer, Shape, draw, shapes

_INERT = 2.0  # scale over the prompt length at which no drift reaches a step
_TILE = 64  # entries


def _eager(work: Callable[[Shape, Layer], Any]) -> dict[str, Baseline]:
    """work(shape, layer) is timed whole."""
    return {"eager": Baseline(lambda *where: partial(work, *where), counted=True)}


def _sdpa(rows: str) -> dict[str, Baseline]:
    """rows: all queries, causally, the window's or the last one."""

    def prepare(shape: Shape, layer: Layer) -> Work:
        seen = {"all": shape.length, "window": shape.window, "last": 1}[rows]
        attend = partial(scaled_dot_product_attention, scale=layer.scaling, enable_gqa=True)
        qkv = (layer.last(seen), layer.keys, layer.values)
        return partial(attend, *qkv, is_causal=rows == "all")

    return {"sdpa": Baseline(prepare, alike=False, key=f"sdpa {rows}")}


def _score(policy: methods.Policy, layer: Layer, budget: int, rows: int) -> Tensor:
    """Measure and rescore, as a policy does for one budget; [1, Hkv, L], nothing protected."""
    view = layer.view(rows)
    plan = policy.plan(view, budget)
    return policy.rescore(view, policy.measure(view), [plan]).scores[0]


def _restkv(active: bool) -> Operation:
    def scale(shape: Shape) -> float:
        return shape.scale if active else _INERT * shape.length

    def applies(shape: Shape) -> bool:
        """Whether drift can reach a step, which it cannot on short prompts."""
        return not active or shape.length - (shape.budget - shape.window) >= shape.scale

    def prepare(shape: Shape, layer: Layer) -> Work:
        policy = methods.build("restkv", window=shape.window, scale=scale(shape))
        return partial(_score, policy, layer, shape.budget, shape.window)

    def eager(shape: Shape, layer: Layer) -> Tensor:
        return published.restkv(layer, shape.window, shape.budget, scale(shape))

    return Operation(
        "restkv_score_active" if active else "restkv_score",
        partial(count.restkv_score, active=active),
        prepare,
        lambda shape, layer, got: references.restkv(shape, layer, got, scale(shape)),
        _eager(eager) | _sdpa("all"),
        applies=applies,
    )


def _snapkv(shape: Shape, layer: Layer) -> Work:
    policy = methods.build("snapkv", window=shape.window)
    return partial(_score, policy, layer, shape.budget, shape.window)


def _measure(name: str, rows: Callable[[Shape], int]) -> Callable[[Shape, Layer], Work]:
    policy = methods.build(name)
    return lambda shape, layer: lambda: policy.measure(layer.view(rows(shape)))


def _window_lse(shape: Shape, layer: Layer) -> Work:
    return partial(kernels.window_lse, layer.last(shape.window), layer.keys, layer.scaling)


def _window_columns(shape: Shape, layer: Layer) -> Work:
    parts = (layer.last(shape.window), layer.keys, layer.scaling)
    weights = temporal_weights("ema", shape.window, 0.3, layer.keys.device)
    lse = kernels.window_lse(*parts)
    past = shape.length - shape.window
    return lambda: kernels.window_columns(*parts, weights, lse=lse, values=layer.values, past=past)


def _reconstruction(shape: Shape, layer: Layer) -> Work:
    a, outputs = inputs.average(shape, layer)
    factors = kernels.output_factors(layer.weight, shape.heads)
    work = partial(kernels.reconstruction, a, outputs, layer.values, factors)
    return partial(work, 1.0, False, group="mean")


def _importance(shape: Shape, layer: Layer) -> Work:
    a, outputs = inputs.average(shape, layer)
    return partial(published.importance, layer, a, outputs.to(layer.values.dtype))


def _gather(shape: Shape, layer: Layer) -> Work:
    places = inputs.places(shape, layer)
    tiles = pad(places, (0, -shape.budget % _TILE), value=-1).view(-1, _TILE)
    owner = torch.arange(shape.kv_heads, device=tiles.device)
    owner = owner.repeat_interleave(len(tiles) // shape.kv_heads)
    return partial(gather_entries, layer.keys, layer.values, tiles, owner)


def _gathered(shape: Shape, layer: Layer) -> Work:
    places = inputs.places(shape, layer)
    return lambda: [published.gather(each, places) for each in (layer.keys, layer.values)]


def _column_sums(given: bool) -> Operation:
    def prepare(shape: Shape, layer: Layer) -> Work:
        parts = (layer.queries, layer.keys, layer.scaling)
        lse = row_lse(*parts) if given else None
        return partial(kernels.column_sums, *parts, lse=lse)

    return Operation(
        "column_sums_given_lse" if given else "column_sums",
        partial(count.column_sums, given=given),
        prepare,
        lambda shape, layer, got: references.all_rows(layer, got[0], published.column_sums),
        _eager(lambda shape, layer: published.column_sums(layer)) | _sdpa("all"),
    )


OPERATIONS = (
    _restkv(active=False),
    _restkv(active=True),
    Operation(
        "snapkv_score",
        count.snapkv_score,
        _snapkv,
        references.snapkv,
        _eager(lambda shape, layer: published.snapkv(layer, shape.window)) | _sdpa("all"),
    ),
    Operation(
        "tova_score",
        count.tova_score,
        _measure("tova", lambda shape: 1),
        references.tova,
        _eager(lambda shape, layer: published.tova(layer)) | _sdpa("all"),
    ),
    Operation(
        "h2o_score",
        count.h2o_score,
        _measure("h2o", lambda shape: shape.length),
        lambda shape, layer, got: references.all_rows(layer, got[0], published.h2o),
        _eager(lambda shape, layer: published.h2o(layer)) | _sdpa("all"),
    ),
    Operation(
        "window_lse",
        count.window_lse,
        _window_lse,
        references.window_lse,
        _eager(lambda shape, layer: published.window_lse(layer, shape.window)) | _sdpa("window"),
    ),
    Operation(
        "window_columns",
        count.window_columns,
        _window_columns,
        references.columns,
        _eager(lambda shape, layer: published.average(layer, shape.window)) | _sdpa("window"),
    ),
    Operation(
        "reconstruction",
        count.reconstruction,
        _reconstruction,
        inputs.importance_error,
        {"eager": Baseline(_importance, counted=True)},
    ),
    Operation(
        "pooling",
        count.pooling,
        lambda shape, layer: partial(
            kernels.pool, inputs.scores(shape, layer), [shape.window], "edge", 5
        ),
        inputs.pooled_error,
        _eager(
            lambda shape, layer: published.edge_pool(
                inputs.scores(shape, layer)[..., : shape.length - shape.window], 5
            )
        ),
        tolerance=1e-5,
    ),
    Operation(
        "top_positions",
        count.top_positions,
        lambda shape, layer: partial(
            kernels.mean_top_positions, inputs.rows(shape, layer), [shape.budget]
        ),
        inputs.positions_error,
        _eager(
            lambda shape, layer: published.top_positions(inputs.rows(shape, layer), shape.budget)
        ),
        tolerance=1e-6,
    ),
    Operation(
        "row_lse",
        count.row_lse,
        lambda shape, layer: partial(row_lse, layer.queries, layer.keys, layer.scaling),
        references.row_lse,
        _eager(lambda shape, layer: published.row_lse(layer)) | _sdpa("all"),
    ),
    _column_sums(given=True),
    _column_sums(given=False),
    Operation(
        "gather_entries",
        count.gather,
        _gather,
        inputs.gather_error,
        {"eager": Baseline(_gathered, counted=True)},
        tolerance=0.0,
    ),
)

SUITE = Suite("kernels", OPERATIONS, draw, shapes, SMALL)
