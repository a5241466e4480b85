"""What cells kept of each prompt token, against what their caches hold; where images lie."""

from __future__ import annotations

from types import SimpleNamespace

import masked_oracle as oracle
import pytest
import torch
from engine_helpers import Scatter, Trace, run_with_logits
from tiny_models import CASES, KINDS, PROTOCOLS, make_prompt

import methods
from harness.engine import Branch, Engine, Generation, session
from harness.engine.inputs import grids

POLICIES = [
    ("restkv", {"window": 4}),
    ("restkv", {"window": 4, "budget": "adaptive"}),
    ("snapkv", {"window": 4, "budget": "pyramid"}),
    ("h2o", {}),
    ("tova", {}),
    ("streaming_llm", {"sinks": 2}),
    ("lacache", {"start": 2}),
    ("random", {"protect": "text"}),
    ("snapkv", {"window": 4, "budget": "adaptive", "protect": "boundary"}),
]


def branches() -> list[Branch]:
    built = [methods.build(name, **params) for name, params in POLICIES]
    amounts = [Branch(policy, ratio=ratio) for policy in built for ratio in (0.0, 0.4, 0.8)]
    return [Branch(), *amounts, Branch(built[0], budget=3)]


def shares(layers: dict, cell: int, length: int) -> list[float]:
    """Counted entry by entry, from the positions that each head of each layer holds."""
    heads = [places for layer in layers.values() for places in layer[cell]]
    return [sum(token in places for places in heads) / len(heads) for token in range(length)]


@pytest.mark.parametrize("size", ["auto", 3])
@pytest.mark.parametrize("kind", KINDS)
def test_shares_are_what_the_caches_hold_right_after_the_eviction(
    loaded_models, kind, size, monkeypatch
):
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=5)
    engine, asked = Engine(loaded, cells_per_batch=size), branches()
    seen = Trace(monkeypatch)
    results = engine.run(prompt, asked, Generation(1), trace=True)
    length = engine.boundary(prompt)
    held = [layers for layers, _ in seen.passes]
    count = [len(next(iter(layers.values()))) for layers in held]
    wanted = [
        shares(layers, cell, length)
        for layers, cells in zip(held, count, strict=True)
        for cell in range(cells)
    ]
    order = sorted(range(len(asked)), key=lambda i: -_count(asked[i], length))
    assert len(wanted) == len(asked)
    assert len({share for row in wanted for share in row}) > 3  # heads and layers differ
    for i, expected in zip(order, wanted, strict=True):
        assert results[i].kept_shares == pytest.approx(expected, abs=1e-6)
        assert len(results[i].kept_shares) == results[i].evictable_tokens == length


def _count(branch: Branch, length: int) -> int:
    if branch.policy is None:
        return length
    return branch.budget or length - int(branch.ratio * length + 1e-9)


@pytest.mark.parametrize(("kind", "protocol"), CASES)
def test_shares_add_up_to_what_was_kept(loaded_models, kind, protocol):
    prompt, engine = make_prompt(kind, seed=6), Engine(loaded_models[kind], PROTOCOLS[protocol])
    asked = branches()
    results = engine.run(prompt, asked, Generation(3), trace=True)
    image = prompt.modality[: engine.boundary(prompt)].bool()
    for branch, result in zip(asked, results, strict=True):
        found = torch.tensor(result.kept_shares)
        assert found.sum().item() == pytest.approx(result.kept_tokens, abs=1e-4)
        assert found[image].sum().item() == pytest.approx(result.kept_image, abs=1e-4)
        assert found.min() >= 0
        assert found.max() <= 1
        if branch.policy is None or branch.ratio == 0:
            assert set(result.kept_shares) == {1.0}


@pytest.mark.parametrize("kind", ["llava", "qwen", "llama"])
def test_shares_are_those_of_the_masks_that_explain_the_answer(loaded_models, kind, monkeypatch):
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=23)
    engine, policy = Engine(loaded), Scatter(3)
    boundary = engine.boundary(prompt)
    run, trace = engine.run, {"trace": True}
    monkeypatch.setattr(engine, "run", lambda *given: run(*given, **trace))
    (cell,), logits = run_with_logits(monkeypatch, engine, prompt, [Branch(policy, budget=9)], 4)
    masks = {a.index: policy.mask(a.rank, 9, boundary) for a in engine.layout.layers}
    explained = oracle.logits(loaded.model, prompt, cell.token_ids, masks, boundary)
    torch.testing.assert_close(logits[:, 0], explained, rtol=1e-4, atol=1e-4)
    expected = torch.stack([*masks.values()]).float().mean((0, 1))
    assert cell.kept_shares == pytest.approx(expected.tolist(), abs=1e-6)
    assert 0 < expected.max() < 1 or len(expected.unique()) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_changes_no_answer_and_is_there_only_when_asked(loaded_models, kind):
    prompt, engine = make_prompt(kind, seed=8), Engine(loaded_models[kind])
    plain = engine.run(prompt, branches(), Generation(4), ("A", "B"))
    traced = engine.run(prompt, branches(), Generation(4), ("A", "B"), trace=True)
    for before, after in zip(plain, traced, strict=True):
        assert before.kept_shares is None
        assert before.shown is None
        assert after.kept_shares is not None
        skip = {"timings", "kept_shares", "shown"}
        same = [k for k in vars(before) if k not in skip]
        assert [vars(before)[k] for k in same] == [vars(after)[k] for k in same]


