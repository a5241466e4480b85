"""What a sparse prefill should compute, by plain code: a model whose attention is masked token by
token to the blocks of the published rules, and the kept sets of SnapKV and ReST-KV from it.
"""

from __future__ import annotations

import masked_oracle as oracle
import torch
from torch.nn.functional import avg_pool1d
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from harness import sparse
from tests.sparse import by_hand

TOKENS, WINDOW, BLOCK = 3, 16, 128
PATTERNS = {
    "a_shape": {"sinks": 0, "window": 2},
    "vertical_slash": {"vertical": 1, "slash": 1, "queries": 64},
    "flexprefill": {"gamma": 0.5, "tau": 0.1, "min_budget": 1},
    "xattention": {"stride": 8, "threshold": 0.5},
}
LAST = 32


def by_rule(name, query, key, scaling):
    """The mask of a layer in plain loops, and the blocks of the last queries dense."""
    params, length = PATTERNS[name], query.shape[1]
    if name == "a_shape":
        mask = by_hand.a_shape(length, query.shape[0], **params)
    elif name == "flexprefill":
        mask, _ = by_hand.flexprefill(query, key, scaling, **params)
    else:
        mask = getattr(by_hand, name)(query, key, scaling, **params)
    for head in mask:
        for i, row in enumerate(head):
            dense = min(length, (i + 1) * BLOCK) > length - LAST
            row[: i + 1] = [True if dense or i == j else row[j] for j in range(i + 1)]
    return mask


class Masked:
    """Eager float64 attention of a whole pass, and what it saw of each layer."""

    def __init__(self, name, boundary, layers):
        self.name, self.boundary, self.layers = name, boundary, layers
        self.kept, self.masks, self.shown = {}, {}, {}

    def attend(self, module, query, key, value, mask, scaling=None, **_):
        index, length = module.layer_idx, query.shape[2]
        groups = query.shape[1] // key.shape[1]
        self.shown[index] = query[0], key[0], value[0], scaling
        wide = [each[0].double().repeat_interleave(groups, 0) for each in (key, value)]
        logits = query[0].double() @ wide[0].transpose(1, 2) * scaling
        logits = logits + (0 if mask is None else mask[0].double())
        if index in self.layers:
            logits = logits.masked_fill(~self._seen(index, query[0], key[0], scaling), -torch.inf)
        assert length >= self.boundary
        return (logits.softmax(-1) @ wide[1]).transpose(0, 1)[None].to(query.dtype), None

    def _seen(self, index, query, key, scaling):
        heads, length = query.shape[:2]
        end = self.boundary
        if index not in self.masks:
            self.masks[index] = by_rule(self.name, query[:, :end], key[:, :end], scaling)
        seen = torch.ones(heads, length, length, dtype=torch.bool).tril()
        blocks = torch.tensor(self.masks[index])
        tokens = blocks.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
        seen[:, :end, :end] &= tokens[:, :end, :end]
        if index in self.kept:
            seen[:, end:, :end] &= self.kept[index].repeat_interleave(heads // len(key), 0)[:, None]
        return seen

    def run(self, model, prompt, answer=()):
        """Logits [V] of every token from the one before the answer on."""
        ids = torch.cat([prompt.inputs["input_ids"], torch.tensor([[*answer]]).long()], dim=1)
        inputs = {**prompt.inputs, "input_ids": ids}
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in inputs:
                inputs[name] = torch.nn.functional.pad(inputs[name], (0, len(answer)))
        AttentionInterface.register("sparse_oracle", self.attend)
        AttentionMaskInterface.register("sparse_oracle", eager_mask)
        with torch.no_grad(), oracle.attention(model, "sparse_oracle"):
            return model(**inputs, use_cache=False).logits[0, prompt.modality.shape[0] - 1 :]


def snapkv(query, key, value, scaling, weight, budget):
    """Kept positions [Hkv][budget]: window attention, mean pool of 5, mean over the group."""
    rows = window_rows(query, key, scaling)
    past = key.shape[1] - WINDOW
    scores = rows.mean(1)[:, :past]
    pooled = avg_pool1d(scores[None], 5, stride=1, padding=2)[0]
    return best(pooled.unflatten(0, (len(key), -1)).mean(1), past, budget)


def restkv(query, key, value, scaling, weight, budget):
    """The same by a / (1 - a) |W_O (o - v)| of the smoothed window, no pool over positions."""
    rows = window_rows(query, key, scaling)
    past, scores = key.shape[1] - WINDOW, []
    dim, group = value.shape[-1], len(query) // len(key)
    for head, own in enumerate(rows):
        a = own[0]
        for row in own[1:]:
            a = 0.3 * row + 0.7 * a
        values = value[head // group, :past].double()
        away = (a[:past] @ values - values) @ weight[:, head * dim : (head + 1) * dim].double().T
        scores.append(a[:past] / (1 - a[:past]) * away.norm(dim=-1))
    return best(torch.stack(scores).unflatten(0, (len(key), -1)).mean(1), past, budget)


def window_rows(query, key, scaling):
    length = key.shape[1]
    keys = key.double().repeat_interleave(len(query) // len(key), 0)
    logits = query[:, -WINDOW:].double() @ keys.transpose(1, 2) * scaling
    later = torch.ones(WINDOW, length, dtype=torch.bool).triu(1 + length - WINDOW)
    return logits.masked_fill(later, -torch.inf).softmax(-1)


def best(scores, past, budget):
    chosen = scores.topk(budget - WINDOW, dim=-1).indices
    window = torch.arange(past, past + WINDOW).expand(len(scores), -1)
    return torch.cat([chosen, window], dim=-1).sort(-1).values


def pattern_of(name):
    return sparse.build(name, **PATTERNS[name], last=LAST)
