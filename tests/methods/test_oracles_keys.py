"""Scores from keys and values alone, against slow arithmetic written from the papers' formulas."""

import dataclasses
import math
import statistics
from itertools import chain, pairwise

import pytest
import torch

import methods
from tests.methods.by_hand import mean
from tests.methods.views import random_view


def softmax(numbers):
    weights = [math.exp(number - max(numbers)) for number in numbers]
    return [weight / sum(weights) for weight in weights]


def lag_scores(states, sinks, lag):
    """LagKV's score of each token of each part that has a next one, channel by channel."""
    whole = (len(states) - sinks) // lag
    parts = [states[sinks + p * lag : sinks + (p + 1) * lag] for p in range(whole)]
    scores = []
    for part, following in pairwise(parts):
        ranges = [(min(channel), max(channel)) for channel in zip(*following, strict=True)]
        deviations = []
        for token in part:
            placed = [
                (x - low) / (high - low) if high > low else 0.0
                for x, (low, high) in zip(token, ranges, strict=True)
            ]
            deviations.append(statistics.stdev(placed))
        scores.append(softmax(deviations))
    return scores


def lag_parts(view, head, sinks, lag):
    """The mean of the scores of key and value, in parts."""
    found = [
        lag_scores(states[0, head].double().tolist(), sinks, lag)
        for states in (view.keys, view.values)
    ]
    return [[mean(pair) for pair in zip(*both, strict=True)] for both in zip(*found, strict=True)]


@pytest.mark.parametrize(("sinks", "lag"), [(2, 6), (0, 5), (3, 8)])
def test_lagkv_scores(sinks, lag):
    view = random_view(43, kv_heads=2, group=2, dim=6, seed=21)
    view.values[0, 1, :, 3] = 7.0  # a channel without a scale
    wanted = [lag_parts(view, head, sinks, lag) for head in range(2)]
    cross = methods.build("lagkv", sinks=sinks, lag=lag, cross=True)
    ranked = methods.build("lagkv", sinks=sinks, lag=lag)
    flat = torch.tensor([[*chain(*parts)] for parts in wanted], dtype=torch.float64)
    last = sinks + flat.shape[1]
    ours = cross.score(view, 42)[0]
    assert bool(ours[:, :sinks].isposinf().all() and ours[:, last:].isposinf().all())
    assert torch.allclose(ours[:, sinks:last].double(), flat, rtol=5e-5)
    ranks = [
        [sorted(part).index(score) / lag for part in parts for score in part] for parts in wanted
    ]
    got = ranked.score(view, 42)[0, :, sinks:last]
    assert torch.allclose(got, torch.tensor(ranks, dtype=torch.float32))


@pytest.mark.parametrize(("quota", "more"), [(1, 0), (2, 0), (2, 3), (3, 1)])
def test_lagkv_takes_as_many_of_each_part_the_earliest_give_less(quota, more):
    view = random_view(2 + 6 * 6 + 3, kv_heads=2, dim=6, seed=22)  # five parts and the last
    kept = methods.build("lagkv", sinks=2, lag=6).keep(view, 2 + 9 + 5 * quota + more)
    for head in range(2):
        wanted = [0, 1, *range(32, 41)]
        for number, scores in enumerate(lag_parts(view, head, 2, 6)):
            best = sorted(range(6), key=lambda j: -scores[j])[: quota + (number < more)]
            wanted += [2 + 6 * number + j for j in best]
        assert kept[0, head].tolist() == sorted(wanted)


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 9, 11, 12, 40, 41])
def test_lagkv_without_room_for_parts_is_streaming_llm_and_says_so(budget):
    view = random_view(41)
    wanted = methods.build("streaming_llm", sinks=4).keep(view, budget)
    short = methods.build("lagkv", sinks=4, lag=20).select_many(view, [budget])[0]
    assert torch.equal(short.positions, wanted)
    assert short.fallback == (None if budget == 41 else "streaming_llm")
    selection = methods.build("lagkv", sinks=4, lag=6).select_many(view, [budget])[0]  # 11 behind
    if 11 < budget < 41:
        assert selection.fallback is None
    elif budget <= 11:
        assert torch.equal(selection.positions, wanted)
        assert selection.fallback == "streaming_llm"


