"""The four oracles: plain generate, masked full attention, independence of cells, protocols."""

from __future__ import annotations

import masked_oracle as oracle
import pytest
import torch
from engine_helpers import Scatter, run_with_logits
from tiny_models import CASES, KINDS, PROTOCOLS, make_prompt

import methods
from harness.engine import Branch, Engine, Generation, Protocol
from tests.methods import matrix

TOKENS = 5
LETTERS = ("A", "B", "C", "D")


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "protocol"), CASES)
def test_ratio_zero_equals_plain_generate(loaded_models, kind, protocol, monkeypatch):
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=11)
    with oracle.attention(loaded.model, "sdpa"):
        plain = loaded.model.generate(
            **prompt.inputs,
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
    wanted = torch.cat(plain.logits)
    engine = Engine(loaded, PROTOCOLS[protocol])
    branches = [Branch(), Branch(Scatter(1), ratio=0.0), Branch(methods.build("h2o"), ratio=0.0)]
    results, logits = run_with_logits(monkeypatch, engine, prompt, branches, TOKENS)
    for cell, result in enumerate(results):
        assert result.token_ids == plain.sequences[0, prompt.modality.shape[0] :].tolist()
        close(logits[:, cell], wanted[-logits.shape[0] :])
    assert logits.shape[0] == (TOKENS - 1 if protocol == "paper" else TOKENS)


@pytest.mark.parametrize(("kind", "protocol"), CASES)
def test_decoded_logits_equal_the_masked_full_model(loaded_models, kind, protocol, monkeypatch):
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=23)
    engine = Engine(loaded, PROTOCOLS[protocol])
    boundary = engine.boundary(prompt)
    policies = [Scatter(seed) for seed in range(3)]
    branches = [Branch(p, budget=n) for p in policies for n in (1, 5, boundary - 1)] + [Branch()]
    results, logits = run_with_logits(monkeypatch, engine, prompt, branches, TOKENS)
    changed = 0
    for cell, (branch, result) in enumerate(zip(branches, results, strict=True)):
        kept = {}
        if branch.policy is not None:
            kept = {
                layer.index: branch.policy.mask(layer.rank, branch.budget, boundary)
                for layer in engine.layout.layers
            }
        wanted = oracle.logits(loaded.model, prompt, result.token_ids, kept, boundary)
        close(logits[:, cell], wanted[-logits.shape[0] :])
        whole = oracle.logits(loaded.model, prompt, result.token_ids)
        changed += not torch.allclose(wanted, whole, rtol=1e-3, atol=1e-3)
    assert changed >= 6  # the test would be empty if eviction did not matter


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_long_answers_outgrow_the_first_buffer(loaded_models, kind, monkeypatch):
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=29)
    engine, policy = Engine(loaded), Scatter(5)
    boundary = engine.boundary(prompt)
    branches = [Branch(), Branch(policy, budget=6)]
    results, logits = run_with_logits(monkeypatch, engine, prompt, branches, 50)
    kept = {layer.index: policy.mask(layer.rank, 6, boundary) for layer in engine.layout.layers}
    for cell, masks in ((0, {}), (1, kept)):
        wanted = oracle.logits(loaded.model, prompt, results[cell].token_ids, masks, boundary)
        close(logits[:, cell], wanted)


def test_layers_may_keep_different_amounts(loaded_models, monkeypatch):
    loaded, prompt = loaded_models["qwen"], make_prompt("qwen", seed=17)
    engine = Engine(loaded)
    boundary = engine.boundary(prompt)
    policies = [Scatter(5, more=3), Scatter(6, more=1), Scatter(7)]
    branches = [Branch(policy, budget=8) for policy in policies]
    results, logits = run_with_logits(monkeypatch, engine, prompt, branches, TOKENS)
    for cell, (policy, result) in enumerate(zip(policies, results, strict=True)):
        layers = engine.layout.layers
        kept = {layer.index: policy.mask(layer.rank, 8, boundary) for layer in layers}
        wanted = oracle.logits(loaded.model, prompt, result.token_ids, kept, boundary)
        close(logits[:, cell], wanted)
        assert result.kept_tokens == pytest.approx(8 + policy.more)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_alone_equals_the_cell_among_thirty(loaded_models, kind, monkeypatch):
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=37)
    engine = Engine(loaded)
    policies = [methods.build(name) for name in ("restkv", "snapkv", "h2o", "tova", "random")]
    branches = [Branch(p, ratio=r) for p in policies for r in (0.0, 0.3, 0.5, 0.7, 0.9, 0.95)]
    branches.append(Branch())
    together, logits = run_with_logits(monkeypatch, engine, prompt, branches, TOKENS)
    for cell in (0, 7, 16, 29, 30):
        alone, single = run_with_logits(monkeypatch, engine, prompt, [branches[cell]], TOKENS)
        close(single[:, 0], logits[:, cell])
        assert alone[0].token_ids == together[cell].token_ids
        assert alone[0].kept_image == pytest.approx(together[cell].kept_image)


@pytest.mark.parametrize("kind", KINDS)
def test_paper_gives_the_full_first_token_and_replay_does_not(loaded_models, kind):
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=5)
    rotary = kind not in ("qwen", "gemma")  # M-RoPE; layers with frequencies of their own
    refused = ("full",) if rotary else ("full", "expected_attention")
    names = [name for name in matrix.NAMES if name not in refused]
    branches = [Branch()] + [Branch(methods.build(name), ratio=0.9) for name in names]
    results = {
        name: Engine(loaded, Protocol(name)).run(prompt, branches, Generation(2), LETTERS)
        for name in ("paper", "replay")
    }
    full = results["paper"][0]
    for cell in results["paper"][1:]:
        assert cell.token_ids[0] == full.token_ids[0]
        assert cell.letter_logits == full.letter_logits
        assert cell.exposed_tokens == 1
    assert full.exposed_tokens == 0
    for cell in results["replay"][1:]:
        assert cell.letter_logits != pytest.approx(full.letter_logits, abs=1e-3)
        assert cell.exposed_tokens == 2
    assert results["replay"][0].letter_logits == pytest.approx(full.letter_logits, abs=1e-4)
