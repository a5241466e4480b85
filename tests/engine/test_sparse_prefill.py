"""Sparse prefill against the plain model, its attention masked token by token to the blocks that
plain loops of the published rules choose, and against kept sets that plain code computes from it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from engine_helpers import run_with_logits
from sparse_oracle import PATTERNS, TOKENS, WINDOW, Masked, pattern_of, restkv, snapkv
from tiny_models import build_llama, make_prompt, random_ids, text, wrap
from transformers import (
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

import harness
import methods
from harness import sparse
from harness.engine import Branch, Engine, Generation, Protocol, masked
from harness.models.prompts import Prompt


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(5)
    sizes = text(num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=1024)
    return wrap(LlamaForCausalLM(LlamaConfig(**sizes)))


def plain(length, seed=0):
    return Prompt({"input_ids": random_ids(length, seed)}, torch.zeros(length).long(), 0, None)


def longer(kind, length):
    """A prompt with images of that kind and so many tokens of text behind it."""
    prompt = make_prompt(kind, seed=3)
    more = length - prompt.modality.shape[0]
    inputs = dict(prompt.inputs)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], random_ids(more, 9)], dim=1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, more))
    return Prompt(inputs, torch.nn.functional.pad(prompt.modality, (0, more)), 3, prompt.context)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", PATTERNS)
def test_cells_are_those_of_the_masked_model_and_of_its_own_keys(llama, name, monkeypatch):
    """The prompt's keys, what SnapKV and ReST-KV keep of them, the blocks, and every logit."""
    prompt, budget = plain(641), 60
    boundary = 640
    policies = {
        snapkv: methods.build("snapkv", window=WINDOW),
        restkv: methods.build("restkv", window=WINDOW, spatial="none"),
    }
    branches = [Branch(), *(Branch(policy, budget=budget) for policy in policies.values())]
    engine = Engine(llama, Protocol("replay"), prefill=pattern_of(name))
    answers, _ = engine.prefilled(prompt, branches, Generation(1))
    wanted = Masked(name, boundary, {0, 1})
    wanted.run(llama.model, prompt)
    for layer in engine.layout.layers:
        query, key, value, scaling = wanted.shown[layer.index]
        query, key, value = (each[:, :boundary] for each in (query, key, value))
        close(answers.filled.cache.layers[layer.index].keys[0], key)
        mask = wanted.masks[layer.index]
        share = sum(sum(map(sum, head)) for head in mask) / (4 * 15)
        assert answers.filled.computed[layer.index] == pytest.approx(share)
        assert 5 / 15 < share < 1
        weight = layer.module.o_proj.weight
        for rule, policy in policies.items():
            chosen = answers.filled.selections[layer.rank][id(policy)][budget].positions[0]
            assert chosen.equal(rule(query, key, value, scaling, weight, budget)), rule.__name__

    results, logits = run_with_logits(monkeypatch, engine, prompt, branches, TOKENS)
    for cell, branch in enumerate(branches):
        if branch.policy is not None:
            wanted.kept = {
                layer.index: kept_mask(answers, layer, branch.policy, budget, boundary)
                for layer in engine.layout.layers
            }
        found = wanted.run(llama.model, prompt, results[cell].token_ids[:-1])
        close(logits[:, cell], found)
    assert results[0].timings["search"] > 0
    assert results[0].timings["prefill"] > results[0].timings["search"]
    assert results[0].computed_blocks == answers.filled.computed


def kept_mask(answers, layer, policy, budget, boundary):
    positions = answers.filled.selections[layer.rank][id(policy)][budget].positions[0]
    kept = torch.zeros(len(positions), boundary, dtype=torch.bool)
    return kept.scatter_(1, positions, True)


@pytest.mark.parametrize("kind", ["llava", "qwen"])
def test_prompts_with_images_are_read_so_too(loaded_models, kind, monkeypatch):
    loaded, prompt = loaded_models[kind], longer(kind, 421)
    engine = Engine(loaded, Protocol("replay"), prefill=pattern_of("a_shape"))
    results, logits = run_with_logits(monkeypatch, engine, prompt, [Branch()], TOKENS)
    wanted = Masked("a_shape", 420, {0, 1, 2})
    close(logits[:, 0], wanted.run(loaded.model, prompt, results[0].token_ids[:-1]))
    assert results[0].computed_blocks == {0: 0.9, 1: 0.9, 2: 0.9}


def test_layers_with_a_sliding_window_stay_as_they_are(loaded_models, monkeypatch):
    loaded, prompt = loaded_models["gemma"], plain(421)
    prompt.inputs["token_type_ids"] = torch.zeros(1, 421).long()
    engine = Engine(loaded, Protocol("replay"), prefill=pattern_of("a_shape"))
    results, logits = run_with_logits(monkeypatch, engine, prompt, [Branch()], TOKENS)
    wanted = Masked("a_shape", 420, {1, 3})
    close(logits[:, 0], wanted.run(loaded.model, prompt, results[0].token_ids[:-1]))
    assert results[0].computed_blocks == {1: 0.9, 3: 0.9}


def test_images_that_see_themselves_both_ways_are_refused(loaded_models):
    engine = Engine(loaded_models["gemma"], Protocol("replay"), prefill=pattern_of("a_shape"))
    with pytest.raises(ValueError, match=r"does not read this prompt causally .* prefill=dense"):
        engine.run(longer("gemma", 421), [Branch()], Generation(1))


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("length", [2, 100, 129])
def test_a_prompt_shorter_than_a_block_is_dense_to_the_last_bit(llama, name, length):
    prompt = plain(length)
    branches = [Branch(), Branch(methods.build("snapkv", window=WINDOW), ratio=0.5)]
    dense = Engine(llama).prefilled(prompt, branches, Generation(1))[0].filled
    found = Engine(llama, prefill=pattern_of(name)).prefilled(prompt, branches, Generation(1))[0]
    assert found.filled.logits.equal(dense.logits)
    for one, other in zip(found.filled.cache.layers, dense.cache.layers, strict=True):
        assert one.keys.equal(other.keys)
    assert found.filled.computed == {0: 1.0, 1: 1.0}


