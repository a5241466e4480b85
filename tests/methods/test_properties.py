"""Every method through every property that all of them must have."""

import dataclasses
from itertools import chain

import pytest
import torch

import methods
from tests.methods import matrix
from tests.methods.matrix import build, every_row, heads
from tests.methods.views import random_view

LENGTHS = (1, 2, 9, 41)


def budgets(length: int) -> list[int]:
    return sorted({1, 2, 5, 7, 8, 9, 17, length // 2 + 1, max(1, length - 1), length})


@every_row
@pytest.mark.parametrize("group", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 7))])
@pytest.mark.parametrize("length", LENGTHS)
def test_keeps_exactly_the_budget_once_each_and_in_order(row, group, length):
    """Heads of a layer and layers of a model may differ; what they keep together does not."""
    views = [
        random_view(length, kv_heads=2, group=group, batch=2, layer=layer, num_layers=3)
        for layer in range(3)
    ]
    policy = build(row)
    for budget in budgets(length):
        total = 0
        for view in views:
            selection = policy.select_many(view, [budget])[0]
            assert selection.positions.dtype == torch.int64
            kept = heads(selection)
            for head in chain(*kept):
                assert head == sorted(set(head))
                assert not head or (head[0] >= 0 and head[-1] < length)
            if selection.counts is None:
                assert int(selection.positions.min()) >= 0
            else:
                assert selection.counts.tolist() == [[len(h) for h in item] for item in kept]
            sizes = [sum(len(head) for head in item) for item in kept]
            assert sizes[0] == sizes[1]
            total += sizes[0]
            if row[1] == "uniform":
                assert {len(head) for head in chain(*kept)} == {min(budget, length)}
        assert total == 3 * 2 * min(budget, length)


@every_row
@pytest.mark.parametrize("length", LENGTHS)
def test_keeps_the_top_of_its_score_ties_to_the_lower_position(row, length):
    policy, view = build(row), random_view(length, kv_heads=2, group=2)
    for budget in budgets(length):
        score = policy.score(view, budget)
        assert score.shape == (1, 2, length)
        assert score.dtype == torch.float32
        assert not score.isnan().any()
        kept = heads(policy.select_many(view, [budget])[0])[0]
        for own, ranks in zip(kept, score[0].tolist(), strict=True):
            order = sorted(range(length), key=lambda position: (-ranks[position], position))
            assert own == sorted(order[: len(own)])


@every_row
def test_many_budgets_equal_one_by_one(row):
    policy = build(row)
    wanted = [17, 3, 41, 8, 9, 1, 17]
    together = policy.select_many(random_view(), wanted)
    assert all(map(torch.equal, policy.keep_many(random_view(), wanted), _positions(together)))
    for budget, selection in zip(wanted, together, strict=True):
        alone = policy.select_many(random_view(), [budget])[0]
        assert torch.equal(alone.positions, selection.positions)
        assert (alone.window, alone.adaptive) == (selection.window, selection.adaptive)
        assert alone.fallback == selection.fallback
    assert policy.select_many(random_view(), []) == []


def _positions(selections):
    return [selection.positions for selection in selections]


@every_row
def test_the_reported_window_is_kept_and_infinite(row):
    policy, view = build(row), random_view()
    for budget in budgets(41):
        selection = policy.select_many(view, [budget])[0]
        window = selection.window
        for head in heads(selection)[0]:
            assert window <= len(head)
            assert head[len(head) - window :] == list(range(41 - window, 41))
        assert bool(policy.score(view, budget)[..., 41 - window :].isposinf().all())


@pytest.mark.parametrize("name", ["snapkv", "restkv"])
def test_window_rule(name):
    policy, view = methods.build(name, window=8), random_view()
    windows = [s.window for s in policy.select_many(view, [1, 2, 7, 8, 9, 41])]
    assert windows == [0, 1, 3, 4, 8, 8]


def test_window_rule_of_the_others():
    def windows(name, budget, **params):
        return methods.build(name, **params).select_many(random_view(), [budget])[0].window

    assert [windows("h2o", n) for n in (1, 2, 9, 20)] == [0, 1, 4, 10]
    assert [windows("h2o", n, recent=6) for n in (1, 6, 7)] == [0, 3, 6]
    assert [windows("tova", n, protect_last=True) for n in (1, 2, 9)] == [0, 1, 1]
    assert [windows("streaming_llm", n) for n in (1, 4, 5, 9)] == [1, 2, 1, 5]
    assert windows("random", 9) == 0


@every_row
def test_repeated_calls_agree_and_leave_the_global_generator_alone(row):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = build(row).keep(random_view(), 11)
    again = build(row).keep(random_view(), 11)
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())


@every_row
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_scored_in_float32(row, dtype):
    half = random_view(97, dtype=dtype)
    names = ("keys", "values", "queries", "output_weight")
    full = dataclasses.replace(half, **{name: getattr(half, name).float() for name in names})
    policy = build(row)
    assert torch.allclose(policy.score(half, 30), policy.score(full, 30), rtol=1e-5)
    exact = random_view(97)
    if row[0] != "random":  # its draw depends on every bit of the keys
        kept = [heads(policy.select_many(view, [30])[0])[0] for view in (half, exact)]
        assert _overlap(*kept) >= 0.9


