"""Slow float64 arithmetic of the papers' formulas, token by token."""

import math

import torch


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


def _softmax(logits):
    top = max(logits)
    parts = [math.exp(each - top) for each in logits]
    return [part / sum(parts) for part in parts]


def _dot(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


def redundancy_aware(keys, queries, places, readers, past, mix, threshold, kernel):
    """R-KV's scores of the first `past` entries of one head, as lists of float64.

    keys [n][d] in the order of their places; queries [g][w][d] times the scale, of these readers.
    """
    count = len(keys)
    paid = [0.0] * past
    for row, reader in enumerate(readers):
        logits = [
            max(_dot(member[row], keys[j]) for member in queries) if places[j] <= reader else -1e300
            for j in range(past)
        ]
        if max(logits) > -1e300:
            paid = [a + b / len(readers) for a, b in zip(paid, _softmax(logits), strict=True)]
    half = kernel // 2
    pooled = [max(paid[max(0, j - half) : j + half + 1]) for j in range(past)]
    unit = [[x / math.sqrt(_dot(key, key)) for x in key] for key in keys]
    shares = [0.0] * count
    for i in range(count):
        cosines = [0.0 if i == j else _dot(unit[i], unit[j]) for j in range(count)]
        alike = [j for j in range(count) if cosines[j] > threshold]
        if alike:
            cosines[alike[-1]] = 0.0
        shares = [a + b / count for a, b in zip(shares, cosines, strict=True)]
    redundancy = _softmax(shares)
    return [mix * a - (1 - mix) * b for a, b in zip(pooled, redundancy, strict=False)]
