"""Cells in batches: halved where memory lacks, and each stopped by itself."""

from __future__ import annotations

import pytest
import torch
from engine_helpers import Scatter
from test_sharing import questions
from tiny_models import BUILDERS, EOS, make_prompt, random_ids, wrap

import methods
from harness.engine import Branch, Engine, Generation, Protocol
from harness.engine import branch as branching
from harness.engine import sharing as sharing_module
from harness.settings.caches import HostValues, Quantized


def grid(*names: str, ratios=(0.5, 0.9)) -> list[Branch]:
    policies = [methods.build(name) for name in names or ("snapkv", "random")]
    return [Branch()] + [Branch(policy, ratio=r) for policy in policies for r in ratios]


@pytest.mark.parametrize("size", [1, 3, 7, "auto"])
def test_batches_of_cells_give_the_same_answers(loaded_models, size):
    loaded, prompt = loaded_models["qwen"], make_prompt("qwen", seed=8)
    branches = grid("restkv", "h2o", "random")
    whole = Engine(loaded).run(prompt, branches, Generation(4), ("A", "D"))
    split = Engine(loaded, cells_per_batch=size).run(prompt, branches, Generation(4), ("A", "D"))
    for one, other in zip(whole, split, strict=True):
        assert one.token_ids == other.token_ids
        assert one.letter_logits == pytest.approx(other.letter_logits, abs=1e-4)
        assert one.kept_image == other.kept_image


def on_cuda() -> None:
    raise torch.OutOfMemoryError("no room")


def on_the_cpu() -> None:
    torch.empty(10**15)  # what its allocator raises


def in_python() -> None:
    raise MemoryError


