"""The engine with kernels against the engine in plain torch, on tiny random models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import harness
import methods
from harness.engine import Branch, Engine, Generation, Protocol
from methods import kernels

sys.path.append(str(Path(__file__).parents[1] / "engine"))

from rotary_models import make
from tiny_models import BUILDERS, make_prompt, wrap

GROWING = [("restkv", {"window": 6}), ("snapkv", {"window": 6, "budget": "adaptive"})]
HOLDING = [
    ("h2o", {}),
    ("tova", {}),
    ("streaming_llm", {"sinks": 2}),
    ("lacache", {"span": 1, "start": 2}),
]
RE_INDEXED = [
    ("streaming_llm", {"sinks": 2, "positions": "cache"}),
    ("lacache", {"span": 1, "start": 2, "positions": "cache", "decode": "grow"}),
]


def cells(variants):
    policies = [methods.build(name, **params) for name, params in variants]
    return [Branch(), *(Branch(policy, 0.6) for policy in policies)]


def run(model, prompt, branches, choice, protocol="replay", tokens=2):
    engine = Engine(wrap(model), Protocol(protocol), kernels=choice)
    return engine.run(prompt, branches, Generation(tokens), ("A", "B"))


def expect_same(model, prompt, variants, protocol="replay"):
    found = [run(model, prompt, cells(variants), each, protocol) for each in ("triton", "torch")]
    for got, wanted in zip(*found, strict=True):
        assert got.token_ids == wanted.token_ids
        assert got.kept_tokens == wanted.kept_tokens
        assert got.letter_logits == pytest.approx(wanted.letter_logits, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", [pytest.param("qwen", marks=pytest.mark.slow), "gemma"])
def test_answers_are_those_of_plain_torch(kind):
    expect_same(BUILDERS[kind](), make_prompt(kind), GROWING + HOLDING)


@pytest.mark.slow
def test_a_question_that_is_read_after_the_eviction():
    expect_same(BUILDERS["llava"](), make_prompt("llava"), GROWING + HOLDING[:2], "context")


@pytest.mark.parametrize("scaling", [pytest.param("dynamic", marks=pytest.mark.slow), "cohere"])
def test_re_indexed_positions(scaling):
    expect_same(make(scaling), make_prompt("llama"), GROWING[:1] + RE_INDEXED)


def test_every_operation_of_the_engine_is_launched(monkeypatch):
    names = set()

    def noting(name, original):
        return lambda *args, **options: names.add(name) or original(*args, **options)

    for name, module in list(sys.modules.items()):
        if name.startswith("methods.kernels.") and callable(getattr(module, "launch", None)):
            short = name.rpartition(".")[2]
            monkeypatch.setattr(module, "launch", noting(short, module.launch))
    variants = [*GROWING[:1], *HOLDING[:2]]
    run(BUILDERS["llama"](), make_prompt("llama"), cells(variants), "triton")
    wanted = {"gather_entries", "append_entries", "move_entries", "ragged_attention"}
    wanted |= {"window_lse", "window_columns", "reconstruction", "pooling"}
    wanted |= {"row_lse", "column_sums", "lowest_entries"}
    assert names == wanted
    names.clear()
    run(BUILDERS["llama"](), make_prompt("llama"), cells(variants), "torch")
    assert not names


@torch.no_grad()
def test_evicting_inside_generate():
    model, ids = BUILDERS["llama"]().eval(), make_prompt("llama").inputs["input_ids"]
    answers = []
    for choice in ("triton", "torch"):
        with harness.evict(model, "snapkv", ratio=0.7, window=6, kernels=choice):
            answers.append(model.generate(ids, max_new_tokens=5, do_sample=False).tolist())
    assert answers[0] == answers[1]


def test_what_the_engine_cannot_do_is_refused():
    loaded = wrap(BUILDERS["llama"]())
    with pytest.raises(ValueError, match="auto, triton, torch"):
        Engine(loaded, kernels="fast")
    with pytest.raises(ValueError, match="cuda_graphs=true needs a CUDA device, not cpu"):
        Engine(loaded, cuda_graphs=True)
    with pytest.raises(ValueError, match="cuda_graphs='yes' is not allowed; give auto, true"):
        Engine(loaded, cuda_graphs="yes")
    with (
        kernels.using("auto"),
        pytest.raises(ValueError, match="auto, triton, torch"),
        harness.evict(loaded.model, "snapkv", ratio=0.5, kernels="fast"),
    ):
        pass
