"""Attention that keys collect from all queries against float64, its FLOPs and its memory."""

from __future__ import annotations

import importlib

import pytest
import torch

from methods import kernels
from methods.kernels.column_sums import _division, causal_flops
from methods.kernels.launch import interpreted, recording
from methods.kernels.row_lse import row_lse
from tests.kernels.oracles import assert_close, causal, draw, logits
from tests.kernels.test_row_lse import CASES
from tests.kernels.visibilities import KINDS, visibility

module = importlib.import_module("methods.kernels.column_sums")


def shipped(dtype, dim):
    """The launches of the published settings, on meta tensors."""
    for length, kind in ((32768, "causal"), (1001, "one_row"), (32768, "mask")):
        queries = torch.empty(1, 28, length, dim, dtype=dtype, device="meta")
        keys = torch.empty(1, 4, length, dim, dtype=dtype, device="meta")
        rows = length if kind == "mask" else 1
        mask = torch.empty(1, 1, rows, length, dtype=torch.bool, device="meta")
        lse = torch.empty(1, 28, length, device="meta")
        mask = None if kind == "causal" else mask
        kernels.column_sums(queries, keys, dim**-0.5, mask, lse=lse)


@pytest.mark.parametrize(("batch", "length", "kv_heads", "group", "dim", "dtype"), CASES)
def test_column_sums(batch, length, kv_heads, group, dim, dtype):
    queries = draw(batch, kv_heads * group, length, dim, seed=1, dtype=dtype, strided=True)
    keys = draw(batch, kv_heads, length, dim, seed=2, dtype=dtype, strided=True)
    exact = logits(queries, keys, dim**-0.5, causal(length, length))
    wanted, lse = exact.softmax(-1).sum(2), exact.logsumexp(-1).float()
    assert_close(kernels.column_sums(queries, keys, dim**-0.5, lse=lse), wanted, dtype)
    with kernels.using("torch"):
        for known in (None, lse):
            got = kernels.column_sums(queries, keys, dim**-0.5, lse=known)
            assert_close(got, wanted, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_what_queries_see(kind):
    options, visible = visibility(kind, 150)
    queries, keys = draw(2, 2, 150, 24, seed=1), draw(2, 1, 150, 24, seed=2)
    exact = logits(queries, keys, 0.2, visible)
    wanted, lse = exact.softmax(-1).sum(2), exact.logsumexp(-1).float()
    assert_close(kernels.column_sums(queries, keys, 0.2, **options), wanted, torch.float32)
    with kernels.using("torch"):
        for known in (None, lse):
            got = kernels.column_sums(queries, keys, 0.2, **options, lse=known)
            assert_close(got, wanted, torch.float32)


@pytest.mark.parametrize("processors", [1, 4, 1000])
@pytest.mark.parametrize("blind", [None, 70])
def test_divisions_among_programs_agree(monkeypatch, processors, blind):
    monkeypatch.setattr(module, "processors", lambda device: processors)
    queries, keys = draw(1, 4, 330, 16, seed=1), draw(1, 1, 330, 16, seed=2)
    visible = causal(330, 330)
    if blind is not None:
        visible = visible | (torch.arange(330, device=visible.device)[:, None] < 330 - blind)
    exact = logits(queries, keys, 0.3, visible)
    lse = exact.logsumexp(-1).float()
    got = kernels.column_sums(queries, keys, 0.3, blind=blind, lse=lse)
    assert_close(got, exact.softmax(-1).sum(2), torch.float32)


@pytest.mark.parametrize("heads", [1, 4, 28, 32])
@pytest.mark.parametrize("length", [1, 1024, 4096, 32768, 131072])
def test_no_program_outlasts_the_others_by_much(length, heads):
    tiles, slots, group = -(-length // 64), 264, 7 if heads == 28 else 1
    members, splits = _division(1, heads, group, tiles, True, slots)
    assert 1 <= members <= group
    average = heads * tiles * (tiles + 1) // 2 // slots
    assert members * -(-tiles // splits) <= max(4, average)
    assert splits <= 24


def test_queries_that_see_nothing_add_nothing():
    queries, keys = draw(1, 2, 70, 16, seed=1), draw(1, 2, 70, 16, seed=2)
    mask = causal(70, 70).clone()
    mask[:, :, 40:66] = False
    exact = logits(queries, keys, 0.3, mask)
    wanted = exact.softmax(-1).nan_to_num(0.0).sum(2)
    assert_close(kernels.column_sums(queries, keys, 0.3, mask), wanted, torch.float32)
    with kernels.using("torch"):
        lse = row_lse(queries, keys, 0.3, mask)
        got = kernels.column_sums(queries, keys, 0.3, mask, lse=lse)
        assert_close(got, wanted, torch.float32)


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("length", [1024, 4096, 32768, 131072])
def test_flops_against_flash_attention(length, dim):
    flash = 4 * 28 * length**2 // 2 * dim  # causal, both products
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert causal_flops(1, 28, length, dim, dtype) <= 0.6 * flash


@pytest.mark.skipif(not interpreted(), reason="counts the products of the interpreter")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_flops_are_those_of_the_loops(monkeypatch, dtype):
    from triton.runtime.interpreter import InterpreterBuilder

    flops, original = [], InterpreterBuilder.create_dot

    def counting(self, left, right, *args):
        flops.append(2 * left.data.shape[0] * left.data.shape[1] * right.data.shape[1])
        return original(self, left, right, *args)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", counting)
    queries, keys = (
        draw(2, 4, 200, 40, seed=1, dtype=dtype),
        draw(2, 2, 200, 40, seed=2, dtype=dtype),
    )
    kernels.column_sums(queries, keys, 0.3, lse=torch.ones(2, 4, 200))
    assert sum(flops) == causal_flops(2, 4, 200, 40, dtype)


def test_memory_is_that_of_the_sums():
    queries = torch.empty(1, 28, 131072, 128, dtype=torch.bfloat16, device="meta")
    keys = torch.empty(1, 4, 131072, 128, dtype=torch.bfloat16, device="meta")
    with recording(90) as recorder:
        assert kernels.column_sums(queries, keys, 0.1).shape == (1, 28, 131072)
    assert [kernel.__name__ for kernel, *_ in recorder.launches] == [
        "_row_lse_kernel",
        "_column_kernel",
    ]
    made = [
        each.numel()
        for _, arguments, _ in recorder.launches
        for each in arguments
        if isinstance(each, torch.Tensor) and each is not queries and each is not keys
    ]
    assert max(made) == 28 * 131072


def test_what_does_not_fit_is_refused():
    queries = draw(1, 2, 4, 16, seed=1)
    with pytest.raises(ValueError, match="not both"):
        kernels.column_sums(queries, queries, 1.0, causal(4, 4), 2)
    with pytest.raises(ValueError, match=r"an lse of \(1, 2, 4\), not \(1, 2\)"):
        kernels.column_sums(queries, queries, 1.0, lse=torch.ones(1, 2))
