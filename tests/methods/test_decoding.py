"""Every holding method through the properties of decoding under a budget, without a model.

Entries are simulated with lists; attention rows are random. Engine and models are tested elsewhere.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import methods
from tests.methods.matrix import HOLDING, build, every_holding_row, heads
from tests.methods.views import random_view

GROUP, LAYERS = 2, 3


class Simulation:
    """One cell on one layer: kept positions of each head in a shuffled order, and what it carries.

    rows(count) gives softmax rows over all tokens, [H, count]; masked to what is kept they are what
    a query would pay to the cache.
    """

    def __init__(self, row, length, budget, layer=1, kv_heads=2, seed=0, tail=1, **more):
        self.policy = build(row, **{"decode": "hold", **more})
        view = random_view(
            length, kv_heads, GROUP, seed=seed, sharpness=2.0, layer=layer, num_layers=LAYERS
        )
        selection = self.policy.select_many(view, [budget])[0]
        self.kept = heads(selection)[0]
        carried = selection.carried
        marks = [[0.0] * len(h) for h in self.kept] if carried is None else carried[0].tolist()
        self.carried = [
            dict(zip(h, m, strict=False)) for h, m in zip(self.kept, marks, strict=True)
        ]
        mean = round(sum(map(len, self.kept)) / len(self.kept))
        self.held = methods.Held(length, mean, mean + budget - min(budget, length), tail)
        self.layer, self.seen, self.grown = layer, length, 0
        self.keys, self.queries = view.keys, selection.queries
        self.generator = torch.Generator().manual_seed(seed)
        self.rows = None  # set to fix the attention

    def step(self, new=1):
        """Append, attend, evict; the evicted positions of each head."""
        for head in self.kept:
            head += range(self.seen, self.seen + new)
        self.seen += new
        self.grown += new
        count = self.policy.evictions(self.held, self.grown, self.seen, LAYERS)
        self.grown -= count
        step = self._step(new, count)
        carried = self.policy.carry(step)
        if carried is not None:
            values = carried[0].tolist()
            self.carried = [dict(zip(h, v, strict=False))
                            for h, v in zip(self.kept, values, strict=True)]  # fmt: skip
        if not count:
            return [[] for _ in self.kept]
        gone = self.policy.drop(step, carried, count)[0].tolist()
        dropped = [[h[i] for i in each] for h, each in zip(self.kept, gone, strict=True)]
        self.kept = [[p for p in h if p not in out]
                     for h, out in zip(self.kept, dropped, strict=True)]  # fmt: skip
        return dropped

    def _step(self, new, count):
        width = max(map(len, self.kept))
        positions = torch.tensor([h + [-1] * (width - len(h)) for h in self.kept])[None]
        attention = None
        if self.policy.observes:
            draws = torch.rand(len(self.kept) * GROUP, new, width, generator=self.generator) ** 4
            if self.rows is not None:
                draws = self.rows(positions[0]).repeat_interleave(GROUP, 0)[:, None]
                draws = draws.expand(-1, new, -1).clone()
            draws.masked_fill_((positions[0] < 0).repeat_interleave(GROUP, 0)[:, None], 0.0)
            attention = (draws / draws.sum(-1, keepdim=True))[None]
        carried = [[own.get(p, 0.0) for p in h] + [0.0] * (width - len(h))
                   for own, h in zip(self.carried, self.kept, strict=True)]  # fmt: skip
        return methods.Step(
            held=[self.held],
            positions=positions,
            budgets=torch.tensor([[len(h) - count for h in self.kept]]),
            seen=self.seen,
            new=new,
            layer=self.layer,
            num_layers=LAYERS,
            attention=attention,
            carried=torch.tensor(carried)[None],
            **self._recalled(positions, new),
        )

    def _recalled(self, positions, new):
        """Keys [1, Hkv, n, d] of all entries and the last queries, where the policy asks."""
        if not self.policy.recalls:
            return {}
        heads, dim = self.keys.shape[1], self.keys.shape[3]
        fresh = torch.randn(1, heads * (GROUP + 1), new, dim, generator=self.generator)
        self.keys = torch.cat([self.keys, fresh[:, :heads]], 2)
        self.queries = torch.cat([self.queries, fresh[:, heads:]], 2)[:, :, -self.policy.recalls :]
        index = positions.clamp_min(0)[..., None].expand(-1, -1, -1, dim)
        keys = self.keys.gather(2, index).masked_fill(positions[..., None] < 0, torch.nan)
        return {"keys": keys, "queries": self.queries}


SIZES = [(41, 17), (41, 1), (41, 2), (9, 9), (9, 14), (2, 5)]


@every_holding_row
@pytest.mark.parametrize(("length", "budget"), SIZES)
def test_no_step_ends_above_the_budget(row, length, budget):
    cell = Simulation(row, length, budget)
    start = [len(head) for head in cell.kept]
    slack = budget - min(budget, length)
    for tokens in range(1, 40):
        gone = cell.step()
        for head, dropped, first in zip(cell.kept, gone, start, strict=True):
            assert len(head) == len(set(head))
            assert not set(dropped) & set(head)
            assert set(head) | set(dropped) <= set(range(length + tokens))
            full = first + min(slack, tokens)
            if cell.policy.name == "lacache":  # whole blocks shrink
                assert full - 2 * LAYERS <= len(head) <= full
            else:
                assert len(head) == full
    takes_any = cell.policy.name.endswith(("tova", "random")) or budget == 1
    assert takes_any or all(max(head) >= length for head in cell.kept if len(head) > 1)


@every_holding_row
@pytest.mark.parametrize(("length", "budget"), [(41, 17), (41, 2), (9, 14)])
def test_a_buffer_fills_up_and_is_evicted_at_once(row, length, budget):
    buffer = 5
    cell = Simulation(row, length, budget, decode="buffer", buffer=buffer)
    start, over = [len(head) for head in cell.kept], min(budget, length) - budget
    evictions = 0
    for _ in range(24):
        before = [set(head) | {cell.seen} for head in cell.kept]
        gone = cell.step()
        over += 1
        full = over == buffer
        evictions += full
        for head, dropped, had in zip(cell.kept, gone, before, strict=True):
            assert set(head) | set(dropped) == had
            assert not set(head) & set(dropped)
            assert len(dropped) == buffer * full or cell.policy.name == "lacache"
        if full and cell.policy.name == "lacache":  # whole blocks shrink
            over = len(cell.kept[0]) - budget
            assert -2 * LAYERS <= over <= 0
        elif full:
            over = 0
            assert [len(head) - (budget - min(budget, length)) for head in cell.kept] == start
    assert evictions >= 3


@every_holding_row
@pytest.mark.parametrize("new", [2, 7])
def test_a_chunk_of_tokens_is_evicted_down_to_the_budget(row, new):
    cell = Simulation(row, 41, 17, tail=new)
    limits = [len(head) for head in cell.kept]
    cell.step(new)
    sizes = [len(head) for head in cell.kept]
    if cell.policy.name == "lacache":
        assert all(size <= limit for size, limit in zip(sizes, limits, strict=True))
    else:
        assert sizes == limits


@every_holding_row
def test_what_is_protected_is_never_evicted(row):
    cell = Simulation(row, 41, 17)
    params = cell.policy.params
    for _ in range(50):
        cell.step()
        for head in cell.kept:
            newest = sorted(head)
            if "recent" in cell.policy.params:
                recent = len(head) // 2 if params["recent"] is None else params["recent"]
                recent = recent if len(head) > recent else len(head) // 2
                assert newest[len(head) - recent :] == list(range(cell.seen - recent, cell.seen))
            elif cell.policy.name == "streaming_llm":
                assert newest == [*range(4), *range(cell.seen - 13, cell.seen)]
            elif cell.policy.name == "lacache":
                assert newest[: params["start"]] == list(range(params["start"]))
                assert newest[-1] == cell.seen - 1
            elif cell.policy.name == "rkv":
                window = params["window"] if len(head) > params["window"] else len(head) // 2
                assert newest[len(head) - window :] == list(range(cell.seen - window, cell.seen))
            elif params.get("protect_last"):
                assert newest[-1] == cell.seen - 1


@every_holding_row
def test_of_equal_entries_the_newest_that_may_go_is_evicted(row):
    cell = Simulation(row, 41, 17)
    if not cell.policy.observes:
        return
    cell.rows = lambda positions: torch.ones(positions.shape)
    cell.carried = [dict.fromkeys(head, 1.0) for head in cell.kept]
    before = [list(head) for head in cell.kept]
    gone = cell.step()
    if "recent" in cell.policy.params:
        counts = [len(head) for head in before]
        recent = [cell.policy.params["recent"] or n // 2 for n in counts]
        recent = [r if n > r else n // 2 for r, n in zip(recent, counts, strict=True)]
    else:
        recent = [int(cell.policy.params["protect_last"])] * len(before)
    for head, own, protected in zip(before, gone, recent, strict=True):
        allowed = [place for place in [*head, 41] if place < 42 - protected]
        # A mean over the queries that see a token sinks with its age.
        visible = cell.policy.params.get("average") == "visible_mean"
        assert own == [min(allowed) if visible else max(allowed)]


@every_holding_row
def test_one_dominating_key_stays(row):
    cell = Simulation(row, 41, 17)
    if not cell.policy.observes:
        return
    star = [min(head) for head in cell.kept]
    for head, own in zip(star, cell.carried, strict=True):
        own[head] = max(own.values())
    cell.rows = lambda positions: (positions == torch.tensor(star)[:, None]).float() + 1e-30
    for _ in range(30):
        cell.step()
    for own, head in zip(star, cell.kept, strict=True):
        assert own in head


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(HOLDING),
    st.integers(2, 50),
    st.integers(1, 50),
    st.integers(1, 4),
    st.integers(0, 10**6),
)
def test_layers_of_one_cell_drop_alike(row, length, budget, tail, seed):
    """The engine asks each layer by itself; all must lose equally many entries a step."""
    cells = [Simulation(row, length, budget, layer, 1, seed, tail) for layer in range(LAYERS)]
    for step in range(20):
        gone = [cell.step(tail if step == 0 else 1) for cell in cells]
        assert len({len(head) for layer in gone for head in layer}) == 1


def test_h2o_adds_up_what_every_query_paid():
    """Sums over the prompt and all later queries, against plain addition."""
    cell = Simulation(("h2o", "uniform"), 12, 30)
    view = random_view(12, 2, GROUP, sharpness=2.0, layer=1, num_layers=LAYERS)
    sums = view.attention(12).sum(2).unflatten(1, (2, GROUP)).mean(2)[0].tolist()
    paid = [dict(enumerate(head)) for head in sums]
    for _ in range(7):
        before = cell.generator.get_state()
        cell.step()
        after, width = cell.generator.get_state(), len(cell.kept[0])
        cell.generator.set_state(before)
        draws = torch.rand(4, 1, width, generator=cell.generator) ** 4
        cell.generator.set_state(after)
        rows = (draws / draws.sum(-1, keepdim=True))[:, 0].unflatten(0, (2, GROUP)).mean(1)
        for own, head, row in zip(paid, cell.kept, rows.tolist(), strict=True):
            for place, share in zip(head, row, strict=True):
                own[place] = own.get(place, 0.0) + share
    for own, found in zip(paid, cell.carried, strict=True):
        assert found == pytest.approx(own, rel=1e-5)


def test_of_what_a_method_protects_the_oldest_goes_where_only_text_is_left_beside_it():
    """Text may not go, and nothing else is left: H2O's recent tokens slide on."""
    policy = methods.build("h2o", protect="text", recent=8)
    positions = torch.tensor([[[*range(6), 40, 41, 42, 43]]])
    step = methods.Step(
        held=[methods.Held(30, 9, 9, 1)], positions=positions, budgets=torch.tensor([[9]]),
        seen=44, new=1, layer=0, num_layers=1, attention=torch.rand(1, 2, 1, 10),
        carried=torch.rand(1, 1, 10), text=positions < 6,
    )  # fmt: skip
    assert policy.drop(step, step.carried, 1).tolist() == [[[6]]]  # position 40
    assert policy.drop(step, step.carried, 2).tolist() == [[[6, 7]]]


