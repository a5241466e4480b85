"""How far outputs move when a token is dropped, against W_O itself in float64."""

from __future__ import annotations

import importlib

import pytest
import torch

from methods import kernels
from methods.kernels.factors import rounded_factors
from tests.kernels.oracles import DEVICE, DTYPES, assert_close, draw

HIDDEN = {40: 96, 64: 30, 96: 200, 128: 130, 256: 300}  # of the W_O of two KV heads; 30 < 64
# (length, query heads of a KV head, head_dim, group): no two odd in the same way
SHAPES = [
    (1, 1, 64, "none"),
    (63, 4, 40, "mean"),
    (65, 7, 64, "max"),
    (129, 1, 128, "none"),
    (70, 2, 96, "mean"),
    (33, 1, 256, "max"),
]
# As above, where there are enough tokens for large tiles.
LONG = [(1025, 1, 64, "mean"), (257, 4, 128, "none"), (130, 2, 256, "max")]


def shipped(dtype, dim):
    """The launches of the published settings, on meta tensors."""
    for kv_heads, each, length, project, group in (
        (4, 7, 32768, True, "mean"),
        (4, 7, 3000, True, "mean"),
        (8, 4, 32768, False, "mean"),
    ):
        heads = kv_heads * each
        attention = torch.empty(1, heads, length, device="meta")
        outputs = torch.empty(1, heads, dim, device="meta")
        values = torch.empty(1, kv_heads, length, dim, dtype=dtype, device="meta")
        factors = torch.empty(heads, dim, dim, device="meta") if project else None
        kernels.reconstruction(attention, outputs, values, factors, group=group)


def oracle(attention, outputs, values, weight, tau, normalize):
    """float64 [B, H, L], with the two bounds that the operation promises."""
    heads = outputs.shape[1]
    each = heads // values.shape[1]
    moved = outputs.double()[:, :, None] - values.double().repeat_interleave(each, 1)
    size = outputs.double()[:, :, None]
    if weight is not None:
        parts = weight.double().unflatten(1, (heads, -1))  # [C, H, d]
        moved = torch.einsum("bhld,chd->bhlc", moved, parts)
        size = torch.einsum("bhld,chd->bhlc", size, parts)
    size = size.norm(dim=-1)
    distance = torch.maximum(moved.norm(dim=-1), 1e-6 * size)
    left = (1.0 - attention).clamp_min(1e-6).double()
    change = attention.double() / left * distance**tau
    return change / size.clamp_min(1e-6) if normalize else change


def over_group(scores, kv_heads, group):
    if group == "none":
        return scores
    scores = scores.unflatten(1, (kv_heads, -1))
    return scores.amax(2) if group == "max" else scores.mean(2)


def layer(length, each, dim, dtype, batch=1):
    """attention with rows that sum to 1, outputs, values and W_O; all but the last strided."""
    heads = 2 * each
    logits = draw(batch, heads, length, 1, seed=1)[..., 0] * 2.0
    attention = torch.empty(batch, length, heads, device=DEVICE).transpose(1, 2)
    attention.copy_(logits.softmax(-1) if length > 1 else torch.full_like(logits, 0.75))
    values = draw(batch, 2, length, dim, seed=2, dtype=dtype, strided=True)
    outputs = draw(batch, heads, 1, dim, seed=3, strided=True)[:, :, 0] * 0.3
    weight = draw(HIDDEN[dim], heads * dim, seed=4) * 0.1
    return attention, outputs, values, weight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "each", "dim", "group"), SHAPES)
def test_reconstruction(length, each, dim, group, dtype):
    batch = 2 if each == 1 else 1
    check(layer(length, each, dim, dtype, batch), each, group, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("length", "each", "dim", "group"), LONG)
def test_large_tiles(monkeypatch, length, each, dim, group, dtype):
    module = importlib.import_module("methods.kernels.reconstruction")
    monkeypatch.setattr(module, "processors", lambda device: 0)
    check(layer(length, each, dim, dtype), each, group, dtype)


