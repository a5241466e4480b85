"""Numbers that are not numbers: which of them fail a cell, and which end everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from test_graphs import Replayed, growing, replayed
from tiny_models import BUILDERS, EOS, make_prompt, wrap
from transformers import DynamicCache

import harness
import methods
from harness.engine import Branch, BranchResult, Engine, Generation, NotFinite, Protocol
from harness.engine.prefill import _finite
from harness.engine.settings import PROTOCOLS
from methods.policy import Policy
from tests.methods import matrix

__all__ = ["replayed"]  # a fixture
TOKENS = 6
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def llama():
    """A model of our own, for these tests break it."""
    return wrap(BUILDERS["llama"]())


def branches(*names: str) -> list[Branch]:
    return [Branch(), *(Branch(methods.build(name), ratio=0.7) for name in names or ("random",))]


def run(loaded, cells: list[Branch], generation=None, **options) -> list[BranchResult]:
    protocol = Protocol(options.pop("protocol", "replay"))
    engine, wanted = Engine(loaded, protocol), generation or Generation(TOKENS)
    return engine.run(make_prompt("llama", seed=4), cells, wanted, ("A", "B"), **options)


def counted(results: list[BranchResult]) -> list[int]:
    return [result.nonfinite_tokens for result in results]


def on_logits(loaded, change, first=0):
    """Change logits [B, q, V] in place from the `first` pass on."""
    passes = iter(range(10_000))

    def hook(module, inputs, output):
        if next(passes) >= first:
            change(output)

    loaded.model.get_output_embeddings().register_forward_hook(hook)


def fill(where, value):
    def change(logits):
        logits[where] = value

    return change


@pytest.mark.parametrize(
    ("change", "sound"),
    [
        (fill((..., slice(100, 160)), -INF), True),  # a vocabulary that the head rules out in part
        (fill((..., 0), NAN), False),
        (fill((..., 159), NAN), False),
        (fill((..., 77), INF), False),
        (fill(..., -INF), False),
    ],
)
@pytest.mark.parametrize("first", [0, 1, 3])
def test_what_makes_logits_no_numbers(llama, change, sound, first):
    on_logits(llama, change, first)
    if sound:
        assert counted(run(llama, branches())) == [0, 0]
        return
    with pytest.raises(NotFinite, match=r"not finite .* in float32, the widest .*weights of tiny"):
        run(llama, branches())
    found = counted(run(llama, branches(), stop=False))
    # By now every pass is touched, the prompt's own among them.
    assert found == [TOKENS, TOKENS]


def test_only_the_steps_after_the_fault_count(llama):
    """The prompt's pass and those for the first two tokens are sound."""
    Engine(llama).check(make_prompt("llama", seed=4))  # whose passes come before
    on_logits(llama, fill((0, ..., 5), NAN), first=3)  # row 0 is the full cache, by far the largest
    assert counted(run(llama, branches("random", "snapkv"), stop=False)) == [TOKENS - 2, 0, 0]


@pytest.mark.parametrize("protocol", PROTOCOLS[::2])
def test_a_word_with_a_broken_embedding_fails_the_cells_that_say_it(llama, protocol):
    """The oracle is the same run with sound weights: what was said before the word stays."""
    cells = branches("random", "snapkv", "streaming_llm", "tova", "h2o")
    free = run(llama, cells, protocol=protocol)
    prompt = set(make_prompt("llama", seed=4).inputs["input_ids"][0].tolist())
    full = set(free[0].token_ids)
    words = [t for r in free[1:] for t in r.token_ids[:-1] if t not in prompt | full]
    assert words
    llama.model.get_input_embeddings().weight.data[words[0]] = NAN
    found = run(llama, cells, protocol=protocol)
    failed = 0
    for before, after in zip(free, found, strict=True):
        said = before.token_ids.index(words[0]) + 1 if words[0] in before.token_ids else TOKENS
        assert after.token_ids[:said] == before.token_ids[:said]
        assert after.nonfinite_tokens == TOKENS - said
        assert after.letter_logits == before.letter_logits
        failed += after.nonfinite_tokens > 0
    assert 0 < failed < len(cells)
    llama.model.get_input_embeddings().weight.data[full.pop()] = NAN
    with pytest.raises(NotFinite):
        run(llama, cells, protocol=protocol)


def test_ruling_a_token_out_does_not_hide_its_logit(llama, monkeypatch):
    monkeypatch.setitem(llama.__dict__, "stop_ids", frozenset({EOS}))
    wanted = Generation(1, nonempty=True)
    on_logits(llama, fill((..., EOS), NAN), first=1)
    assert counted(run(llama, branches(), wanted, stop=False)) == [1, 1]