def test_random_victims_are_spread_and_do_not_depend_on_the_batch():
    policy = methods.build("random", decode="hold", seed=3)
    positions = torch.arange(40).repeat(2, 3, 1)
    held = methods.Held(40, 39, 39, 1)
    counts = torch.zeros(40)
    for seen in range(40, 2040):
        step = methods.Step([held] * 2, positions, torch.full((2, 3), 39), seen, 1, 0, 1)
        gone = policy.drop(step, None, 1)
        assert torch.equal(gone[0], gone[1])
        alone = dataclasses.replace(step, held=[held], positions=positions[:1])
        assert torch.equal(policy.drop(alone, None, 1)[0], gone[0])
        counts += torch.bincount(gone[0].flatten(), minlength=40)
    # 6,000 draws over 40 places: 150 each, standard deviation 12.
    assert float((counts - 150).abs().max()) < 5 * 12.1


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ({"decode": "buffer", "buffer": 1}, "2 or more, as decode=hold"),
        ({"decode": "buffer", "buffer": 0}, "a whole number, 1 or more"),
        ({"decode": "buffer", "buffer": 2.0}, "a whole number, 1 or more"),
        ({"buffer": 64}, "decode=buffer with it, as decode=hold gathers no tokens"),
        ({"decode": "every"}, "one of hold, grow, buffer"),
    ],
)
def test_a_buffer_that_means_nothing_is_refused(given, allowed):
    for name in ("h2o", "tova", "streaming_llm", "lacache", "criticalkv_h2o"):
        with pytest.raises(ValueError, match=f"{name}: .*give {allowed}") as told:
            methods.build(name, **given)
        assert str(told.value).count(".") <= 2


@pytest.mark.parametrize("name", ["snapkv", "restkv", "keydiff", "criticalkv", "full"])
def test_methods_without_a_rule_for_decoding_take_none(name):
    with pytest.raises(ValueError, match=f"{name} has no parameter 'decode'"):
        methods.build(name, decode="hold")
    assert methods.build(name).decode == "grow"
    assert not methods.build(name).observes
