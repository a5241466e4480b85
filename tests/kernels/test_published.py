"""The published formulas that kernels are compared with, and the counts that times are held to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import methods
from methods import kernels
from scripts.kernel_bench import count, pool, published
from scripts.kernel_bench.decode import SUITE as DECODE
from scripts.kernel_bench.meter import eager
from scripts.kernel_bench.operations import SUITE
from scripts.kernel_bench.shapes import SMALL, Shape, draw

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def plain_torch():
    with kernels.using("torch"):
        yield


def layer_of(length, group, dim, hidden=24, window=8, dtype=torch.float32):
    shape = Shape("test", 2 * group, 2, dim, hidden, length, window)
    return draw(shape, dtype, CPU, seed=length)


@pytest.mark.parametrize(("length", "group", "dim"), [(41, 1, 16), (67, 4, 8), (150, 7, 5)])
@pytest.mark.parametrize("scale", [1e6, 2.3, 0.9])
def test_restkv_agrees_with_the_policy(length, group, dim, scale):
    layer, budget = layer_of(length, group, dim), length // 2
    policy = methods.build("restkv", window=8, scale=scale)
    got = policy.score(layer.view(8), budget)[..., : length - 8]
    for block in (None, 13):
        wanted = published.restkv(layer, 8, budget, scale, block=block)
        assert torch.allclose(got, wanted, rtol=2e-5, atol=1e-9)
    assert (policy.select_many(layer.view(8), [budget])[0].adaptive == 0) == (scale == 1e6)


def test_restkv_takes_its_other_parameters_from_the_policy():
    layer = layer_of(59, 2, 8)
    policy = methods.build("restkv", window=6, kernel=3, alpha=0.7, scale=4.0)
    wanted = published.restkv(layer, 6, 20, 4.0, kernel=3, alpha=0.7)
    assert torch.allclose(policy.score(layer.view(6), 20)[..., :53], wanted, rtol=2e-5)


@pytest.mark.parametrize(("length", "group", "dim"), [(41, 1, 16), (67, 4, 8)])
def test_other_methods_agree_with_their_policies(length, group, dim):
    layer = layer_of(length, group, dim)
    snapkv = methods.build("snapkv", window=8).score(layer.view(8), 20)[..., : length - 8]
    assert torch.allclose(snapkv, published.snapkv(layer, 8), rtol=1e-5)
    tova = methods.build("tova").measure(layer.view(1))
    assert torch.allclose(tova[:, 0], published.tova(layer), rtol=1e-5)
    h2o = methods.build("h2o").measure(layer.view(length))
    for block in (None, 10):
        assert torch.allclose(h2o, published.h2o(layer, block), rtol=1e-5)


@pytest.mark.parametrize("shape", SMALL, ids=lambda shape: shape.model)
@pytest.mark.parametrize("suite", [SUITE, DECODE], ids=lambda suite: suite.name)
def test_every_operation_passes_its_check_and_a_spoiled_result_does_not(suite, shape):
    for operation in suite.operations:
        source = suite.draw(shape, torch.float32, CPU)
        assert operation.applies(shape)
        result = operation.prepare(shape, source)()
        assert operation.check(shape, source, result) <= operation.allowed(torch.float32)
        for baseline in operation.baselines.values():
            if baseline.alike:
                assert operation.check(shape, source, baseline.prepare(shape, source)()) < 1e-3
        spoiled = result if isinstance(result, torch.Tensor) else result[0]
        first = spoiled.flatten(0, -2)[0]
        first[len(first) // 3] += 1.0 + first.abs().max()
        assert operation.check(shape, source, result) > operation.allowed(torch.float32)


def nbytes(*tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


SHAPE = Shape("test", 6, 2, 8, 5, 37, window=4, itemsize=4)


def parts():
    layer = draw(SHAPE, torch.float32, CPU)
    return layer, layer.last(4)


def dots(rows, causal):
    """Products of a query and a key, one by one."""
    first = SHAPE.length - rows
    pairs = [(i, j) for i in range(rows) for j in range(SHAPE.length)]
    return SHAPE.heads * sum(not causal or j <= first + i for i, j in pairs)


def test_counts_of_windows_are_those_of_their_tensors():
    layer, queries = parts()
    lse = kernels.window_lse(queries, layer.keys, layer.scaling)
    counted = count.window_lse(SHAPE)
    assert counted.bytes == nbytes(layer.keys, queries, lse)
    assert counted.flops == 2 * 8 * dots(4, causal=False)
    weights = torch.ones(4)
    got = kernels.window_columns(
        queries, layer.keys, layer.scaling, weights, lse=lse, values=layer.values, past=33
    )
    counted = count.window_columns(SHAPE)
    assert counted.bytes == nbytes(layer.keys, layer.values, queries, lse, weights, *got)
    assert counted.flops == 2 * 8 * (dots(4, causal=False) + 6 * 33)
    assert counted.temporary == nbytes(*got)


def test_counts_of_all_queries_are_those_of_their_tensors():
    layer, _ = parts()
    lse = torch.zeros(1, 6, 37)
    counted = count.row_lse(SHAPE)
    assert counted.bytes == nbytes(layer.queries, layer.keys, lse)
    assert counted.flops == 2 * 8 * dots(37, causal=True)
    given = count.column_sums(SHAPE, given=True)
    assert given.bytes == nbytes(layer.queries, layer.keys, lse, lse)
    assert given.flops == counted.flops
    both = count.column_sums(SHAPE, given=False)
    assert (both.bytes, both.flops) == (given.bytes + counted.bytes, 2 * counted.flops)


def test_counts_of_the_rest_are_those_of_their_tensors():
    layer, _ = parts()
    a, outputs = published.average(layer, 4)
    factors = kernels.output_factors(layer.weight, 6)
    got = kernels.reconstruction(a, outputs, layer.values, factors, group="mean")
    counted = count.reconstruction(SHAPE)
    assert counted.bytes == nbytes(a, outputs, layer.values, factors, got)
    assert counted.flops == 2 * 37 * int((factors.abs() > 0).sum())
    rows = published.window_rows(layer, 4)
    means = kernels.mean_top_positions(rows, [9])
    assert count.top_positions(SHAPE).bytes == nbytes(rows, means)
    assert count.pooling(SHAPE).bytes == 2 * nbytes(got)
    half = replace(SHAPE, ratio=0.5)
    kept, places = torch.zeros(2, 2, half.budget, 8), torch.zeros(2, half.budget).long()
    assert count.gather(half).bytes == 2 * nbytes(kept) + nbytes(places)


def test_counts_of_decoding_are_those_of_the_pool():
    shape = replace(SHAPE, length=90)
    held = pool.draw(shape, torch.float32, CPU)
    entries = [held.entries(shape, each) for each in range(31 * 2)]
    used = sum(nbytes(*each) for each in entries)
    places = 8 * int((held.places >= 0).sum())
    assert pool.attention_count(shape).bytes == used + places + 2 * nbytes(held.queries)
    weights = 3 * 4 * int((held.places >= 0).sum())
    counted = pool.attention_count(shape, rows=True)
    assert counted.bytes == used + places + 2 * nbytes(held.queries) + weights
    assert counted.flops == sum(2 * 2 * 3 * each.numel() for each, _ in entries)
    new = nbytes(held.new_keys, held.new_values)
    assert pool.append_count(shape).bytes == 2 * new + 8 * 62


def test_the_meter_counts_what_eager_torch_reads_writes_multiplies_and_holds():
    x, y = torch.empty(10, 4, device="meta"), torch.empty(4, 6, device="meta")

    def work():
        product = (x.view(5, 2, 4) @ y).flatten(0, 1)  # 40 + 24 read, 60 written
        product += 1.0  # 60 and 60
        wide = product.double()  # 60 read, 120 written
        del product
        return wide.sum(1)  # 120 read, 20 written

    counted = eager(work)
    assert counted.bytes == 4 * (40 + 24 + 60 + 60 + 60 + 60 + 120 + 120 + 20)
    assert counted.flops == 2 * 10 * 4 * 6
    assert counted.temporary == 4 * (60 + 120)


def test_published_restkv_costs_what_the_formula_says():
    shape = replace(SHAPE, length=64, hidden=512)
    layer = draw(shape, torch.float32, torch.device("meta"))
    counted = eager(lambda: published.restkv(layer, 4, 20))
    heads, length, dim, hidden, window = 6, 64, 8, 512, 4
    products = window * length * dim + (length - window) * dim
    projections = length * dim * hidden + dim * hidden
    assert counted.flops == 2 * heads * (products + projections)
    projected = 4 * heads * length * hidden
    assert 2 * projected < counted.temporary < 2.5 * projected
    assert counted.bytes > 4 * projected  # written, read, written and read again