def check(layer, each, group, dtype):
    attention, outputs, values, weight = layer
    factors = kernels.output_factors(weight, 2 * each)
    wanted = over_group(oracle(attention, outputs, values, weight, 1.0, False), 2, group)
    parts = (attention, outputs, values, factors)
    assert_close(kernels.reconstruction(*parts, group=group), wanted, dtype)
    with kernels.using("torch"):
        got = kernels.reconstruction(*parts, group=group)
        assert_close(got, wanted, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tau", "normalize"), [(0.5, False), (2.0, False), (1.0, True)])
@pytest.mark.parametrize("project", [True, False])
def test_powers_norms_and_value_space(project, tau, normalize, dtype):
    attention, outputs, values, weight = layer(64, 3, 40, dtype)
    factors = kernels.output_factors(weight, 6) if project else None
    wanted = oracle(attention, outputs, values, weight if project else None, tau, normalize)
    parts = (attention, outputs, values, factors, tau, normalize)
    close = dtype if project else torch.float32  # nothing is rounded without a product
    for group in ("none", "mean"):
        grouped = over_group(wanted, 2, group)
        assert_close(kernels.reconstruction(*parts, group=group), grouped, close, 1 + tau)
        with kernels.using("torch"):
            got = kernels.reconstruction(*parts, group=group)
            assert_close(got, grouped, torch.float32, 1 + tau)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("project", [True, False])
def test_a_key_with_all_attention_and_keys_with_none(project, dtype):
    attention, outputs, values, weight = layer(70, 2, 64, dtype)
    attention.zero_()
    attention[:, :, 5] = 1.0
    outputs = values[:, :, 5].float().repeat_interleave(2, 1)
    factors = kernels.output_factors(weight, 4) if project else None
    wanted = oracle(attention, outputs, values, weight if project else None, 1.0, False)
    got = kernels.reconstruction(attention, outputs, values, factors)
    assert_close(got, wanted, torch.float32)  # the bound is not rounded to half precision
    assert bool((got[:, :, 5] > 0).all())
    assert int((got > 0).sum()) == got[:, :, 5].numel()


def test_small_distances_keep_their_relative_precision():
    _, outputs, values, weight = layer(64, 1, 64, torch.float16)
    attention = torch.full((1, 2, 64), 0.999, device=DEVICE)
    outputs = values[:, :, 7].float() + 1e-4 * outputs
    wanted = oracle(attention, outputs, values, weight, 1.0, False)[:, :, 7:8]
    got = kernels.reconstruction(attention, outputs, values, kernels.output_factors(weight, 2))
    assert_close(got[:, :, 7:8], wanted, torch.float16)


def test_factors_that_overflow_float16_stay_float32():
    attention, outputs, values, weight = layer(40, 1, 40, torch.float16)
    factors = kernels.output_factors(weight * 1e6, 2)
    wanted = oracle(attention, outputs, values, weight * 1e6, 1.0, False)
    assert rounded_factors(factors, torch.float16) is factors
    assert_close(kernels.reconstruction(attention, outputs, values, factors), wanted, torch.float16)


def test_factors_are_rounded_once():
    factors = kernels.output_factors(draw(30, 40, seed=1), 2)
    narrow = rounded_factors(factors, torch.bfloat16)
    assert narrow.dtype == torch.bfloat16
    assert rounded_factors(factors, torch.bfloat16) is narrow
    assert rounded_factors(factors, torch.float32) is factors
    assert rounded_factors(factors, torch.float16).dtype == torch.float16


def test_an_unknown_group_is_refused():
    attention, outputs, values, _ = layer(3, 1, 40, torch.float32)
    with pytest.raises(ValueError, match="group='sum' is unknown"):
        kernels.reconstruction(attention, outputs, values, None, group="sum")