@pytest.mark.parametrize("protocol", ["replay", "paper"])
def test_generate_inside_evict_equals_the_engine(llama, protocol):
    prompt, pattern = plain(900), pattern_of("vertical_slash")
    policy = methods.build("snapkv", window=WINDOW)
    engine = Engine(llama, Protocol(protocol), prefill=pattern)
    (wanted,) = engine.run(prompt, [Branch(policy, ratio=0.8)], Generation(12))
    dense = Engine(llama, Protocol(protocol)).run(
        prompt, [Branch(policy, ratio=0.8)], Generation(12)
    )
    with harness.evict(llama.model, policy, ratio=0.8, protocol=protocol, prefill=pattern) as model:
        ids = model.generate(**prompt.inputs, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert ids[0, 900:].tolist() == wanted.token_ids
    assert wanted.token_ids != dense[0].token_ids  # else nothing was shown


def test_layers_that_share_keys_are_sparse_as_well(monkeypatch):
    torch.manual_seed(0)
    config = Gemma3nTextConfig(
        **text(num_hidden_layers=4, layer_types=["full_attention"] * 4),
        head_dim=16, vocab_size_per_layer_input=text()["vocab_size"], num_kv_shared_layers=2,
        hidden_size_per_layer_input=8, laurel_rank=4, activation_sparsity_pattern=[0.0] * 4,
    )  # fmt: skip
    loaded, prompt, pattern = wrap(Gemma3nForCausalLM(config)), plain(421), pattern_of("a_shape")
    policy = methods.build("streaming_llm", decode="grow")
    branches = [Branch(), Branch(policy, ratio=0.5)]
    engine = Engine(loaded, prefill=pattern)
    results, logits = run_with_logits(monkeypatch, engine, prompt, branches, TOKENS)
    wanted = Masked("a_shape", 420, {0, 1, 2, 3})
    close(logits[:, 0], wanted.run(loaded.model, prompt, results[0].token_ids[:-1]))
    assert results[0].computed_blocks == dict.fromkeys(range(4), 0.9)
    with harness.evict(loaded.model, policy, ratio=0.5, prefill=pattern):
        found = loaded.model.generate(
            **prompt.inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    close(logits[:, 1], torch.cat(found.logits))


def test_a_prompt_is_read_in_one_pass_and_a_shared_one_once(llama):
    """Where it is cut would change which blocks are computed."""
    prompt = replace(plain(641), context=400)
    branches = [Branch(methods.build("snapkv", window=WINDOW), ratio=0.5)]
    alone = Engine(llama, share_prefixes=False, prefill=pattern_of("xattention"))
    shared = Engine(llama, share_prefixes=True, prefill=pattern_of("xattention"))
    wanted = alone.run(prompt, branches, Generation(4))[0]
    found = shared.run(prompt, branches, Generation(4))[0]
    assert (found.token_ids, found.computed_blocks) == (wanted.token_ids, wanted.computed_blocks)
    assert not shared.prefills._held
    early = Engine(llama, Protocol("context"), prefill=pattern_of("xattention"))
    first, again = (early.run(prompt, branches, Generation(4))[0] for _ in range(2))
    assert again.token_ids == first.token_ids
    assert again.computed_blocks == first.computed_blocks
    assert first.timings["search"] > again.timings["search"] == 0


def test_cells_are_held_against_a_masked_cache_of_the_same_prefill(llama):
    engine = Engine(llama, prefill=pattern_of("flexprefill"))
    branches = [Branch(), Branch(methods.build("restkv", window=WINDOW), ratio=0.9)]
    assert max(masked.compare(engine, plain(641), branches).differences) < 1e-5


@pytest.mark.parametrize("method", ["h2o", "criticalkv_h2o", "post_vision"])
def test_methods_that_need_the_attention_of_all_queries_are_refused(llama, method):
    said = f"{method} needs the attention of all queries, which prefill=xattention does not"
    with pytest.raises(ValueError, match=said):
        Engine(llama, prefill=sparse.build("xattention")).run(
            plain(300), [Branch(methods.build(method), ratio=0.5)], Generation(1)
        )
    with (
        pytest.raises(ValueError, match=said),
        harness.evict(llama.model, method, ratio=0.5, prefill="xattention"),
    ):
        pass


def test_a_window_that_is_longer_than_the_dense_queries_is_refused(llama):
    branches = [Branch(methods.build("snapkv", window=200), ratio=0.5)]
    with pytest.raises(ValueError, match=r"watches the last 200 queries.* give last=200"):
        Engine(llama, prefill=sparse.build("a_shape")).run(plain(300), branches, Generation(1))
    Engine(llama, prefill=sparse.build("a_shape", last=200)).run(
        plain(300), branches, Generation(1)
    )


def test_expected_attention_needs_queries_and_not_their_attention(llama):
    branches = [Branch(methods.build("expected_attention"), ratio=0.5)]
    engine = Engine(llama, prefill=pattern_of("a_shape"))
    (result,) = engine.run(plain(421), branches, Generation(2))
    assert result.kept_tokens == 210


def test_the_embedded_layers_know_no_pattern_unless_asked():
    engine = Engine(wrap(build_llama()))
    (result,) = engine.run(plain(300), [Branch()], Generation(1))
    assert (engine.pattern, result.computed_blocks, result.timings["search"]) == (None, None, 0)
