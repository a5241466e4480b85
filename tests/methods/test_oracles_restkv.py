"""ReST-KV against slow float64 arithmetic, written from the paper's formulas."""

import math

import pytest
import torch

import methods
from methods.smoothing import adaptive_windows, drift
from tests.methods.by_hand import (
    attention_rows,
    by_kv_head,
    change,
    ema,
    expect_past,
    mean,
    neighbours,
)
from tests.methods.views import random_view


@pytest.mark.parametrize(("window", "budget", "protected"), [(6, 12, 6), (5, 5, 2), (7, 31, 7)])
@pytest.mark.parametrize("temporal", ["ema", "mean", "last", "ema_reversed"])
def test_restkv_as_published(window, budget, protected, temporal):
    view = random_view(31, kv_heads=2, group=3, seed=5, sharpness=2.0)
    smooth = {
        "ema": lambda rows: ema(rows, 0.3),
        "ema_reversed": lambda rows: ema(rows[::-1], 0.3),
        "mean": lambda rows: [mean(column) for column in zip(*rows, strict=True)],
        "last": lambda rows: rows[-1],
    }[temporal]
    rows = attention_rows(view, window)
    scores = [change(view, h, smooth(rows[h]), 31 - window) for h in range(6)]
    per_kv = by_kv_head(view, scores, mean)
    past = 31 - protected
    pooled = [[mean(neighbours(s[:past], j, 2)) for j in range(past)] for s in per_kv]
    policy = methods.build("restkv", window=window, temporal=temporal)
    expect_past(policy, view, budget, pooled, protected)


@pytest.mark.parametrize(("spatial", "kernel"), [("none", 5), ("avg", 7), ("max", 3)])
def test_restkv_metric_before_smoothing_and_fixed_pools(spatial, kernel):
    view = random_view(23, kv_heads=1, group=4, seed=6, sharpness=2.0)
    rows = attention_rows(view, 6)
    scores = [ema([change(view, h, a, 23, tau=2.0) for a in rows[h]], 0.3) for h in range(4)]
    past = by_kv_head(view, scores, max)[0][:17]
    if spatial != "none":
        reduce = max if spatial == "max" else mean
        half = kernel // 2
        past = [reduce(neighbours(past, j, half, kind=spatial)) for j in range(17)]
    params = {"spatial": spatial, "kernel": kernel, "metric": "before", "group": "max", "tau": 2.0}
    policy = methods.build("restkv", window=6, **params)
    expect_past(policy, view, 13, [past], 6)


def drift_of(rows, count):
    def place(row):
        best = sorted(range(len(row)), key=lambda j: -row[j])[:count]
        return mean(best)

    half = len(rows) // 2
    return mean(map(place, rows[:half])) - mean(map(place, rows[half:]))