def test_other_errors_of_a_batch_are_no_lack_of_memory(loaded_models, monkeypatch):
    engine = Engine(loaded_models["llama"])
    monkeypatch.setattr(engine.decoder, "run", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        engine.run(make_prompt("llama"), grid("random"), Generation(1))


no_room = pytest.mark.parametrize("fail", [on_cuda, on_the_cpu, in_python])


@no_room
def test_a_batch_that_does_not_fit_is_halved(loaded_models, monkeypatch, fail):
    """By bytes: cells that keep little, and those of shorter prompts, still go together."""
    loaded, prompt = loaded_models["llama"], make_prompt("llama")
    branches = grid("restkv", "h2o", "random")
    wanted = Engine(loaded).run(prompt, branches, Generation(3))
    engine = Engine(loaded)
    sizes, original = [], engine.decoder.run

    def small(cache, cells, *rest):
        sizes.append(cells)
        if int(cache.layers[0].tiles.counts.sum()) > 2 * 60:  # two heads
            fail()
        return original(cache, cells, *rest)

    monkeypatch.setattr(engine.decoder, "run", small)
    found = engine.run(prompt, branches, Generation(3))
    assert sizes == [7, 2, 5]
    assert [r.token_ids for r in found] == [r.token_ids for r in wanted]
    engine.run(prompt, branches, Generation(3))
    assert sizes[3:] == [2, 5]  # later prompts start from what fitted
    prompt.inputs["input_ids"], prompt.modality = random_ids(12, 0), prompt.modality[:12]
    engine.run(prompt, branches, Generation(1))
    assert sizes[5:] == [7]


@no_room
def test_one_cell_that_does_not_fit_says_so(loaded_models, monkeypatch, fail):
    engine = Engine(loaded_models["llama"])

    def never(*_):
        fail()

    monkeypatch.setattr(engine.decoder, "run", never)
    with pytest.raises(ValueError, match="one cell of 36 prompt tokens"):
        engine.run(make_prompt("llama"), grid(), Generation(1))
    monkeypatch.setattr(sharing_module, "prefill", never)
    with pytest.raises(ValueError, match="a prompt of 36 tokens does not fit"):
        engine.run(make_prompt("llama"), grid(), Generation(1))


def test_cells_stop_one_by_one_and_the_rest_goes_on(monkeypatch):
    loaded, prompt = wrap(BUILDERS["llama"]()), make_prompt("llama", seed=6)
    branches = grid("random", "restkv", "snapkv", ratios=(0.3, 0.6, 0.9))
    free = Engine(loaded).run(prompt, branches, Generation(12))
    stop = free[0].token_ids[3]
    loaded.__dict__["stop_ids"] = frozenset({stop, free[4].token_ids[5], free[7].token_ids[0]})
    engine = Engine(loaded)
    stopped, logits = None, []
    original = engine.decoder._step

    def count(cache, ids, positions):
        logits.append(ids.shape[0])
        return original(cache, ids, positions)

    monkeypatch.setattr(engine.decoder, "_step", count)
    stopped = engine.run(prompt, branches, Generation(12))
    for before, after in zip(free, stopped, strict=True):
        ends = [i for i, t in enumerate(before.token_ids) if t in loaded.stop_ids]
        wanted = before.token_ids[: ends[0] + 1] if ends else before.token_ids
        assert after.token_ids == wanted
        assert after.exposed_tokens in (0, max(1, len(wanted) - bool(ends)))
        assert not set(after.text.split()) & {f"w{t - 9}" for t in loaded.stop_ids}
    assert logits[0] == len(branches)


def test_finished_cells_leave_the_batch(monkeypatch):
    loaded, prompt = wrap(BUILDERS["gemma"]()), make_prompt("gemma", seed=6)
    policies = [Scatter(seed) for seed in range(7)]
    branches = [Branch(p, budget=2) for p in policies] + [Branch()]
    engine = Engine(loaded)
    sizes, original = [], engine.decoder._step
    script = iter([[EOS] * 6 + [20, 21], [22, EOS], [23], [EOS]])

    def count(cache, ids, positions):
        sizes.append(ids.shape[0])
        return original(cache, ids, positions)

    monkeypatch.setattr(engine.decoder, "stop_ids", frozenset({EOS}))
    monkeypatch.setattr(engine.decoder, "_step", count)
    monkeypatch.setattr(engine.decoder, "_choose", lambda *_: chosen(*next(script)))
    results = engine.run(prompt, branches, Generation(9))
    assert sizes == [8, 2, 1, 1]
    # Largest first: the full cache sits in row 0 and finishes with the first six.
    assert results[-1].token_ids == [EOS]
    assert sorted(map(len, (r.token_ids for r in results))) == [1] * 6 + [2, 4]


def chosen(*tokens):
    """What the decoder takes from logits: the highest of each row, and its token."""
    return torch.zeros(len(tokens)), torch.tensor(tokens)


def test_until_cuts_the_text_and_the_count_of_scored_tokens(loaded_models):
    loaded, prompt = loaded_models["llama"], make_prompt("llama", seed=4)
    branches = [Branch(), Branch(methods.build("random"), ratio=0.5)]
    free = Engine(loaded).run(prompt, branches, Generation(8))
    word = free[1].text.split()[3]
    found = Engine(loaded).run(prompt, branches, Generation(8, (word, "never")))[1]
    assert found.text == free[1].text.split(word)[0]
    assert len(found.token_ids) == 4
    assert found.exposed_tokens == 3


@pytest.mark.parametrize(("protocol", "exposed"), [("replay", 1), ("paper", 0)])
def test_an_answer_that_stops_at_once_was_still_decided_somewhere(
    loaded_models, monkeypatch, protocol, exposed
):
    """An empty answer is scored too; under `replay` its stop token is from the compacted cache."""
    loaded, prompt = loaded_models["llama"], make_prompt("llama", seed=4)
    engine = Engine(loaded, Protocol(protocol))
    monkeypatch.setattr(engine.decoder, "stop_ids", frozenset({EOS}))
    monkeypatch.setattr(engine.decoder, "_choose", lambda *_: chosen(EOS, EOS))
    monkeypatch.setitem(loaded.__dict__, "stop_ids", frozenset({EOS}))
    branches = [Branch(), Branch(methods.build("random"), ratio=0.5)]
    full, cell = engine.run(prompt, branches, Generation(3))
    assert (full.text, cell.text) == ("", "")
    assert (full.exposed_tokens, cell.exposed_tokens) == (0, exposed)


def test_batches_of_a_context_and_of_its_control_are_built_once(loaded_models, monkeypatch):
    """Cells that fetch have a batch of their own beside that of the others."""
    built, build = [], branching.build
    monkeypatch.setattr(branching, "build", lambda *a: built.append(len(a[2])) or build(*a))
    engine = Engine(loaded_models["llava"], Protocol("context"))
    branches = [Branch(), Branch(cache=Quantized(4, 8, 4)), Branch(cache=HostValues(0.5, 4))]
    for prompt, control in zip(questions("llava", 5), questions("llava", 5, 7), strict=True):
        engine.run(prompt, branches, Generation(1))
        engine.run(control, branches[:1], Generation(1))
    first = [2, 1, 1]  # of which nothing is left for a second question
    assert built == first * 2