def test_lagkv_spares_text_and_takes_images_by_age_where_no_part_fits():
    view = random_view(30)
    modality = torch.ones(1, 30, dtype=torch.long)
    modality[0, 10:14] = 0
    view = dataclasses.replace(view, modality=modality)
    kept = methods.build("lagkv", sinks=3, lag=20, protect="text").keep(view, 10)
    assert kept[0].tolist() == [[0, 1, 2, 10, 11, 12, 13, 27, 28, 29]] * 2


def turned(vector, position):
    """A vector of even length at a rotary position, pair by pair, as HalfTurns does it."""
    half = len(vector) // 2
    found = [0.0] * len(vector)
    for i in range(half):
        angle = position * 10.0 ** (-2 * i / half)
        one, two = vector[i], vector[i + half]
        found[i] = one * math.cos(angle) - two * math.sin(angle)
        found[i + half] = two * math.cos(angle) + one * math.sin(angle)
    return found


def expected_logits(view, head, sinks, future, with_covariance):
    """E[s q.k] + Var[s q.k] / 2 of each key behind the sinks, q being turned by the average."""
    rows = view.queries[0, head].double().tolist()
    plain = [turned(row, -place) for place, row in enumerate(rows)][sinks:]
    ahead = [
        [mean(column) for column in zip(*(turned(q, 29 + t) for t in range(future)), strict=True)]
        for q in plain
    ]
    keys = view.keys[0, head // 3, sinks:].double().tolist()
    logits = []
    for key in keys:
        dots = [view.scaling * sum(x * y for x, y in zip(q, key, strict=True)) for q in ahead]
        spread = mean((dot - mean(dots)) ** 2 for dot in dots) if with_covariance else 0.0
        logits.append(mean(dots) + spread / 2)
    return logits


@pytest.mark.parametrize(("covariance", "value_norm"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(("sinks", "protected", "budget"), [(4, 4, 9), (0, 0, 9), (6, 1, 3)])
def test_expected_attention(covariance, value_norm, sinks, protected, budget):
    """The mean and variance of the logits themselves, in place of a covariance of queries."""
    view = random_view(29, kv_heads=2, group=3, dim=6, seed=23, sharpness=2.0)
    params = {"sinks": sinks, "future": 5, "covariance": covariance, "value_norm": value_norm}
    policy = methods.build("expected_attention", epsilon=0.01, **params)
    wanted = []
    for kv_head in range(2):
        shares = [
            softmax(expected_logits(view, 3 * kv_head + i, sinks, 5, covariance)) for i in range(3)
        ]
        scores = [mean(column) for column in zip(*shares, strict=True)]
        if value_norm:
            values = view.values[0, kv_head, sinks:].double().tolist()
            lengths = [math.sqrt(sum(x * x for x in value)) for value in values]
            scores = [(a + 0.01) * size for a, size in zip(scores, lengths, strict=True)]
        wanted.append([0.0] * sinks + scores)
    got = policy.score(view, budget)[0]
    assert bool(got[:, :protected].isposinf().all())
    exact = torch.tensor(wanted, dtype=torch.float64)[:, protected:]
    assert torch.allclose(got[:, protected:].double(), exact, rtol=5e-5, atol=1e-9)


@pytest.mark.parametrize("length", [1, 2, 4, 5])
def test_expected_attention_of_prompts_no_longer_than_the_sinks(length):
    view = random_view(length)
    for budget in range(1, length + 1):
        score = methods.build("expected_attention").score(view, budget)
        assert not bool(score.isnan().any())


def scaled(numbers, level):
    """From 0 to 1, then with that mean."""
    low, high = min(numbers), max(numbers)
    placed = [(x - low) / (high - low) if high > low else 0.0 for x in numbers]
    return [x * level / mean(placed) if any(placed) else 0.0 for x in placed]


def cosine(one, other):
    product = sum(x * y for x, y in zip(one, other, strict=True))
    return product / (math.hypot(*one) * math.hypot(*other))


@pytest.mark.parametrize("diversity", [None, 0.3])
def test_mixkv(diversity):
    """The weight of a head is the mean cosine of all pairs of its keys, one by one."""
    view = random_view(29, kv_heads=2, group=3, dim=6, seed=31, sharpness=2.0)
    view.keys[0, 0] += 1.0  # the keys of the other head point anywhere: its weight may be 0
    view.values[0, 1, :] = torch.nn.functional.normalize(
        view.values[0, 1].abs().round() + 1, dim=-1
    )
    view.values[0, 1] = view.values[0, 1, :1]  # as long as each other
    policy = methods.build("mixkv", window=7, kernel=1, diversity=diversity)
    scores = policy.score(view, 15)[0].tolist()
    rows = methods.build("snapkv", window=7, kernel=1).measure(view)[0]
    for head, found in enumerate(scores):
        keys, values = view.keys[0, head].double().tolist(), view.values[0, head].double().tolist()
        attention = [float(a) / 7 for a in rows[head, :22]]
        level = mean(attention)
        centre = [mean(x / math.hypot(*key) for x, key in zip(column, keys, strict=True))
                  for column in zip(*keys, strict=True)]  # fmt: skip
        far = scaled([-cosine(key, centre) for key in keys[:22]], level)
        long = scaled([math.hypot(*value) for value in values[:22]], level)
        pairs = [cosine(a, b) for i, a in enumerate(keys) for b in keys[:i]]
        weight = max(0.0, mean(pairs)) if diversity is None else diversity
        wanted = [weight * f + (1 - weight) * (a + v)
                  for f, a, v in zip(far, attention, long, strict=True)]  # fmt: skip
        assert found[:22] == pytest.approx(wanted, rel=2e-4, abs=1e-7)
        assert found[22:] == [math.inf] * 7


def with_frames(view, first, frames, size, apart=0):
    """Frames of so many image tokens, `apart` text tokens between them."""
    modality = torch.zeros(1, view.length, dtype=torch.long)
    for frame in range(frames):
        start = first + frame * (size + apart)
        modality[:, start : start + size] = 1
    return dataclasses.replace(view, modality=modality)


@pytest.mark.parametrize(("apart", "frame"), [(0, 4), (2, None), (2, 4)])
@pytest.mark.parametrize("kept", [2, 7, 12, 20])
def test_infinipot_v(apart, frame, kept):
    """Frame by frame and place by place; where recent frames do not fit, half of the stage."""
    view = with_frames(random_view(53, kv_heads=2, group=1, seed=7), 5, 7, 4, apart)
    policy = methods.build("infinipot_v", temporal=0.6, recent=0.3, frame=frame)
    images = view.modality[0].nonzero()[:, 0].tolist()
    text = [j for j in range(53) if j not in images]
    selection = policy.select_many(view, [len(text) + kept])[0]
    assert selection.fallback is None
    stage = kept - round(0.4 * kept)
    recent = images[-2 * 4 :]  # 0.3 of 7 frames are 2
    held = recent if len(recent) <= stage else recent[len(recent) - stage // 2 :]
    for head, positions in enumerate(selection.positions[0].tolist()):
        keys = view.keys[0, head].double().tolist()
        sizes = [math.hypot(*value) for value in view.values[0, head].double().tolist()]
        change = {
            j: -mean(cosine(keys[j], keys[other]) for other in recent[n % 4 :: 4])
            for n, j in enumerate(images[: -2 * 4])
        }
        taken = sorted(change, key=lambda j, c=change: (-c[j], j))[: stage - len(held)]
        rest = sorted({*images} - {*taken, *held}, key=lambda j, s=sizes: (-s[j], j))
        wanted = {*text, *taken, *held, *rest[: kept - len(taken) - len(held)]}
        assert positions == sorted(wanted)


@pytest.mark.parametrize(("frames", "frame", "cut"), [(1, None, 0), (5, None, 1), (3, 5, 0)])
def test_infinipot_v_without_frames_goes_by_values_and_says_so(frames, frame, cut):
    view = with_frames(random_view(41, seed=8), 5, frames, 4, 1)
    view.modality[:, 5 : 5 + cut] = 0  # one frame is smaller
    policy = methods.build("infinipot_v", frame=frame)
    text = int((view.modality == 0).sum())
    selection = policy.select_many(view, [text + 2])[0]
    plain = view.values.float().norm(dim=-1).masked_fill(view.modality[:, None] == 0, torch.inf)
    assert selection.fallback == "value_norm"
    assert torch.equal(selection.positions, plain.topk(text + 2).indices.sort(-1).values)
    assert policy.select_many(view, [41])[0].fallback is None
    with pytest.raises(ValueError, match=r"LayerView\.modality"):
        policy.keep(random_view(41), 9)