def test_a_prompt_that_nobody_could_look_at_is_not_traced(loaded_models, monkeypatch):
    prompt, engine = make_prompt("llama"), Engine(loaded_models["llama"])
    length = engine.boundary(prompt)
    for limit, told in ((length, True), (length - 1, False)):
        monkeypatch.setattr(session, "TRACED", limit)
        (found,) = engine.run(prompt, [Branch()], Generation(1), trace=True)
        assert (found.kept_shares is not None, found.shown is not None) == (told, told)


def test_a_batch_that_did_not_fit_is_traced_once(loaded_models, monkeypatch):
    prompt, engine = make_prompt("llava", seed=2), Engine(loaded_models["llava"])
    wanted = engine.run(prompt, branches(), Generation(1), trace=True)
    original = engine.decoder.run

    def small(cache, cells, *rest):
        if cells > 4:
            raise torch.OutOfMemoryError("no room")
        return original(cache, cells, *rest)

    monkeypatch.setattr(engine.decoder, "run", small)
    found = engine.run(prompt, branches(), Generation(1), trace=True)
    assert [r.kept_shares for r in found] == [r.kept_shares for r in wanted]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llava", [(5, 4, 4)]),
        ("qwen", [(5, 3, 4), (20, 2, 3)]),
        ("gemma", [(5, 2, 2), (12, 2, 2)]),
        ("llama", []),
    ],
)
def test_a_shown_prompt_tells_its_tokens_and_where_images_lie(loaded_models, kind, expected):
    prompt, engine = make_prompt(kind), Engine(loaded_models[kind])
    (found,) = engine.run(prompt, [Branch()], Generation(1), trace=True)
    assert found.shown.grids == expected
    ids = prompt.inputs["input_ids"][0].tolist()
    assert found.shown.tokens == [engine.loaded.tokenizer.decode([i]) for i in ids]


def _named(*sizes: tuple[int, int, int]) -> dict:
    return {"image_grid_thw": torch.tensor(sizes)}


def _pixels(*shape: int) -> dict:
    return {"pixel_values": torch.zeros(shape)}


NINE, SIXTEEN = [0, *[1] * 9, 0], [0, *[1] * 16, 0]
CONFIG = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2))


@pytest.mark.parametrize(
    ("inputs", "kinds", "expected"),
    [
        (_named((1, 4, 8)), [*[1] * 8, 0], [(0, 2, 4)]),
        (_named((1, 4, 8), (1, 4, 4)), [0, *[1] * 12], [(1, 2, 4), (9, 2, 2)]),  # they touch
        (_named((1, 4, 8)), [*[1] * 7, 0], []),  # more than there are
        (_named((1, 4, 8)), [*[1] * 9, 0], []),  # fewer than there are
        (_named((1, 4, 8)), [*[1] * 4, 0, *[1] * 4], []),  # something between the rows
        (_named((2, 4, 8)), [*[1] * 16], []),  # a video
        (_pixels(1, 3, 8, 8), NINE, [(1, 3, 3)]),
        (_pixels(1, 3, 8, 9), NINE, []),
        (_pixels(1, 3, 8, 8), [1] * 8, []),
        (_pixels(4, 3, 8, 8), SIXTEEN, []),  # four images of four that touch, or four crops
        (_pixels(1, 5, 3, 8, 8), NINE, []),  # crops of one image
        (_pixels(1, 3, 8, 8, 4), NINE, []),
        (_pixels(1, 27), NINE, []),  # patches
        ({**_pixels(1, 3, 8, 8), "image_sizes": torch.ones(1, 2)}, NINE, []),
        ({}, NINE, []),
        ({}, [0, 0], []),
    ],
)
def test_a_grid_is_told_only_where_it_is_known(inputs, kinds, expected):
    assert grids(CONFIG, inputs, torch.tensor(kinds)) == expected


def test_a_named_size_without_its_unit_is_no_grid():
    assert grids(SimpleNamespace(), _named((1, 4, 8)), torch.tensor([1] * 8)) == []
