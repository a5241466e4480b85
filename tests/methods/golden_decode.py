"""Methods that go on evicting while decoding, step by step against their published code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import methods
from methods import ladder
from tests.methods.golden_data import Case, expect, expect_close, output, view


class Frame(NamedTuple):
    """One layer after a step: entries with the new token, entries that stay, what is remembered.

    appended and kept: int64 [B, Hkv, n], ascending; carried: float32, aligned with appended;
    remembered: with kept; standing: what entries were evicted by.
    """

    appended: Tensor
    kept: Tensor
    carried: Tensor | None = None
    remembered: Tensor | None = None
    standing: Tensor | None = None


def decode(
    policy: methods.Policy, layer: methods.LayerView, prompt: int, budget: int, limit: int
) -> Iterator[Frame]:
    """Evict the first `prompt` tokens of the layer to `budget`, then feed the others one by one."""
    prefix = methods.LayerView(
        layer.keys[:, :, :prompt],
        layer.values[:, :, :prompt],
        layer.queries[:, :, :prompt],
        layer.scaling,
    )
    chosen = policy.select_many(prefix, [budget])[0]
    kept, remembered = chosen.positions, chosen.carried
    yield Frame(kept, kept, remembered, remembered)
    held = methods.Held(prompt, kept.shape[-1], limit, tail=0)
    for seen in range(prompt + 1, layer.length + 1):
        appended = torch.nn.functional.pad(kept, (0, 1), value=seen - 1)
        count = policy.evictions(held, appended.shape[-1] - held.kept, seen, 1)
        step = methods.Step(
            held=[held] * layer.batch,
            positions=appended,
            budgets=torch.full(appended.shape[:2], appended.shape[-1] - count),
            seen=seen,
            new=1,
            layer=0,
            num_layers=1,
            attention=attention(layer, appended, seen - 1) if policy.observes else None,
            carried=None if remembered is None else torch.nn.functional.pad(remembered, (0, 1)),
            keys=entries(layer, appended) if policy.recalls else None,
            queries=layer.queries[:, :, seen - policy.recalls : seen] * layer.scaling,
        )
        carried, standing = policy.carry(step), None
        stays = torch.ones_like(appended, dtype=torch.bool)
        if count:
            standing = policy.standing(step, carried).expand_as(appended)
            stays.scatter_(-1, policy.drop(step, carried, count), False)
        shape = (*appended.shape[:2], -1)
        kept = appended[stays].view(shape)
        remembered = None if carried is None else carried[stays].view(shape)
        yield Frame(appended, kept, carried, remembered, standing)


def entries(layer: methods.LayerView, positions: Tensor) -> Tensor:
    """Keys [B, Hkv, n, d] at these positions."""
    return layer.keys.gather(2, positions[..., None].expand(-1, -1, -1, layer.keys.shape[-1]))


def attention(layer: methods.LayerView, positions: Tensor, query: int) -> Tensor:
    """The row of one query over some keys of each KV head, float32 [B, H, 1, n]."""
    keys = entries(layer, positions)
    keys = keys.repeat_interleave(layer.queries.shape[1] // keys.shape[1], 1)
    rows = layer.queries[:, :, query : query + 1]
    return (rows @ keys.transpose(-1, -2) * layer.scaling).softmax(-1)


def check_tova(case: Case) -> None:
    params = case["params"]
    prompt, budget = params["prefill_len"], params["cache_size"]
    length = prompt + params["decode_steps"]
    layer = view(case["inputs"], per_query_head=False, length=length)
    policy = methods.build("tova")
    first = policy.score(view(case["inputs"], False, prompt), budget)[:, 0]
    expect_close(first, output("tova", case, "score_first"), "head-mean attention")
    stored = output("tova", case, "kept_pos")
    frames = list(decode(policy, layer, prompt, budget, budget))
    expect(len(frames) == len(stored), f"{len(frames)} steps, stored {len(stored)}")
    for step, (frame, theirs) in enumerate(zip(frames, stored, strict=True)):
        expect((frame.kept == theirs[:, None]).all(), f"kept sets differ at step {step}")
    if params["decode_steps"]:
        last = output("tova", case, "score_last")
        expect_close(frames[-1].standing[:, 0], last, "last head-mean attention")


def check_h2o(case: Case) -> None:
    """The H2O authors' own cache: sums at the end are compared too, over all the steps."""
    params = case["params"]
    prompt, budget = params["prefill_len"], params["hh_size"] + params["recent_size"]
    layer = view(case["inputs"], length=prompt + params["decode_steps"])
    policy = methods.build("h2o", recent=params["recent_size"])
    stored = output("h2o", case, "kept_pos")
    frames = list(decode(policy, layer, prompt, budget, budget))
    expect(len(frames) == len(stored), f"{len(frames)} steps, stored {len(stored)}")
    for step, (frame, theirs) in enumerate(zip(frames, stored, strict=True)):
        expect((frame.kept[0] == theirs).all(), f"kept sets differ at step {step}")
    for frame, which in ((frames[0], "first"), (frames[-1], "last")):
        sums = output("h2o", case, f"hh_score_{which}")
        expect_close(frame.remembered[0], sums, f"column sums of the {which} step")


