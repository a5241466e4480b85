"""What surrounds a method: which queries it watches, which tokens it spares, who keeps how many."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import methods
from methods.scoring import ScoringPolicy
from tests.methods.matrix import REFUSED
from tests.methods.views import random_view

WINDOW = ("snapkv", "restkv", "criticalkv", "chunkkv", "cake", "mixkv")
OTHERS = ("rkv", "keydiff", "knorm", "lagkv", "post_vision", "expected_attention")
SCORING = (*WINDOW, "random", "h2o", "tova", "criticalkv_h2o", "criticalkv_tova", *OTHERS)
SMALL = {name: {"window": 6} for name in WINDOW} | {
    "rkv": {"window": 6},
    "lagkv": {"sinks": 0, "lag": 4},
    "expected_attention": {"sinks": 0},
}


def build(name, **params):
    """Each layer by itself unless told otherwise."""
    return methods.build(name, **{"budget": "uniform", **params})


def with_suffix(view, suffix):
    return dataclasses.replace(view, suffix=suffix)


def first_tokens(view, count):
    parts = {n: getattr(view, n)[:, :, :count] for n in ("keys", "values", "queries")}
    return dataclasses.replace(view, **parts, suffix=0, context=None, recited=None)


def with_images(view, first, last):
    modality = torch.zeros(view.batch, view.length, dtype=torch.long)
    modality[:, first:last] = 1
    return dataclasses.replace(view, modality=modality)


@pytest.mark.parametrize("name", WINDOW)
@pytest.mark.parametrize(("window", "suffix"), [(8, 5), (7, 1), (3, 30), (32, 5)])
def test_the_question_is_watched_as_if_the_prompt_ended_with_it(name, window, suffix):
    view = with_suffix(random_view(41, group=3, sharpness=2.0), suffix)
    policy = build(name, window=window, window_anchor="question")
    ours = policy.measure(view)
    wanted = policy.measure(first_tokens(view, 41 - suffix))
    assert torch.allclose(ours[..., : 41 - suffix], wanted, rtol=1e-4, atol=1e-9)
    assert not torch.allclose(ours, build(name, window=window).measure(view))
    protected = policy.score(view, window + 2)[..., 41 - window :] if window < 32 else ours
    assert bool(protected.isposinf().all()) == (window < 32)  # the last tokens, as without anchor


@pytest.mark.parametrize("name", WINDOW)
def test_without_a_suffix_the_question_is_the_end(name):
    view = random_view(41)
    anchored = build(name, window=8, window_anchor="question")
    assert torch.equal(anchored.keep(view, 15), build(name, window=8).keep(view, 15))


@pytest.mark.parametrize("name", WINDOW)
def test_an_anchored_window_needs_the_queries_before_the_suffix(name):
    policy = build(name, window=8, window_anchor="question")
    assert (policy.queries(0), policy.queries(5)) == (8, 13)
    assert methods.build(name, window=8).queries(5) == 8
    view = with_suffix(random_view(41), 5)
    enough = dataclasses.replace(view, queries=view.queries[:, :, -13:])
    assert torch.equal(policy.keep(enough, 15), policy.keep(view, 15))
    with pytest.raises(ValueError, match="queries"):
        policy.keep(dataclasses.replace(view, queries=view.queries[:, :, -12:]), 15)


@pytest.mark.parametrize("name", SCORING)
@pytest.mark.parametrize("budget", [22, 24, 30, 40])
def test_protected_text_stays_and_images_make_up_the_budget(name, budget):
    view = with_images(random_view(41, group=2), 6, 26)  # 20 image tokens, 21 text tokens
    short = SMALL[name] if name == "lagkv" else {}
    selection = build(name, protect="text", **short).select_many(view, [budget])[0]
    text = [*range(6), *range(26, 41)]
    assert selection.fallback is None
    for head in selection.positions[0].tolist():
        assert len(head) == budget
        assert set(text) <= set(head)


@pytest.mark.parametrize("name", SCORING)
@pytest.mark.parametrize("rule", ["uniform", "pyramid"])
@pytest.mark.parametrize("budget", [1, 10, 20])
def test_more_text_than_budget_is_kept_and_said(name, rule, budget):
    view = with_images(random_view(41), 6, 26)
    policy = build(name, protect="text", budget=rule)
    selection = policy.select_many(view, [budget])[0]
    assert selection.fallback == "all_text"
    assert selection.positions[0].tolist() == [[*range(6), *range(26, 41)]] * 2


@pytest.mark.parametrize("name", [name for name in SCORING if name != "post_vision"])
@pytest.mark.parametrize("rule", ["uniform", "pyramid"])
@pytest.mark.parametrize("budget", [1, 2, 4, 5, 6, 7, 9, 24])
def test_text_and_the_last_tokens_are_kept_together(name, rule, budget):
    """Also where the prompt ends with an image, so that the window holds no text."""
    modality = torch.ones(1, 25, dtype=torch.long)
    modality[0, [0, 2, 3, 9, 23]] = 0
    policy = build(name, protect="text", budget=rule, **SMALL.get(name, {}))
    for layer in range(4):
        view = dataclasses.replace(random_view(25, layer=layer), modality=modality)
        selection = policy.select_many(view, [budget])[0]
        must = {0, 2, 3, 9, 23, *range(25 - selection.window, 25)}
        for head in selection.positions[0].tolist():
            assert must <= set(head)
            assert (selection.fallback == "all_text") == (len(must) > budget)
            assert len(head) >= budget or rule == "pyramid"


def test_protected_text_outranks_nothing_else():
    """Among the images a method chooses as it does without protection."""
    view = with_images(random_view(41, group=2), 6, 26)
    scores = methods.build("snapkv", window=8, kernel=1).score(view, 30)[0]
    kept = methods.build("snapkv", window=8, kernel=1, protect="text").keep(view, 30)[0]
    for row, head in zip(scores, kept.tolist(), strict=True):
        best = sorted(range(6, 26), key=lambda j: (-float(row[j]), j))[: 30 - 21]
        assert sorted(set(head) & set(range(6, 26))) == sorted(best)


def test_protection_says_what_it_needs():
    policy = methods.build("snapkv", protect="text")
    with pytest.raises(ValueError, match=r"LayerView\.modality"):
        policy.keep(random_view(41), 20)
    with pytest.raises(ValueError, match="one prompt at a time"):
        policy.keep(with_images(random_view(41, batch=2), 3, 9), 20)


def total(policy, length, budget, layers=5, images=None, **shape):
    """Entries that all heads of all layers keep together."""
    kept = 0
    for layer in range(layers):
        view = random_view(length, layer=layer, num_layers=layers, seed=layer, **shape)
        view = with_images(view, *images) if images else view
        selection = policy.select_many(view, [budget])[0]
        found = int((selection.positions >= 0).sum())
        if selection.counts is not None:
            assert int(selection.counts.sum()) == found
        kept += found
    return kept


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(SCORING),
    st.sampled_from(["uniform", "pyramid", "adaptive"]),
    st.integers(1, 60),
    st.integers(1, 70),
    st.sampled_from([1, 2, 3]),
    st.booleans(),
)
def test_every_rule_keeps_the_same_total(name, rule, length, budget, heads, images):
    if (name, rule) in REFUSED:
        return  # refused, see test_registry
    protect = "text" if images and length > 9 else "none"
    span = (3, length - 4) if protect == "text" else None
    policy = build(name, budget=rule, protect=protect, **SMALL.get(name, {}))
    text = 7 if span else 0
    found = total(policy, length, budget, images=span, kv_heads=heads)
    if span is None:
        assert found == 5 * heads * min(budget, length)
        return
    # Text and the last tokens are kept together: more than the budget where they are more.
    assert found >= 5 * heads * min(max(budget, text), length)
    if budget > text + 16:
        assert found == 5 * heads * min(budget, length)


def test_a_pyramid_narrows_from_layer_to_layer():
    policy = methods.build("snapkv", window=4, budget="pyramid", pyramid_beta=8)
    views = [random_view(200, layer=layer, num_layers=5) for layer in range(5)]
    counts = [policy.keep(view, 20).shape[-1] for view in views]
    assert counts == [4 + 30, 4 + 23, 4 + 16, 4 + 9, 4 + 2]
    windows = [policy.select_many(view, [20])[0].window for view in views]
    assert windows == [4] * 5


def test_heads_that_know_more_keep_more():
    view = random_view(120, kv_heads=2, group=1)
    queries = view.queries.clone()
    queries[:, 1] = 0  # the second head attends to everything alike
    flat = dataclasses.replace(view, queries=queries * 60)
    policy = methods.build("snapkv", window=8, kernel=1, budget="adaptive")
    selection = policy.select_many(flat, [40])[0]
    few, many = selection.counts[0].tolist()
    assert few + many == 80
    assert few < 40 < many  # a peaked head needs fewer tokens for the same mass
    for head, count in enumerate((few, many)):
        row = selection.positions[0, head]
        assert row[count:].tolist() == [-1] * (len(row) - count)
        assert row[:count].tolist() == sorted(set(row[:count].tolist()))
        uniform = methods.build("snapkv", window=8, kernel=1).keep(flat, count)[0, head]
        assert torch.equal(row[:count], uniform)


def test_a_pyramid_plans_with_each_layers_own_count_also_beside_protected_text():
    """What depends on the kept past tokens must not read the average of all layers."""
    policy = methods.build("criticalkv", window=4, kernel=1, budget="pyramid", protect="text")
    for layer in range(8):
        view = with_images(random_view(240, layer=layer, num_layers=8), 0, 220)
        count, plan = policy._share(view, 60)
        assert plan.window == 4
        assert plan.past == count - 20  # the text holds the window


@pytest.mark.parametrize(("budget", "fallback"), [(60, "uniform"), (50, "uniform"), (40, None)])
def test_a_pyramid_without_a_slope_says_so(budget, fallback):
    policy = methods.build("snapkv", window=8, budget="pyramid")
    view = random_view(80, layer=2, num_layers=4)
    assert policy.select_many(view, [budget])[0].fallback == fallback
    assert methods.build("snapkv", window=8).select_many(view, [budget])[0].fallback is None
    assert policy.select_many(view, [80])[0].fallback is None
    alone = random_view(80, layer=0, num_layers=1)
    assert policy.select_many(alone, [budget])[0].fallback is None


def test_negative_scores_cannot_be_pooled_over_heads():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Norm(ScoringPolicy):
        name = "norm"

        def measure(self, view):
            return -view.keys.float().norm(dim=-1)

    assert Norm().keep(random_view(41), 9).shape == (1, 2, 9)
    with pytest.raises(ValueError, match="norm: budget=adaptive pools"):
        Norm(budget="adaptive").keep(random_view(41), 9)
