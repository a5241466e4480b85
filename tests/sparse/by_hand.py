"""The published rules of sparse prefill as plain loops over numbers, in double precision.

Written from the papers and the released code, token by token and block by block; slow on purpose.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 128
Mask = list[list[list[bool]]]  # by head, block of queries, block of keys


def blocks_of(length: int) -> list[range]:
    return [range(a, min(a + BLOCK, length)) for a in range(0, length, BLOCK)]


def empty(heads: int, n: int) -> Mask:
    return [[[False] * n for _ in range(n)] for _ in range(heads)]


def rows_of(query: Tensor, key: Tensor, scaling: float, head: int, count: int) -> list[list[float]]:
    """Attention of the last `count` queries of a head, each over the keys that it sees."""
    group, length = query.shape[0] // key.shape[0], query.shape[1]
    keys = key[head // group].double()
    found = []
    for i in range(max(0, length - count), length):
        logits = [scaling * x for x in (keys[: i + 1] @ query[head, i].double()).tolist()]
        top = max(logits)
        weights = [math.exp(x - top) for x in logits]
        found.append([x / sum(weights) for x in weights])
    return found


def by_key_and_distance(
    query: Tensor, key: Tensor, scaling: float, head: int, count: int
) -> tuple[list[float], list[float]]:
    """Mean attention to each key, and to each distance (0: the token itself)."""
    length = query.shape[1]
    rows = rows_of(query, key, scaling, head, count)
    keys, away = [0.0] * length, [0.0] * length
    for row in rows:
        own = len(row) - 1
        for j, weight in enumerate(row):
            keys[j] += weight / len(rows)
            away[own - j] += weight / len(rows)
    return keys, away


def summed(values: list[float], blocks: list[range]) -> list[float]:
    return [sum(values[i] for i in block) for block in blocks]


def summed_distances(away: list[float]) -> list[float]:
    """By distance in blocks. Diagonals are counted from the farthest, so the nearest block of them
    is the one that may be short.
    """
    farthest_first = away[::-1]
    return summed(farthest_first, blocks_of(len(away)))[::-1]


def top(values: list[float], count: int, always: int) -> set[int]:
    order = sorted(range(len(values)), key=lambda i: (i != always, -values[i]))
    return set(order[:count])


def lines(n: int, columns: set[int], distances: set[int]) -> list[list[bool]]:
    return [[j <= i and (j in columns or i - j in distances) for j in range(n)] for i in range(n)]


def a_shape(length: int, heads: int, sinks: int, window: int) -> Mask:
    blocks = blocks_of(length)
    mask = empty(heads, len(blocks))
    for i in range(length):
        for j in range(i + 1):
            if j < sinks or i - j < window:
                for head in mask:
                    head[i // BLOCK][j // BLOCK] = True
    return mask


def vertical_slash(
    query: Tensor, key: Tensor, scaling: float, vertical: int, slash: int, queries: int
) -> Mask:
    blocks = blocks_of(query.shape[1])
    mask = []
    for head in range(query.shape[0]):
        keys, away = by_key_and_distance(query, key, scaling, head, queries)
        columns = top(summed(keys, blocks), math.ceil(vertical / BLOCK), 0)
        distances = top(summed_distances(away), math.ceil(slash / BLOCK), 0)
        mask.append(lines(len(blocks), columns, distances))
    return mask


def mean(rows: Tensor) -> list[float]:
    return [sum(column) / len(column) for column in zip(*rows.double().tolist(), strict=True)]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(x - max(values)) for x in values]
    return [x / sum(weights) for x in weights]


def covering(shares: list[float], gamma: float) -> int:
    total, count = 0.0, 0
    for share in sorted(shares, reverse=True):
        total += share
        if total > gamma:
            break
        count += 1
    return count + 1


def divergence(p: list[float], q: list[float]) -> float:
    middle = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    parts = [sum(x * math.log(x / m) for x, m in zip(d, middle, strict=True) if x) for d in (p, q)]
    return math.sqrt(max(0.0, sum(parts) / 2))


def flexprefill(
    query: Tensor, key: Tensor, scaling: float, gamma: float, tau: float, min_budget: int
) -> tuple[Mask, list[bool]]:
    """The mask, and which heads take blocks by their pooled scores."""
    heads, length = query.shape[:2]
    blocks, group = blocks_of(length), heads // key.shape[0]
    n, least = len(blocks), math.ceil(min_budget / BLOCK)
    if n <= max(2, least):
        return [lines(n, set(range(n)), set()) for _ in range(heads)], [False] * heads
    mask, kinds = [], []
    for head in range(heads):
        keys, away = by_key_and_distance(query, key, scaling, head, BLOCK)
        pooled = [mean(key[head // group, list(block)]) for block in blocks]
        recent = mean(query[head, -BLOCK:])
        guess = softmax([scaling * dot(recent, one) for one in pooled])
        aware = divergence(guess, summed(keys, blocks)) < tau
        budgets = [min(n, max(least, covering(each, gamma) // BLOCK + 1)) for each in (keys, away)]
        if aware:
            budgets = [least, least]
        columns = top(summed(keys, blocks), budgets[0], 0)
        chosen = lines(n, columns, top(summed_distances(away), budgets[1], 0))
        if aware:
            shares = []
            for i, block in enumerate(blocks):
                own = mean(query[head, list(block)])
                row = softmax([scaling * dot(own, pooled[j]) for j in range(i + 1)])
                shares += [(share, i, j) for j, share in enumerate(row)]
            total = 0.0
            for share, i, j in sorted(shares, key=lambda each: -each[0]):
                total += share
                if total > gamma * n:
                    break
                chosen[i][j] = True
        mask.append(chosen)
        kinds.append(aware)
    return mask, kinds


def xattention(query: Tensor, key: Tensor, scaling: float, stride: int, threshold: float) -> Mask:
    heads, length, dim = query.shape
    group, groups = heads // key.shape[0], math.ceil(length / stride)
    n = math.ceil(length / BLOCK)
    mask = empty(heads, n)
    for head in range(heads):
        q = torch.zeros(groups * stride, dim, dtype=torch.float64)
        k = torch.zeros_like(q)
        q[:length], k[:length] = query[head].double(), key[head // group].double()
        products = (q @ k.T).tolist()
        scores = [[0.0] * n for _ in range(n)]
        for a in range(groups):
            logits = []
            for b in range(a + 1):
                anti = [products[(a + 1) * stride - 1 - i][b * stride + i] for i in range(stride)]
                logits.append(scaling / stride * sum(anti))
            for b, weight in enumerate(softmax(logits)):
                scores[a * stride // BLOCK][b * stride // BLOCK] += weight
        for i, row in enumerate(scores):
            taken = {0, i}
            for j in sorted(set(range(i)) - taken, key=lambda j: -row[j]):
                if sum(row[t] for t in taken) >= threshold * sum(row):
                    break
                taken.add(j)
            for j in taken:
                mask[head][i][j] = True
    return mask
