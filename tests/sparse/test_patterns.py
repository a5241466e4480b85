"""Each pattern's mask against the authors' released code and against plain loops of its rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness import sparse
from harness.sparse import blocks
from tests.sparse import by_hand

GOLDEN = Path(__file__).parents[1] / "golden" / "sparse_prefill"
CASES = json.loads((GOLDEN / "cases.json").read_text())["cases"]
SCALING = 0.25


def named(case):
    values = "-".join(map(str, case["params"].values()))
    return f"{case['pattern']}-{case['length']}-{values}"


@pytest.fixture(scope="module")
def stored():
    found = load_file(GOLDEN / "inputs.safetensors")
    return found["q"][0].float(), found["k"][0].float()


@pytest.mark.parametrize("case", CASES, ids=named)
def test_masks_are_those_of_the_released_code(stored, case):
    query, key = (each[:, : case["length"]] for each in stored)
    mask = sparse.build(case["pattern"], **case["params"]).search(query, key, SCALING)
    ours = blocks.finished(mask, case["length"], 0)  # the diagonal is always computed
    n = mask.shape[-1]
    theirs = torch.zeros_like(mask)
    for head, rows in enumerate(case["mask"]):
        for row, text in enumerate(rows):
            theirs[head, row, : row + 1] = torch.tensor([mark == "1" for mark in text])
    theirs |= torch.eye(n, dtype=torch.bool)
    assert (ours != theirs).nonzero().tolist() == []
    assert 0 < int(theirs.sum()) <= query.shape[0] * n * (n + 1) // 2


def drawn(length, seed, heads=4, kv_heads=2, dim=8):
    """Heads of several kinds: flat, sharp, drawn to some keys, and drawn to some distances."""
    draw = torch.Generator().manual_seed(seed)
    query = torch.randn(heads, length, dim, generator=draw)
    key = torch.randn(kv_heads, length, dim, generator=draw)
    query[0] *= 0.02
    angle = 7 * torch.arange(length) / length
    turning = torch.stack([angle.cos(), angle.sin()], -1)
    query[heads - 1, :, :2] += 4 * turning
    key[kv_heads - 1, :, :2] += 3 * turning
    query[heads - 2, :, 2] += 2
    key[kv_heads - 1, torch.randint(0, length, (9,), generator=draw), 2] += 5
    return query, key


LENGTHS = (384, 500)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("sinks", "window"), [(0, 1), (1, 128), (128, 129), (5, 4000)])
def test_a_shape_computes_each_block_that_holds_a_pair_of_the_rule(length, sinks, window):
    query, key = drawn(length, 0)
    mask = sparse.build("a_shape", sinks=sinks, window=window).search(query, key, SCALING)
    assert mask.tolist() == by_hand.a_shape(length, 4, sinks, window)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    ("vertical", "slash", "queries"), [(1, 1, 64), (256, 200, 64), (129, 512, 7)]
)
def test_vertical_slash_is_the_rule_in_plain_loops(length, vertical, slash, queries):
    query, key = drawn(length, 1)
    params = {"vertical": vertical, "slash": slash, "queries": queries}
    mask = sparse.build("vertical_slash", **params).search(query, key, SCALING)
    assert mask.tolist() == by_hand.vertical_slash(query, key, SCALING, **params)


@pytest.mark.parametrize(
    ("length", "gamma", "tau", "least"),
    [(384, 0.6, 0.12, 128), (620, 0.9, 0.13, 512), (512, 0.5, 0.2, 200)],
)
def test_flexprefill_is_the_rule_in_plain_loops(length, gamma, tau, least):
    query, key = drawn(length, 2)
    params = {"gamma": gamma, "tau": tau, "min_budget": least}
    mask = sparse.build("flexprefill", **params).search(query, key, SCALING)
    wanted, kinds = by_hand.flexprefill(query, key, SCALING, **params)
    assert mask.tolist() == wanted
    assert set(kinds) == {True, False}  # heads of both kinds were compared


@pytest.mark.parametrize(("length", "least"), [(256, 1), (400, 512), (513, 640)])
def test_flexprefill_is_dense_where_the_least_budget_covers_the_prompt(length, least):
    query, key = drawn(length, 2)
    mask = sparse.build("flexprefill", min_budget=least).search(query, key, SCALING)
    assert mask.equal(blocks.causal(4, length, query.device))
    assert mask.tolist() == by_hand.flexprefill(query, key, SCALING, 0.9, 0.1, least)[0]


@pytest.mark.parametrize("length", [300, 421])
@pytest.mark.parametrize(("stride", "threshold"), [(8, 0.9), (16, 0.6), (4, 0.4)])
def test_xattention_is_the_rule_in_plain_loops(length, stride, threshold, monkeypatch):
    query, key = drawn(length, 3)
    params = {"stride": stride, "threshold": threshold}
    wanted = by_hand.xattention(query, key, SCALING, **params)
    pattern = sparse.build("xattention", **params)
    assert pattern.search(query, key, SCALING).tolist() == wanted
    monkeypatch.setattr("harness.sparse.xattention.PART_BYTES", 1)  # a block of queries at a time
    assert pattern.search(query, key, SCALING).tolist() == wanted


@pytest.mark.parametrize("name", [name for name in sparse.names() if name != "dense"])
@pytest.mark.parametrize("length", [1, 5, 127, 128, 129, 300])
def test_short_prompts_have_a_mask_of_every_row(name, length):
    query, key = drawn(max(length, 9), 4)
    query, key = query[:, :length], key[:, :length]
    mask = blocks.finished(sparse.build(name).search(query, key, SCALING), length, 128)
    n = blocks.count(length)
    assert mask.shape == (4, n, n)
    assert mask.equal(mask.tril())
    if length <= 129:  # the last 128 queries are in every block but, at most, the first
        assert mask[:, -1].all()
        assert mask.diagonal(dim1=1, dim2=2).all()


@pytest.mark.parametrize(("length", "last"), [(1, 0), (128, 1), (129, 1), (1000, 128), (1000, 300)])
def test_blocks_of_the_last_queries_are_dense(length, last):
    n = blocks.count(length)
    mask = blocks.finished(torch.zeros(2, n, n, dtype=torch.bool), length, last)
    for i in range(n):
        dense = any(token >= length - last for token in range(128 * i, min(128 * i + 128, length)))
        wanted = [j <= i and (dense or j == i) for j in range(n)]
        assert mask[0, i].tolist() == mask[1, i].tolist() == wanted


def test_the_share_counts_causal_pairs_of_blocks():
    mask = blocks.causal(3, 1000, torch.device("cpu"))
    assert float(blocks.share(mask)) == 1
    diagonal = torch.eye(8, dtype=torch.bool).repeat(3, 1, 1)
    assert float(blocks.share(diagonal)) == pytest.approx(8 / 36)


@pytest.mark.parametrize("last", [100, 300])
def test_each_pattern_keeps_as_many_last_queries_dense_as_it_says(last):
    pattern = sparse.build("a_shape", sinks=0, window=1, last=last)
    query = torch.randn(2, 1000, 8, generator=torch.Generator().manual_seed(1))
    mask = pattern.blocks(query, query, 0.3)
    for i, row in enumerate(mask[0]):
        assert bool(row[: i + 1].all()) == (i < 1 or 128 * (i + 1) > 1000 - last)


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("sparse", {}, "unknown prefill 'sparse'; choose one of dense, a_shape"),
        ("dense", {"gamma": 0.9}, "dense has no parameter 'gamma'; it takes none"),
        ("flexprefill", {"stride": 8}, "it takes last, gamma, tau, min_budget"),
        ("flexprefill", {"gamma": 2}, "gamma=2 is not allowed"),
        ("xattention", {"stride": 7}, "stride=7 is not allowed; give 4, 8, 16 or 32"),
        ("a_shape", {"window": 0}, "window=0 is not allowed"),
        ("vertical_slash", {"slash": 1.5}, "slash=1.5 is not allowed"),
    ],
)
def test_wrong_patterns_are_refused_in_a_sentence(name, params, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        sparse.build(name, **params)
