"""How far a layer's output moves when a KV head drops a token, against W_O itself in float64."""

from __future__ import annotations

import pytest
import torch

from methods import kernels
from tests.kernels.oracles import DEVICE, DTYPES, assert_close, draw

# (length, query heads of a KV head, head_dim, hidden size): the last two have r < g * d
SHAPES = [
    (1, 1, 64, 96),
    (63, 7, 40, 300),
    (257, 1, 128, 280),
    (40, 4, 64, 500),
    (70, 3, 96, 150),
    (65, 2, 256, 300),
]


def shipped(dtype, dim):
    """The launches of the published settings, on meta tensors."""
    for project in (True, False):
        attention = torch.empty(1, 28, 32768, device="meta")
        outputs = torch.empty(1, 28, dim, device="meta")
        values = torch.empty(1, 4, 32768, dim, dtype=dtype, device="meta")
        rows = min(3584, 7 * dim)
        factors = torch.empty(4, rows, 7 * dim, device="meta") if project else None
        kernels.joint_reconstruction(attention, outputs, values, factors)


def oracle(attention, outputs, values, weight):
    """float64 [B, Hkv, L], not below 1e-6 of what a head with all attention puts out."""
    heads, kv_heads = outputs.shape[1], values.shape[1]
    odds = attention.double() / (1.0 - attention).clamp_min(1e-6).double()  # [B, H, L]
    moved = outputs.double()[:, :, None] - values.double().repeat_interleave(heads // kv_heads, 1)
    size = outputs.double()[:, :, None]
    if weight is not None:
        parts = weight.double().unflatten(1, (heads, -1))  # [C, H, d]
        moved = torch.einsum("bhld,chd->bhlc", moved, parts)
        size = torch.einsum("bhld,chd->bhlc", size, parts)
    change = (odds[..., None] * moved).unflatten(1, (kv_heads, -1)).sum(2).norm(dim=-1)
    least = (odds * 1e-6 * size.norm(dim=-1)).unflatten(1, (kv_heads, -1)).amax(2)
    return torch.maximum(change, least)


def layer(length, each, dim, hidden, dtype):
    """attention with rows that sum to 1, outputs, values and W_O; all but the last strided."""
    heads = 2 * each
    logits = draw(1, heads, length, 1, seed=1, strided=True)[..., 0] * 2.0
    attention = torch.empty(1, length, heads, device=DEVICE).transpose(1, 2)
    attention.copy_(logits.softmax(-1) if length > 1 else torch.full_like(logits, 0.75))
    values = draw(1, 2, length, dim, seed=2, dtype=dtype, strided=True)
    outputs = draw(1, heads, 1, dim, seed=3, strided=True)[:, :, 0] * 0.3
    return attention, outputs, values, draw(hidden, heads * dim, seed=4) * 0.1


def check(attention, outputs, values, weight, dtype):
    factors = None if weight is None else kernels.output_factors(weight, 2)
    wanted = oracle(attention, outputs, values, weight)
    got = kernels.joint_reconstruction(attention, outputs, values, factors)
    # Nothing is rounded without a product.
    assert_close(got, wanted, torch.float32 if weight is None else dtype)
    with kernels.using("torch"):
        twin = kernels.joint_reconstruction(attention, outputs, values, factors)
    assert_close(twin, wanted, torch.float32)
    return got


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "each", "dim", "hidden"), SHAPES)
def test_joint_reconstruction(length, each, dim, hidden, dtype):
    check(*layer(length, each, dim, hidden, dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_value_space(dtype):
    attention, outputs, values, _ = layer(130, 3, 96, 1, dtype)
    check(attention, outputs, values, None, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("project", [True, False])
def test_a_key_with_all_attention_and_keys_with_none(project, dtype):
    """Odds of a million, which float16 does not hold, beside heads with small ones."""
    attention, outputs, values, weight = layer(70, 3, 64, 200, dtype)
    attention[:, :, 8:] = 0.0
    attention[:, 0, :] = 0.0
    attention[:, 0, 5] = 1.0
    outputs[:, 0] = values[:, 0, 5].float()
    got = check(attention, outputs, values, weight if project else None, dtype)
    assert bool((got[:, :, 8:] == 0).all())
    assert bool((got[:, 0, 5] > 0).all())


def test_factors_that_overflow_float16_stay_float32():
    attention, outputs, values, weight = layer(40, 2, 40, 100, torch.float16)
    check(attention, outputs, values, weight * 1e6, torch.float16)
