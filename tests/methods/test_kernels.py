"""The shared operations: odd shapes, blocks, memory, and what is cached."""

import gc
import importlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import methods
from methods import kernels
from methods.kernels.factors import _factors
from tests.methods.views import random_view


def direct_attention(view, visible):
    group = view.queries.shape[1] // view.kv_heads
    keys = view.keys.double().repeat_interleave(group, 1)
    logits = view.queries.double() @ keys.transpose(2, 3) * view.scaling
    return logits.masked_fill(~visible, -torch.inf).softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("length", "rows", "group"), [(123, 7, 5), (63, 63, 1), (1, 1, 2)])
def test_window_attention(dtype, length, rows, group):
    view = random_view(length, group=group, batch=2, dtype=dtype)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    wanted = direct_attention(view, causal)[:, :, length - rows :]
    got = kernels.window_attention(view.queries[:, :, -rows:], view.keys, view.scaling, None)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("block_rows", [1, 13, 32, 200])
@pytest.mark.parametrize("kind", ["causal", "mask", "one_row_mask", "blind"])
def test_column_sums_in_blocks(block_rows, kind):
    view, length = random_view(63, group=3, batch=2, sharpness=2.0), 63
    position = torch.arange(length)
    causal = (position <= position[:, None]).expand(1, 1, length, length)
    visible, options = causal, {}
    if kind == "mask":
        visible = causal | (position[:, None] < 20) & (position < 20)
        options["mask"] = visible
    elif kind == "one_row_mask":
        options["mask"] = (position % 3 != 1)[None, None, None]
        visible = options["mask"].expand(1, 1, length, length)
    elif kind == "blind":
        options["blind"] = 9
        visible = causal | (position[:, None] < length - 9)
    wanted = direct_attention(view, visible).sum(2)
    parts = (view.queries, view.keys, view.scaling)
    got = kernels.column_sums(*parts, block_rows=block_rows, **options)
    assert torch.allclose(got.double(), wanted, rtol=1e-4, atol=1e-6)


class _LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_column_sums_never_hold_an_l_by_l_tensor():
    view = random_view(2000, kv_heads=1, group=1, dim=4)
    with _LargestTensor() as seen:
        kernels.column_sums(view.queries, view.keys, view.scaling)
    assert seen.elements <= 2000 * 2000 // 7


@pytest.mark.parametrize(("hidden", "group", "dim"), [(40, 3, 8), (5, 1, 16), (123, 7, 4)])
def test_factors_replace_the_projection(hidden, group, dim):
    view = random_view(33, group=group, dim=dim, hidden=hidden, batch=2)
    heads = 2 * group
    generator = torch.Generator().manual_seed(1)
    attention = torch.rand(2, heads, 33, generator=generator) * 0.9
    outputs = torch.randn(2, heads, dim, generator=generator)
    factors = kernels.output_factors(view.output_weight, heads)
    assert factors.shape == (heads, min(hidden, dim), dim)
    weight = view.output_weight.double().unflatten(1, (heads, dim))  # [C, H, d]
    values = view.values.double().repeat_interleave(group, 1)
    projected = torch.einsum("bhld,chd->bhlc", outputs.double()[:, :, None] - values, weight)
    wanted = attention / (1 - attention) * projected.norm(dim=-1)
    got = kernels.reconstruction(attention, outputs, view.values, factors)
    assert torch.allclose(got.double(), wanted, rtol=1e-4)
    size = torch.einsum("bhd,chd->bhc", outputs.double(), weight).norm(dim=-1)[..., None]
    got = kernels.reconstruction(attention, outputs, view.values, factors, 2.0, normalize=True)
    squared = attention / (1 - attention) * projected.norm(dim=-1) ** 2 / size
    assert torch.allclose(got.double(), squared, rtol=1e-4)


def test_reconstruction_in_blocks_equals_at_once(monkeypatch):
    view = random_view(41, group=2)
    attention = torch.rand(1, 4, 41) * 0.5
    outputs = torch.randn(1, 4, 8)
    single = kernels.output_factors(view.output_weight, 4)
    joint = kernels.output_factors(view.output_weight, 2)
    at_once = (
        kernels.reconstruction(attention, outputs, view.values, single),
        kernels.joint_reconstruction(attention, outputs, view.values, joint),
    )
    module = importlib.import_module("methods.kernels.changes")
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 4 * 8 * 6)
    assert torch.allclose(
        kernels.reconstruction(attention, outputs, view.values, single), at_once[0]
    )
    split = kernels.joint_reconstruction(attention, outputs, view.values, joint)
    assert torch.allclose(split, at_once[1], rtol=1e-5)


def test_factors_are_computed_once_a_weight_and_forgotten_with_it(monkeypatch):
    calls = []
    original = torch.linalg.qr

    def counting(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.linalg, "qr", counting)
    gc.collect()
    before = len(_factors)
    weight = torch.nn.Parameter(torch.randn(16, 32))
    first = kernels.output_factors(weight, 4)
    assert kernels.output_factors(weight, 4) is first
    assert len(calls) == 1
    assert not first.requires_grad
    with torch.no_grad():
        weight.mul_(2)
    assert torch.allclose(kernels.output_factors(weight, 4).abs(), 2 * first.abs(), rtol=1e-4)
    kernels.output_factors(weight, 2)
    assert len(calls) == 3
    assert len(_factors) == before + 1
    del weight
    gc.collect()
    assert len(_factors) == before


def test_factors_follow_a_weight_whose_data_is_replaced():
    layer = torch.nn.Linear(8, 6, bias=False)
    kernels.output_factors(layer.weight, 2)
    layer.weight.data = torch.randn(6, 8)
    fresh = kernels.output_factors(layer.weight.detach().clone(), 2)
    assert torch.equal(kernels.output_factors(layer.weight, 2), fresh)
    kept = layer.weight
    layer.to(torch.bfloat16)
    assert layer.weight is kept
    fresh = kernels.output_factors(layer.weight.detach().clone(), 2)
    assert torch.equal(kernels.output_factors(layer.weight, 2), fresh)


def test_factors_take_weights_made_in_inference_mode():
    with torch.inference_mode():
        weight = torch.randn(16, 8)
        first = kernels.output_factors(weight, 2)
        assert kernels.output_factors(weight, 2) is first


def test_variants_share_what_a_view_measured(monkeypatch):
    calls = []
    module = importlib.import_module("methods.view")
    original = module.window_attention
    monkeypatch.setattr(
        module, "window_attention", lambda *args: calls.append(1) or original(*args)
    )
    view = random_view()
    for name, params in (
        ("restkv", {"window": 8}),
        ("restkv", {"window": 8, "temporal": "mean"}),
        ("restkv", {"window": 8, "relative_scale": 0.02}),
        ("snapkv", {"window": 5}),
        ("tova", {}),
    ):
        methods.build(name, **params).keep_many(view, [4, 9, 20])
    assert len(calls) == 1