@pytest.mark.parametrize("params", [{"scale": 1.3}, {"relative_scale": 0.03}, {"scale": 0.7}])
@pytest.mark.parametrize(("window", "budget", "protected"), [(8, 14, 8), (7, 6, 3)])
def test_restkv_adaptive_window(params, window, budget, protected):
    view = random_view(37, kv_heads=2, group=2, seed=11, sharpness=1.5)
    policy = methods.build("restkv", window=window, kernel=3, **params)
    scale = params.get("scale", 0.03 * 37)
    rows = attention_rows(view, window)
    scores = [change(view, h, ema(rows[h], 0.3), 37 - window) for h in range(4)]
    moved = [mean(drift_of(rows[2 * k + g], budget - protected) for g in (0, 1)) for k in (0, 1)]
    pooled, active = [], 0
    for moved_by, row in zip(moved, by_kv_head(view, scores, mean), strict=True):
        steps = int(abs(moved_by) / scale)
        width, shift = max(3, 2 * steps + 1), int(math.copysign(steps, moved_by))
        active += (width, shift) != (3, 0)
        past = row[: 37 - protected]
        pooled.append([mean(neighbours(past, j, width // 2, shift)) for j in range(len(past))])
    expect_past(policy, view, budget, pooled, protected)
    assert policy.select_many(view, [budget])[0].adaptive == active / 2


def test_restkv_published_scale_is_inert_on_short_prompts():
    view = random_view(150, sharpness=3.0)
    published = methods.build("restkv", window=8)
    assert [s.adaptive for s in published.select_many(view, [1, 15, 75])] == [0.0, 0.0, 0.0]
    # At the bound itself the drift is computed, and cannot reach a step.
    at_bound = methods.build("restkv", window=8, scale=150 - (15 - 8))
    assert torch.allclose(at_bound.score(view, 15), published.score(view, 15), rtol=1e-5)
    assert at_bound.select_many(view, [15])[0].adaptive == 0.0
    assert methods.build("restkv", spatial="avg").select_many(view, [15])[0].adaptive is None


def drifting_view():
    """The older half of 8 queries looks at the first of 40 tokens, the newer half at the last."""
    position = torch.arange(40.0)
    keys = torch.stack([-position, position - 40], dim=-1)[None, None]
    queries = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4)[None, None]
    return methods.LayerView(keys, random_view(40, kv_heads=1, dim=2).values, queries, 1.0)


def test_restkv_drift_can_come_close_to_its_bound():
    def adaptive(scale):
        policy = methods.build("restkv", window=8, project=False, scale=scale)
        return policy.select_many(drifting_view(), [12])[0].adaptive

    # Mean positions of the top 4: 1.5 in the front, 34.5 to 37.5 in the rear; the bound is 36.
    assert (adaptive(34), adaptive(35), adaptive(37)) == (1.0, 0.0, 0.0)


def test_restkv_mixes_inert_and_active_budgets():
    policy = methods.build("restkv", window=8, project=False, scale=30)
    together = policy.select_many(drifting_view(), [12, 39, 3])
    assert [selection.adaptive for selection in together] == [1.0, 0.0, 1.0]
    for budget, selection in zip([12, 39, 3], together, strict=True):
        assert torch.equal(selection.positions, policy.keep(drifting_view(), budget))


def test_restkv_drift_breaks_ties_towards_the_lower_position():
    # Equal logits: a row sees its first keys alike and the later ones not at all.
    drawn = random_view(12, kv_heads=1, group=1, dim=2)
    keys = torch.zeros_like(drawn.keys)
    view = methods.LayerView(keys, drawn.values, drawn.queries, 1.0)
    rows = view.attention(12)
    for counts in ([3], [8], [3, 8, 12]):
        assert drift(rows, counts).flatten().tolist() == [0.0] * len(counts)


def test_adaptive_windows_and_the_steps_of_the_released_code():
    moved = torch.tensor([25.0, 9.0, 0.0, -9.0, -10.0, -25.0])[None, None].double()
    kernels, shifts = adaptive_windows(moved, 10, 3)
    assert kernels.flatten().tolist() == [5, 3, 3, 3, 3, 5]
    assert shifts.flatten().tolist() == [2, 0, 0, 0, -1, -2]
    kernels, shifts = adaptive_windows(moved, 10, 3, official=True)
    assert kernels.flatten().tolist() == [5, 3, 3, 3, 3, 5]
    assert shifts.flatten().tolist() == [2, 0, 1, 0, 0, -2]
    batch = torch.cat([moved, -moved], dim=1)
    assert torch.equal(adaptive_windows(batch, 10, 3, official=True)[1][:, 1], shifts[:, 0])
    assert not torch.equal(adaptive_windows(batch, 10, 3)[1][:, 1], shifts[:, 0])


def test_restkv_joint_group_is_the_exact_change_of_the_layer():
    view = random_view(19, kv_heads=2, group=3, dim=4, seed=2, hidden=5)
    rows = attention_rows(view, 5)
    wanted = []
    for kv in range(2):
        values = view.values[0, kv].double()
        heads = range(3 * kv, 3 * kv + 3)
        mixed = {h: ema(rows[h], 0.3) for h in heads}
        o = {h: sum(mixed[h][j] * values[j] for j in range(14)) for h in heads}
        part = {h: view.output_weight[:, 4 * h : 4 * h + 4].double() for h in heads}
        wanted.append(
            [
                float(
                    sum(
                        mixed[h][j] / (1 - mixed[h][j]) * (part[h] @ (o[h] - values[j]))
                        for h in heads
                    ).norm()
                )
                for j in range(14)
            ]
        )
    policy = methods.build("restkv", window=5, group="joint", spatial="none")
    expect_past(policy, view, 9, wanted, 5)


def test_restkv_scores_a_lone_attended_key_by_its_value():
    drawn = random_view(20, kv_heads=1, group=1)
    keys, queries = torch.zeros_like(drawn.keys), torch.ones_like(drawn.queries)
    keys[:, :, 6] = 100.0
    view = methods.LayerView(keys, drawn.values, queries, 1.0, drawn.output_weight)
    for group in ("mean", "joint"):
        policy = methods.build("restkv", window=4, spatial="none", group=group)
        value = drawn.output_weight @ drawn.values[0, 0, 6]
        assert float(policy.score(view, 8)[0, 0, 6]) == pytest.approx(float(value.norm()), rel=1e-3)
