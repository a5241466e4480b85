"""Scores against slow float64 arithmetic, written from the papers' formulas token by token."""

import dataclasses
import math

import pytest
import torch

import methods
from methods import criticalkv
from methods.smoothing import adaptive_windows, drift
from tests.methods.views import random_view


def attention_rows(view, rows, visible=None):
    """Softmax rows [H][rows][L] of the last queries, as lists of float64."""
    keys, queries = view.keys[0].double(), view.queries[0].double()
    heads, held, length = queries.shape[0], queries.shape[1], keys.shape[1]
    group = heads // keys.shape[0]
    result = []
    for head in range(heads):
        table = []
        for row in range(length - rows, length):
            query = queries[head, held - length + row]
            seen = [visible(row, j) if visible else j <= row for j in range(length)]
            logits = [float(query @ keys[head // group, j]) * view.scaling for j in range(length)]
            top = max(x for x, s in zip(logits, seen, strict=True) if s)
            weights = [math.exp(x - top) if s else 0.0 for x, s in zip(logits, seen, strict=True)]
            table.append([weight / sum(weights) for weight in weights])
        result.append(table)
    return result


def by_kv_head(view, per_head, reduce):
    group = view.queries.shape[1] // view.kv_heads
    grouped = [per_head[k * group : (k + 1) * group] for k in range(view.kv_heads)]
    return [[reduce(column) for column in zip(*heads, strict=True)] for heads in grouped]


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def neighbours(scores, index, half, shift=0, kind="edge"):
    last = len(scores) - 1
    spots = range(index + shift - half, index + shift + half + 1)
    if kind == "edge":
        return [scores[min(max(spot, 0), last)] for spot in spots]
    inside = [scores[spot] for spot in spots if 0 <= spot <= last]
    return inside if kind == "max" else inside + [0.0] * (len(spots) - len(inside))


def ema(rows, alpha):
    state = rows[0]
    for row in rows[1:]:
        state = [alpha * new + (1 - alpha) * old for new, old in zip(row, state, strict=True)]
    return state


def change(view, head, a, first_unseen, tau=1.0):
    """a / (1 - a) * || W_O,h (o - v_j) ||^tau with the whole W_O; o over keys < first_unseen."""
    group = view.queries.shape[1] // view.kv_heads
    values = view.values[0, head // group].double()
    dim = values.shape[1]
    weight = view.output_weight[:, head * dim : (head + 1) * dim].double()
    o = sum(a[j] * values[j] for j in range(first_unseen))
    return [
        x / (1 - x) * float((weight @ (o - value)).norm()) ** tau
        for x, value in zip(a, values, strict=True)
    ]


def expect_past(policy, view, budget, wanted, window):
    got = policy.score(view, budget)[0]
    past = view.length - window
    assert bool(got[:, past:].isposinf().all())
    wanted = torch.tensor(wanted, dtype=torch.float64)[:, :past]
    assert torch.allclose(got[:, :past].double(), wanted, rtol=5e-5, atol=1e-12)


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
    monkeypatch.setattr("methods.criticalkv._BLOCK_ELEMENTS", 11 * 4)  # four tokens at a time
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