def test_a_repetition_penalty_that_overflows_counts(llama):
    llama.model.generation_config.repetition_penalty = 1e-39
    assert counted(run(llama, branches(), stop=False)) == [TOKENS, TOKENS]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_keys_and_values_of_a_prompt_have_to_be_numbers(value):
    """A key of -inf, met by queries of one sign, would get no attention and leave no trace."""
    cache = DynamicCache()
    for layer in range(2):
        cache.update(torch.ones(1, 2, 5, 4), torch.ones(1, 2, 5, 4), layer)
    logits = torch.tensor([[-INF, 0.0]])
    assert _finite(logits, cache)
    cache.layers[1].keys[0, 1, 3, 2] = value
    assert not _finite(logits, cache)


@dataclass(frozen=True, kw_only=True)
class Faulty(Policy):
    """Scores by position, but for one token; the last two are protected."""

    name: ClassVar[str] = "faulty"
    value: float = NAN
    at: int = 3
    layer: int = 1

    def measure(self, view):
        scores = torch.arange(float(view.length)).expand(1, view.kv_heads, -1).clone()
        if view.layer == self.layer:
            scores[:, 1, self.at] = self.value
        return scores

    def plan(self, view, count):
        return super().plan(view, count)._replace(window=2)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_choice_by_scores_that_are_no_numbers_fails_the_cell(llama, value):
    """The logits are sound, for something is kept, but it is anything."""
    cells = [
        Branch(),
        Branch(Faulty(value=value), ratio=0.7),
        Branch(Faulty(value=value, at=-1), ratio=0.7),  # protected whatever it scores
        Branch(Faulty(value=value), ratio=0),  # nothing is chosen
        Branch(Faulty(value=7.0), ratio=0.7),
    ]
    assert counted(run(llama, cells)) == [0, TOKENS, 0, 0, 0]


def enlarge(llama) -> None:
    """Values so large that their distances overflow to the hundredth power."""
    for layer in llama.model.get_decoder().layers:
        layer.self_attn.v_proj.weight.data *= 1e4


def test_scores_that_overflow_fail_the_cell(llama):
    enlarge(llama)
    cells = [Branch(), Branch(methods.build("restkv", tau=100), ratio=0.7)]
    assert counted(run(llama, cells)) == [0, TOKENS]


@pytest.mark.parametrize("protocol", PROTOCOLS[::2])
def test_every_method_is_sound_where_the_model_is(llama, protocol):
    cells = branches(*matrix.NAMES)
    for name in ("restkv", "snapkv", "h2o"):
        for rule in ("pyramid", "adaptive"):
            cells.append(Branch(methods.build(name, budget=rule), ratio=0.7))
    assert not any(counted(run(llama, cells, protocol=protocol)))


def test_a_prompt_that_is_not_finite_is_not_decoded(llama, monkeypatch):
    monkeypatch.setattr("harness.engine.session.Answers.run_all", None)
    llama.model.get_decoder().layers[1].self_attn.v_proj.weight.data[5] = NAN
    with pytest.raises(NotFinite):
        run(llama, branches())


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (torch.float16, r"in float16: give dtype=bfloat16 or dtype=float32\.$"),
        (torch.bfloat16, r"in bfloat16: give dtype=float32\.$"),
    ],
)
def test_an_overflow_names_the_dtype_to_try(dtype, advice):
    loaded = wrap(BUILDERS["llama"]())
    large = 1e5 if dtype == torch.float16 else 3e38
    loaded.model.get_decoder().layers[1].mlp.down_proj.weight.data *= large
    loaded.model.to(dtype)
    loaded.dtype = dtype
    with pytest.raises(NotFinite, match=advice):
        run(loaded, branches())


def test_a_graph_is_not_given_up_for_a_cell_that_failed(replayed, loaded_models, recwarn):
    def spoil(module, inputs, output):
        output[1:, :, 5] = NAN  # every cell but the full cache

    capture = Replayed()
    handle = loaded_models["llama"].model.get_output_embeddings().register_forward_hook(spoil)
    try:
        found = replayed(capture, growing())
    finally:
        handle.remove()
    assert capture.replays > 10
    assert not [w for w in recwarn if "CUDA graphs" in str(w.message)]
    assert counted(found) == [0, *(len(r.token_ids) for r in found[1:])]


def test_one_copy_a_step_tells_tokens_and_faults(llama, monkeypatch):
    """Every copy from the device waits for it."""
    copies, original = [], torch.Tensor.tolist

    def tolist(tensor):
        copies.append(tuple(tensor.shape))
        return original(tensor)

    run(llama, branches())
    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    run(llama, branches())
    assert copies.count((2, 2)) == TOKENS + 1  # [tokens and peaks, cells], and the letters' logits


@pytest.mark.parametrize("protocol", PROTOCOLS[::2])
def test_generate_refuses_to_keep_anything(llama, protocol):
    enlarge(llama)
    prompt = make_prompt("llama", seed=4)
    with (
        harness.evict(llama.model, "restkv", ratio=0.7, protocol=protocol, tau=100) as model,
        pytest.raises(ValueError, match=r"not finite .* in float32, so what is kept"),
    ):
        model.generate(**prompt.inputs, max_new_tokens=2, do_sample=False)
