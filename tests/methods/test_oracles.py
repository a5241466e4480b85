"""Scores against slow float64 arithmetic, written from the papers' formulas token by token."""

import dataclasses
import math
from fractions import Fraction

import pytest
import torch

import methods
from methods import criticalkv
from tests.methods.by_hand import (
    attention_rows,
    by_kv_head,
    expect_past,
    mean,
    neighbours,
)
from tests.methods.test_budgets import by_hand as shares_by_hand
from tests.methods.views import random_view


@pytest.mark.parametrize(("group", "reduce"), [("mean", mean), ("max", max), ("sum", sum)])
@pytest.mark.parametrize(("pool", "kernel"), [("avg", 5), ("max", 7)])
@pytest.mark.parametrize(("budget", "protected"), [(15, 7), (4, 2)])
def test_snapkv(group, reduce, pool, kernel, budget, protected):
    view = random_view(29, kv_heads=2, group=3, seed=4, sharpness=2.0)
    rows = attention_rows(view, 7)
    sums = [[sum(column) for column in zip(*table, strict=True)] for table in rows]
    past, how = 29 - protected, max if pool == "max" else mean
    pooled = [
        [how(neighbours(row[:past], j, kernel // 2, kind=pool)) for j in range(past)]
        for row in by_kv_head(view, sums, reduce)
    ]
    policy = methods.build("snapkv", window=7, group=group, pool=pool, kernel=kernel)
    expect_past(policy, view, budget, pooled, protected)


def projected_l1(view, head):
    """|| W_O,h v_j ||_1 of each token, entry by entry."""
    group = view.queries.shape[1] // view.kv_heads
    values = view.values[0, head // group].double().tolist()
    dim = len(values[0])
    weight = view.output_weight[:, head * dim : (head + 1) * dim].double().tolist()
    return [
        sum(abs(sum(w * x for w, x in zip(row, value, strict=True))) for row in weight)
        for value in values
    ]


def expect_two_stages(policy, view, budget, base, norms, protected, ahead):
    """The first `ahead` candidates by base [Hkv][past], above the rest by (base + 1e-4) * norms."""
    score, kept = policy.score(view, budget)[0].tolist(), policy.keep(view, budget)[0].tolist()
    for head, a in enumerate(base):
        free = [j for j in range(view.length) if j not in protected]
        first = sorted(free, key=lambda j: (-a[j], j))[:ahead]
        second = {j: (a[j] + 1e-4) * norms[head][j] for j in free if j not in first}
        assert all(score[head][j] == math.inf for j in protected)
        assert {j: score[head][j] for j in second} == pytest.approx(second, rel=5e-5)
        assert all(max(second.values()) < score[head][j] < math.inf for j in first)
        best = sorted(second, key=lambda j: (-second[j], j))
        wanted = [*first, *best[: budget - len(protected) - ahead], *protected]
        assert kept[head] == sorted(wanted)


@pytest.mark.parametrize(("group", "reduce"), [("mean", mean), ("max", max), ("sum", sum)])
@pytest.mark.parametrize(("pool", "kernel"), [("avg", 5), ("max", 7)])
@pytest.mark.parametrize(
    ("budget", "protected", "first_stage", "ahead"),
    [(18, 7, 0.5, 5), (13, 7, 0, 0), (27, 7, 0.29, 5), (5, 2, 0.5, 1), (8, 7, 0.5, 0)],
)
def test_criticalkv(
    group, reduce, pool, kernel, budget, protected, first_stage, ahead, monkeypatch
):
    monkeypatch.setattr("methods.criticalkv._CACHED", 6 * 11 * 4)  # four tokens at a time
    view = random_view(29, kv_heads=2, group=3, dim=5, seed=12, hidden=11, sharpness=2.0)
    view.values[:, :, 28] = 0.0
    means = [
        [mean(column) for column in zip(*table, strict=True)] for table in attention_rows(view, 7)
    ]
    past, how = 29 - protected, max if pool == "max" else mean
    base = [
        [how(neighbours(row[:past], j, kernel // 2, kind=pool)) for j in range(past)]
        for row in by_kv_head(view, means, reduce)
    ]
    norms = by_kv_head(view, [projected_l1(view, head) for head in range(6)], reduce)
    params = {"pool": pool, "kernel": kernel, "group": group, "first_stage": first_stage}
    policy = methods.build("criticalkv", window=7, **params)
    expect_two_stages(policy, view, budget, base, norms, range(past, 29), ahead)


def test_criticalkv_stages_share_what_protected_text_leaves():
    drawn = random_view(25, kv_heads=1, group=2, seed=14, sharpness=2.0)
    text = [0, 2, 3, 9, 21]
    modality = torch.tensor([[int(position not in text) for position in range(25)]])
    view = dataclasses.replace(drawn, modality=modality)
    means = [
        [mean(column) for column in zip(*table, strict=True)] for table in attention_rows(view, 6)
    ]
    base = by_kv_head(view, means, mean)
    norms = by_kv_head(view, [projected_l1(view, head) for head in range(2)], mean)
    policy = methods.build("criticalkv", window=6, kernel=1, protect="text")
    protected = sorted({*text, *range(19, 25)})
    expect_two_stages(policy, view, 17, base, norms, protected, 3)
    assert policy.select_many(view, [8])[0].fallback == "all_text"


@pytest.mark.parametrize("budget", [18, 23])
@pytest.mark.parametrize(
    ("name", "rows", "average"),
    [("h2o", 29, "sum"), ("h2o", 29, "visible_mean"), ("tova", 1, None)],
)
def test_criticalkv_after_another_first_stage(name, rows, average, budget):
    """Its score as a mean of rows, then the projected values."""
    view = random_view(29, kv_heads=2, group=2, dim=5, seed=16, hidden=11, sharpness=2.0)
    tables = attention_rows(view, rows)
    a = [[sum(column) / rows for column in zip(*table, strict=True)] for table in tables]
    if average == "visible_mean":
        a = [[x * 29 / (29 - j) for j, x in enumerate(row)] for row in a]
    base = by_kv_head(view, a, mean)
    if name == "tova":
        base = [[mean(column) for column in zip(*a, strict=True)]] * 2
    norms = by_kv_head(view, [projected_l1(view, head) for head in range(4)], mean)
    params, protected = {"protect_last": True}, [28]
    if name == "h2o":
        params, protected = {"recent": 6, "average": average}, range(23, 29)
    policy = methods.build(f"criticalkv_{name}", **params)
    ahead = (budget - len(protected)) // 2
    expect_two_stages(policy, view, budget, base, norms, protected, ahead)


@pytest.mark.parametrize("first_stage", [0, 0.5, 1])
@pytest.mark.parametrize("protect", ["none", "boundary"])
def test_criticalkv_shares_by_the_first_stage_and_has_both_within_each_head(first_stage, protect):
    view = random_view(43, kv_heads=3, group=2, dim=5, seed=18, hidden=11, sharpness=4.0)
    means = [
        [mean(column) for column in zip(*table, strict=True)] for table in attention_rows(view, 7)
    ]
    base = by_kv_head(view, means, mean)
    norms = by_kv_head(view, [projected_l1(view, head) for head in range(6)], mean)
    policy = methods.build(
        "criticalkv", window=7, kernel=1, budget="adaptive", first_stage=first_stage,
        protect=protect,
    )  # fmt: skip
    first = 2 if protect == "boundary" else 0  # a tenth of 20
    places = range(first, 36)
    candidates = [sorted((row[j] for j in places), reverse=True) for row in base]
    shares = shares_by_hand(candidates, 20 - first - 7, 0.2, normalize=True)
    assert len(set(shares)) > 1
    selection = policy.select_many(view, [20])[0]
    assert selection.counts.tolist() == [[share + first + 7 for share in shares]]
    for head, share in enumerate(shares):
        ahead = math.floor(Fraction(first_stage) * share)
        ranked = sorted(places, key=lambda j: (-base[head][j], j))
        rest = sorted(ranked[ahead:], key=lambda j: (-(base[head][j] + 1e-4) * norms[head][j], j))
        wanted = {*range(first), *ranked[:ahead], *rest[: share - ahead], *range(36, 43)}
        kept = {place for place in selection.positions[0, head].tolist() if place >= 0}
        assert kept == wanted


def test_criticalkv_first_stage_breaks_ties_low_and_outranks_any_norm():
    drawn = random_view(71, kv_heads=1, group=1, seed=15)
    drawn.values[:, :, 60:63] *= 1e12
    still = torch.zeros_like(drawn.queries)
    view = methods.LayerView(drawn.keys, drawn.values, still, 1.0, drawn.output_weight)
    policy = methods.build("criticalkv", window=8, kernel=1, first_stage=0.58)
    score = policy.score(view, 58)[0, 0, :63]
    ranked = score.sort(descending=True).indices.tolist()
    # 0.58 of the 50 outside the window is 29, and less in binary.
    assert (set(ranked[:29]), set(ranked[29:32])) == (set(range(29)), {60, 61, 62})
    assert float(score[:29].min()) > float(score[29:].max())


def test_criticalkv_projects_the_values_once_for_all_variants_and_budgets(monkeypatch):
    calls, project = [], criticalkv._projected_l1
    monkeypatch.setattr(criticalkv, "_projected_l1", lambda *a: calls.append(a) or project(*a))
    view = random_view()
    for group in ("mean", "max"):
        methods.build("criticalkv", window=8, group=group).select_many(view, [12, 20])
    assert len(calls) == 1


@pytest.mark.parametrize("average", ["sum", "visible_mean"])
@pytest.mark.parametrize(("causal", "recent"), [(True, None), (True, 6), (False, 6)])
@pytest.mark.parametrize(("group", "reduce"), [("mean", mean), ("max", max)])
@pytest.mark.parametrize(("budget", "protected"), [(13, 6), (5, 2)])
def test_h2o(average, causal, recent, group, reduce, budget, protected):
    view = random_view(27, kv_heads=2, group=2, seed=9, sharpness=2.0)

    def visible(row, column):
        return column <= row or (not causal and row < 27 - 6)

    rows = attention_rows(view, 27, visible)
    sums = []
    for table in rows:
        totals = [sum(column) for column in zip(*table, strict=True)]
        if average == "visible_mean":
            seen = [sum(visible(i, j) for i in range(27)) for j in range(27)]
            totals = [total / count for total, count in zip(totals, seen, strict=True)]
        sums.append(totals)
    params = {"average": average, "causal": causal, "recent": recent, "group": group}
    policy = methods.build("h2o", **params)
    expect_past(policy, view, budget, by_kv_head(view, sums, reduce), protected)


def test_h2o_with_more_recent_tokens_than_the_prompt_has():
    view = random_view(9, kv_heads=1, group=2, seed=3)
    params = {"recent": 20, "average": "visible_mean"}
    causal = methods.build("h2o", **params)
    blind = methods.build("h2o", causal=False, **params)
    torch.testing.assert_close(blind.score(view, 6), causal.score(view, 6))


def test_tova():
    view = random_view(21, kv_heads=2, group=3, sharpness=2.0)
    last = [table[0] for table in attention_rows(view, 1)]
    wanted = [mean(column) for column in zip(*last, strict=True)]
    expect_past(methods.build("tova"), view, 5, [wanted, wanted], 0)
    expect_past(methods.build("tova", protect_last=True), view, 5, [wanted, wanted], 1)


def test_keydiff():
    view = random_view(23, kv_heads=3, group=2, dim=7, seed=8)
    view.keys[0, 1, 5] = 0.0  # no direction: as far from the anchor as a key at right angles
    wanted = []
    for keys in view.keys[0].double():
        lengths = [math.sqrt(sum(x * x for x in key)) for key in keys.tolist()]
        units = [
            [x / length if length else 0.0 for x in key]
            for key, length in zip(keys.tolist(), lengths, strict=True)
        ]
        anchor = [mean(column) for column in zip(*units, strict=True)]
        size = math.sqrt(sum(x * x for x in anchor))
        cosines = [sum(x * y for x, y in zip(unit, anchor, strict=True)) / size for unit in units]
        wanted.append([1 - cosine for cosine in cosines])
    assert wanted[1][5] == 1.0
    expect_past(methods.build("keydiff"), view, 9, wanted, 0)


def test_knorm():
    view = random_view(23, kv_heads=3, group=2, dim=7, seed=8)
    wanted = [
        [-math.sqrt(sum(x * x for x in key)) for key in keys]
        for keys in view.keys[0].double().tolist()
    ]
    expect_past(methods.build("knorm"), view, 9, wanted, 0)


def test_keydiff_scores_are_never_negative_or_undefined():
    drawn = random_view(33, kv_heads=2, dim=5, seed=3)
    for keys in (drawn.keys[:, :, :1].expand_as(drawn.keys), torch.zeros_like(drawn.keys)):
        view = methods.LayerView(keys, drawn.values, drawn.queries, 1.0)
        score = methods.build("keydiff").score(view, 9)
        assert bool(((score >= 0) & (score <= 2)).all())
        heads = methods.build("keydiff", budget="adaptive").select_many(view, [9])[0].counts
        assert heads.tolist() == [[9, 9]]


@pytest.mark.parametrize("name", ["snapkv", "h2o", "tova"])
def test_the_mask_of_the_model_is_used(name):
    # An image block (5..12) whose tokens see each other both ways.
    def visible(row, column):
        return column <= row or (5 <= row <= 12 and 5 <= column <= 12)

    mask = torch.tensor([[[[visible(i, j) for j in range(16)] for i in range(16)]]])
    view = random_view(16, kv_heads=1, group=2, mask=mask)
    rows = attention_rows(view, {"snapkv": 6, "h2o": 16, "tova": 1}[name], visible)
    sums = [[sum(column) for column in zip(*table, strict=True)] for table in rows]
    wanted = [mean(column) for column in zip(*sums, strict=True)]
    params = {"snapkv": {"window": 6, "kernel": 1}, "h2o": {"recent": 0}, "tova": {}}[name]
    expect_past(methods.build(name, **params), view, 9, [wanted], 6 if name == "snapkv" else 0)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("pool", "kernel"), [("avg", 1), ("max", 3)])
@pytest.mark.parametrize(("budget", "protected"), [(15, 7), (4, 2), (20, 7)])
def test_chunkkv(shared, pool, kernel, budget, protected):
    view = random_view(29, kv_heads=2, group=3, seed=5, sharpness=2.0)
    sums = [
        [sum(column) for column in zip(*table, strict=True)] for table in attention_rows(view, 7)
    ]
    past, how = 29 - protected, max if pool == "max" else mean
    rows = [
        [how(neighbours(row[:past], j, kernel // 2, kind=pool)) for j in range(past)]
        for row in by_kv_head(view, sums, mean)
    ]
    if shared:
        rows = [[mean(column) for column in zip(*rows, strict=True)]] * 2
    chunks = [[mean(row[j // 4 * 4 : j // 4 * 4 + 4]) for j in range(past)] for row in rows]
    params = {"window": 7, "chunk": 4, "pool": pool, "kernel": kernel, "shared": shared}
    policy = methods.build("chunkkv", **params)
    expect_past(policy, view, budget, chunks, protected)
    if shared:
        kept = policy.keep(view, budget)
        assert torch.equal(kept[:, 0], kept[:, 1])
        inside = [p for p in kept[0, 0].tolist() if p < past]
        sizes = {c: sum(p // 4 == c for p in inside) for c in range(6)}
        cut = [c for c, size in sizes.items() if 0 < size < min(4, past - 4 * c)]
        assert len(cut) <= 1  # the chunk that the budget cuts, of which the first tokens stay
        assert all(4 * c + k in inside for c in cut for k in range(sizes[c]))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("group", "reduce"), [("sum", sum), ("max", max), ("mean", mean)])
@pytest.mark.parametrize("images", [(3, 17), (2, 24), None])
def test_post_vision(shared, group, reduce, images):
    view = random_view(25, kv_heads=2, group=3, seed=6, sharpness=2.0)
    if images:
        modality = torch.zeros(1, 25, dtype=torch.long)
        modality[0, images[0] : images[1]] = 1
        modality[0, images[0] + 2] = 0  # text between images is before the last one
        view = dataclasses.replace(view, modality=modality)
    rows = attention_rows(view, 25 - images[1] if images else 25)
    sums = [[sum(column) for column in zip(*table, strict=True)] for table in rows]
    wanted = by_kv_head(view, sums, reduce)
    if shared:
        wanted = [[sum(column) for column in zip(*wanted, strict=True)]] * 2
    policy = methods.build("post_vision", group=group, shared=shared, recent=0.29)
    expect_past(policy, view, 14, wanted, 4)
    expect_past(policy, view, 3, wanted, 0)


def test_post_vision_needs_text_behind_the_images_of_one_prompt():
    view = random_view(9, batch=2)
    policy = methods.build("post_vision")
    last = torch.tensor([[0] * 8 + [1]] * 2)
    with pytest.raises(ValueError, match="protocol=replay"):
        policy.keep(dataclasses.replace(view, modality=last), 4)
    apart = torch.tensor([[0] * 6 + [1, 0, 0], [1] + [0] * 8])
    with pytest.raises(ValueError, match="one prompt at a time"):
        policy.keep(dataclasses.replace(view, modality=apart), 4)