def _overlap(kept, others):
    shared = sum(len(set(a) & set(b)) for a, b in zip(kept, others, strict=True))
    return shared / sum(map(len, others))


@every_row
def test_equal_attention_is_no_trouble(row):
    drawn = random_view()
    flat = {"values": torch.ones_like(drawn.values), "queries": torch.zeros_like(drawn.queries)}
    still = dataclasses.replace(drawn, **flat, scaling=1.0)
    for budget in budgets(41):
        score = build(row).score(still, budget)
        assert not score.isnan().any()
        kept = heads(build(row).select_many(still, [budget])[0])[0]
        if row[1] == "adaptive" and build(row).name in ("snapkv", "h2o", "tova"):
            assert {len(head) for head in kept} == {budget}  # equal heads share equally


def test_ties_go_to_the_lower_position():
    drawn = random_view()
    flat = torch.zeros_like(drawn.queries)
    same = torch.ones_like(drawn.values)
    view = methods.LayerView(drawn.keys, same, flat, 1.0, drawn.output_weight)
    assert methods.build("tova").keep(view, 5)[0, 0].tolist() == [0, 1, 2, 3, 4]
    kept = methods.build("restkv", window=8, spatial="none").keep(view, 12)[0, 0].tolist()
    assert kept == [0, 1, 2, 3, *range(33, 41)]
    pooled = methods.build("snapkv", window=8).keep(view, 12)[0, 0].tolist()
    assert pooled == [2, 3, 4, 5, *range(33, 41)]  # zeros beyond the end weigh on 0 and 1


@every_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_dominating_key_gives_no_infinity(row, dtype):
    drawn = random_view()
    keys, queries = drawn.keys * 0.01, torch.ones_like(drawn.queries)
    keys[:, :, 6] = 200.0
    parts = {"keys": keys, "values": drawn.values, "queries": queries}
    parts |= {"output_weight": drawn.output_weight}
    cast = {name: part.to(dtype) for name, part in parts.items()}
    view = dataclasses.replace(drawn, **cast, scaling=1.0)
    policy = build(row)
    selection = policy.select_many(view, [14])[0]
    unprotected = policy.score(view, 14)[..., : 41 - selection.window]
    assert not unprotected.isnan().any()
    if policy.name in ("snapkv", "h2o", "tova", "restkv"):
        assert bool(unprotected.isfinite().all())
        assert bool((selection.positions == 6).any(-1).all())


@every_row
def test_batch_items_do_not_touch_each_other(row):
    policy = build(row)
    views = [random_view(seed=seed, sharpness=2.0) for seed in (1, 2)]
    names = ("keys", "values", "queries")
    both = {name: torch.cat([getattr(view, name) for view in views]) for name in names}
    most = torch.cat([view.recited.attention for view in views])
    recited = methods.Recited(views[0].recited.first, most)
    joined = dataclasses.replace(views[0], **both, recited=recited)
    for item, view in enumerate(views):
        alone = dataclasses.replace(view, output_weight=joined.output_weight)
        if item == 0 or row[0] != "restkv_official":  # there item 0 decides for the batch
            kept = heads(policy.select_many(joined, [15])[0])[item]
            assert heads(policy.select_many(alone, [15])[0])[0] == kept


@every_row
def test_needs_no_more_queries_than_it_says(row):
    policy, view = build(row), random_view()
    needed = policy.queries(view.suffix, view.length - view.context)
    rows = view.length if needed is None else min(needed, view.length)

    def with_queries(count):
        return dataclasses.replace(view, queries=view.queries[:, :, view.length - count :])

    assert torch.equal(policy.keep(with_queries(rows), 12), policy.keep(view, 12))
    if rows:
        with pytest.raises(ValueError, match="queries"):
            policy.keep(with_queries(rows - 1), 12)


@every_row
def test_gradients_are_not_recorded(row):
    view = random_view()
    for tensor in (view.keys, view.values, view.queries, view.output_weight):
        tensor.requires_grad_(True)
    assert not build(row).score(view, 12).requires_grad


@every_row
def test_an_explicit_causal_mask_changes_nothing(row):
    policy = build(row)
    if row[0] == "h2o_official":
        with pytest.raises(ValueError, match="causal=False"):
            policy.keep(random_view(mask=torch.ones(1, 1, 41, 41, dtype=torch.bool)), 12)
        return
    mask = torch.ones(1, 1, 41, 41, dtype=torch.bool).tril()
    ours, plain = policy.score(random_view(mask=mask), 12), policy.score(random_view(), 12)
    assert torch.allclose(ours, plain, rtol=1e-5)


def test_full_keeps_everything_at_any_budget():
    policy, view = methods.build("full"), random_view()
    for selection in policy.select_many(view, [1, 41]):
        assert torch.equal(selection.positions, torch.arange(41).expand(1, 2, 41))
        assert selection.window == 41
    assert bool(policy.score(view, 3).isposinf().all())


def test_a_budget_above_the_length_keeps_everything():
    for name in matrix.NAMES:
        assert methods.build(name).keep(random_view(), 1000).shape == (1, 2, 41)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, None])
def test_a_budget_that_is_no_count_is_refused(wrong):
    for name in matrix.NAMES:
        with pytest.raises(ValueError, match="budget"):
            methods.build(name).keep(random_view(), wrong)