def check_streaming(case: Case) -> None:
    """Every step; "evict_for_space" makes room for a token before it comes, we do after it."""
    params, mode = case["params"], case.get("mode")
    steps = output("streaming", case, "kept_pos_steps")
    ahead = mode == "evict_for_space"
    if case["variant"] == "restkv":
        length = int(case["id"].split("_")[1][1:])
        budget = params["max_capacity_prompt"]
        sinks = budget - params["window_size"]
    elif mode == "evict_range":
        length, sinks = params["prefill_len"], params["start"]
        budget = length - (params["end"] - params["start"])
    else:
        length, sinks = params["prefill_len"], params["start_size"]
        budget = sinks + params["recent_size"] - ahead
    stored = output("streaming", case, "kept_pos")[None] if steps is None else steps
    blank = torch.zeros(1, 1, length + params.get("decode_steps", 0), 4)
    layer = methods.LayerView(blank, blank, blank[:, :, :0], 1.0)
    policy = methods.build("streaming_llm", sinks=sinks)
    frames = list(decode(policy, layer, length, budget, budget))
    expect(len(frames) == len(stored), f"{len(frames)} steps, stored {len(stored)}")
    for step, (frame, theirs) in enumerate(zip(frames, stored, strict=True)):
        ours = (frame.appended if ahead else frame.kept)[0, 0]
        same = torch.equal(ours, theirs[theirs >= 0].long())
        expect(same, f"kept positions differ at step {step}")


def lacache_ladder(case: Case) -> ladder.Ladder:
    params = case["params"]
    return ladder.build(
        params["num_layers"], params["span"], params["overlap"], params["start_size"]
    )


def lacache_stored(case: Case) -> Iterator[tuple[int, list[list[int]]]]:
    """Steps of which positions are stored, with those each layer keeps; 0 is the prefill call."""
    length = case["params"]["prefill_len"]
    dropped = output("lacache", case, "dropped_pos")
    if dropped is not None:
        yield 0, [sorted(set(range(length)) - set(row)) for row in dropped.tolist()]
        return
    stored = output("lacache", case, "kept_pos").tolist()
    steps = output("lacache", case, "checkpoint_step").tolist()
    for step, layers in zip(steps, stored, strict=True):
        yield step, [[p for p in row if p >= 0] for row in layers]


def lacache_lengths(case: Case) -> tuple[list[int], list[int]]:
    """Entries and cursor after every step."""
    if case.get("kind") == "single":
        return [case["kept_len"]], [case["ladder_cursor"]]
    lengths = output("lacache", case, "len_per_step")
    return lengths.tolist(), output("lacache", case, "ladder_cursor_per_step").tolist()


def check_lacache(case: Case) -> None:
    """Every step, at the capacity the released code gives itself at its first compaction.

    Where it repeats positions ours must not: as many others are kept beside those it has, and from
    there on only how many are kept, and the cursor, are compared.
    """
    params = case["params"]
    prompt, capacity = params["prefill_len"], case["cache_size_after_compensation"]
    # To read the prompt is to add all of it to an empty cache.
    climb = ladder.Climb(lacache_ladder(case), 0, 0, capacity, prompt)
    caches: list[set[int]] = [set() for _ in range(params["num_layers"])]
    lengths, cursors = lacache_lengths(case)
    stored, seen, clean = dict(lacache_stored(case)), 0, True
    for step, (length, cursor) in enumerate(zip(lengths, cursors, strict=True)):
        new, seen = range(seen, prompt + step), prompt + step
        for cache, evicted in zip(caches, climb.evicted(seen), strict=True):
            expect(set(evicted) <= cache | set(new), "evicts what it does not have")
            cache.update(new)
            cache.difference_update(evicted)
            expect(len(cache) == length, f"keeps {len(cache)}, not {length} at step {step}")
        expect(climb.cursor == cursor, f"the cursor differs at step {step}")
        if step in stored and clean:
            for layer, (ours, theirs) in enumerate(zip(caches, stored[step], strict=True)):
                repeats = len(set(theirs)) < len(theirs)
                same = set(theirs) < ours if repeats else sorted(ours) == theirs
                expect(same, f"layer {layer} differs at step {step}")
                clean = clean and not repeats


def lacache_by_policy(case: Case) -> bool:
    """Whether keeping as many tokens as the released code kept gives its exact sets."""
    shape, length = lacache_ladder(case), case["params"]["prefill_len"]
    _, layers = next(lacache_stored(case))
    return all(
        list(ladder.select(shape, length, len(stored), layer)) == stored
        for layer, stored in enumerate(layers)
    )
