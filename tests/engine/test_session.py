"""What policies see, what is recorded about cells, and which models and prompts are taken."""

from __future__ import annotations

from dataclasses import replace

import masked_oracle as oracle
import pytest
import torch
from engine_helpers import Scatter, run_with_logits
from tiny_models import BUILDERS, KINDS, make_prompt, wrap
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

import methods
from harness.engine import Branch, Engine, Generation, Protocol, attention
from harness.models.prompts import Prompt


def grid(*names: str, ratios=(0.5, 0.9)) -> list[Branch]:
    policies = [methods.build(name) for name in names or ("snapkv", "random")]
    return [Branch()] + [Branch(policy, ratio=r) for policy in policies for r in ratios]


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_sees_each_text_layer_once_with_its_last_queries(loaded_models, kind):
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=9)
    narrow, wide = Scatter(1, window=4), Scatter(2, window=6)
    branches = [Branch(narrow, ratio=0.5), Branch(narrow, ratio=0.9), Branch(wide, budget=3)]
    engine = Engine(loaded)
    results = engine.run(prompt, branches, Generation(1))
    text = loaded.model.config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    full = [i for i, name in enumerate(kinds) if name == "full_attention"]
    assert len(narrow.views) == len(wide.views) == len(full)
    length = prompt.modality.shape[0] - 1
    decoder = loaded.model.get_decoder()
    for rank, view in enumerate(narrow.views):
        assert (view.layer, view.num_layers) == (rank, len(full))
        assert view.queries.shape[2] == 6  # the widest window asked for
        assert view.keys.shape[2] == view.values.shape[2] == length
        assert torch.equal(view.modality[0], prompt.modality[:length])
        projection = decoder.layers[full[rank]].self_attn.o_proj.weight
        assert view.output_weight is projection
    assert [r.kept_tokens for r in results] == [length - length // 2, length - int(0.9 * length), 3]


def test_without_a_window_all_queries_are_handed_over(loaded_models):
    prompt, policy = make_prompt("llama"), Scatter(1, window=None)
    Engine(loaded_models["llama"], Protocol("paper")).run(
        prompt, [Branch(policy, ratio=0.5)], Generation(1)
    )
    assert policy.views[0].queries.shape[2] == 37


def test_bidirectional_image_blocks_reach_the_policy_as_a_mask(loaded_models):
    prompt, policy = make_prompt("gemma"), Scatter(1, window=20)
    Engine(loaded_models["gemma"]).run(prompt, [Branch(policy, ratio=0.5)], Generation(1))
    length = prompt.modality.shape[0] - 1
    image = prompt.modality[:length].bool()
    block = (image & ~image.roll(1)).cumsum(0)
    same = (block[:, None] == block) & image[:, None] & image
    wanted = torch.ones(length, length, dtype=torch.bool).tril() | same
    assert torch.equal(policy.views[0].mask[0, 0], wanted[-20:])
    causal = Scatter(1)
    Engine(loaded_models["llava"]).run(
        make_prompt("llava"), [Branch(causal, ratio=0.5)], Generation(1)
    )
    assert causal.views[0].mask is None


@pytest.mark.parametrize("kind", ["llava", "gemma"])
def test_figures_of_a_cell_count_what_was_kept(loaded_models, kind):
    loaded, prompt, policy = loaded_models[kind], make_prompt(kind, seed=2), Scatter(4)
    full, cell = Engine(loaded).run(
        prompt, [Branch(), Branch(policy, budget=7)], Generation(3), ("A", "B")
    )
    length = prompt.modality.shape[0] - 1
    masks = [policy.mask(view.layer, 7, length) for view in policy.views]
    image = sum(float((m & prompt.modality[:length].bool()).sum()) for m in masks)
    heads = masks[0].shape[0] * len(masks)
    assert cell.kept_image == pytest.approx(image / heads)
    assert cell.kept_text == pytest.approx(7 - image / heads)
    assert full.kept_image == prompt.modality.sum() == full.image_tokens
    entry = 2 * 2 * 8 * 4  # K and V, two heads, eight dimensions, four bytes
    whole = 0 if kind == "llava" else 2 * entry * 10  # two sliding layers hold window - 1 tokens
    assert cell.cache_bytes == len(masks) * entry * 7 + whole
    assert full.cache_bytes == cell.full_cache_bytes == len(masks) * entry * length + whole
    assert (full.window, full.adaptive, cell.window) == (None, None, 4)
    assert (full.exposed_tokens, cell.exposed_tokens) == (0, 3)
    assert (cell.prompt_tokens, cell.evictable_tokens) == (length + 1, length)
    assert set(cell.timings) == {"prefill", "search", "score", "compact", "decode"}
    assert set(cell.letter_logits) == {"A", "B"}


def test_a_policy_that_keeps_everything_exposes_nothing(loaded_models):
    policy = methods.build("full")
    cell = Engine(loaded_models["llama"]).run(
        make_prompt("llama"), [Branch(policy, ratio=0.5)], Generation(2)
    )[0]
    assert cell.kept_tokens == cell.evictable_tokens
    assert cell.exposed_tokens == 0


def test_adaptive_share_and_window_come_from_the_policy(loaded_models):
    policy = methods.build("restkv", window=4)
    cell = Engine(loaded_models["llama"]).run(
        make_prompt("llama"), [Branch(policy, budget=3)], Generation(1)
    )[0]
    assert cell.window == 1
    assert cell.adaptive is not None


def test_a_ladder_that_does_not_fit_is_on_record(loaded_models):
    loaded, prompt = loaded_models["llama"], make_prompt("llama", seed=4)
    ladder, other = methods.build("lacache", start=2), methods.build("snapkv")
    branches = [Branch(), Branch(ladder, budget=2), Branch(ladder, budget=30), Branch(other, 0.5)]
    found = [r.fallback for r in Engine(loaded).run(prompt, branches, Generation(1))]
    assert found == [None, "streaming_llm", None, None]


def test_repetition_penalty_is_applied_as_generate_does(monkeypatch):
    loaded, prompt = wrap(BUILDERS["llama"]()), make_prompt("llama", seed=12)
    loaded.model.generation_config.repetition_penalty = 1.7
    plain = loaded.model.generate(
        **prompt.inputs, max_new_tokens=8, do_sample=False, eos_token_id=None
    )
    branches = [Branch(), Branch(Scatter(1), ratio=0.0), Branch(Scatter(2), ratio=0.9)]
    results = Engine(loaded).run(prompt, branches, Generation(8))
    wanted = plain[0, prompt.modality.shape[0] :].tolist()
    assert results[0].token_ids == results[1].token_ids == wanted
    loaded.model.generation_config.repetition_penalty = None
    assert Engine(loaded).run(prompt, branches[:1], Generation(8))[0].token_ids != wanted


@pytest.mark.parametrize("length", [1, 2])
def test_bad_words_are_ruled_out_as_generate_does(length):
    loaded, prompt = wrap(BUILDERS["llama"]()), make_prompt("llama", seed=12)
    branches = [Branch(), Branch(Scatter(1), ratio=0.0), Branch(Scatter(2), ratio=0.9)]
    before = Engine(loaded).run(prompt, branches, Generation(8))
    said = before[0].token_ids
    loaded.model.generation_config.bad_words_ids = [said[1 : 1 + length], said[4 : 4 + length]]
    loaded.model.generation_config.eos_token_id = None
    plain = loaded.model.generate(**prompt.inputs, max_new_tokens=8, do_sample=False)
    results = Engine(loaded).run(prompt, branches, Generation(8))
    wanted = plain[0, prompt.modality.shape[0] :].tolist()
    assert results[0].token_ids == results[1].token_ids == wanted != said


@pytest.mark.parametrize("words", [[[10**6]], [[-1]], [[]], "x"])
def test_bad_words_that_cannot_be_ruled_out_are_refused(words):
    loaded = wrap(BUILDERS["llama"]())
    loaded.model.generation_config.bad_words_ids = words
    with pytest.raises(ValueError, match=r"bad_words_ids=.* unset\.$"):
        Engine(loaded)


@pytest.mark.parametrize("kind", ["llava", "qwen"])
def test_bfloat16_runs_and_ratio_zero_equals_the_full_cache(kind):
    loaded = wrap(BUILDERS[kind]())
    loaded.model.bfloat16()
    prompt = make_prompt(kind)
    prompt.inputs["pixel_values"] = prompt.inputs["pixel_values"].bfloat16()
    policy = methods.build("restkv")
    branches = [Branch(), Branch(policy, ratio=0.0), Branch(policy, ratio=0.7)]
    results = Engine(loaded).run(prompt, branches, Generation(4), ("A",))
    assert results[0].token_ids == results[1].token_ids
    assert all(r.letter_logits["A"] == r.letter_logits["A"] for r in results)


def other_models() -> list[nn.Module]:
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=160, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    )
    opt = OPTForCausalLM(
        OPTConfig(
            vocab_size=160,
            hidden_size=32,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=32,
            init_std=0.3,
        )
    )
    return [gpt2, opt]


@pytest.mark.parametrize("model", other_models(), ids=["gpt2", "opt"])
def test_other_text_models_need_no_code_of_their_own(model, monkeypatch):
    loaded, prompt = wrap(model), make_prompt("llama", seed=31)
    engine = Engine(loaded)
    policy = Scatter(3)
    results, logits = run_with_logits(
        monkeypatch, engine, prompt, [Branch(policy, budget=5), Branch()], 4
    )
    kept = {layer.index: policy.mask(layer.rank, 5, 36) for layer in engine.layout.layers}
    for cell, masks in ((0, kept), (1, {})):
        wanted = oracle.logits(model, prompt, results[cell].token_ids, masks, 36)
        torch.testing.assert_close(logits[:, cell], wanted, rtol=1e-4, atol=1e-4)


def test_prompts_that_do_not_fit_are_refused(loaded_models):
    llama, llava = loaded_models["llama"], loaded_models["llava"]
    prompt = make_prompt("llama")
    ids = prompt.inputs["input_ids"]
    run = Engine(llama).run
    with pytest.raises(ValueError, match="one prompt at a time"):
        run(replace(prompt, inputs={"input_ids": ids.expand(2, -1)}), grid(), Generation(1))
    padded = {"input_ids": ids, "attention_mask": torch.zeros_like(ids)}
    with pytest.raises(ValueError, match="without padding"):
        run(replace(prompt, inputs=padded), grid(), Generation(1))
    with pytest.raises(ValueError, match="no branches"):
        run(prompt, [], Generation(1))
    short = Prompt({"input_ids": ids[:, :1]}, prompt.modality[:1], 0, None)
    with pytest.raises(ValueError, match="longer prompt"):
        run(short, grid(), Generation(1))
    with pytest.raises(ValueError, match="protocol=context needs"):
        Engine(llama, Protocol("context")).run(prompt, grid(), Generation(1))
    split = replace(make_prompt("llava"), context=12)
    with pytest.raises(ValueError, match="separate image tokens"):
        Engine(llava, Protocol("context")).run(split, grid(), Generation(1))
    for size in (0, -1, True, "many", 1.5):
        with pytest.raises(ValueError, match="cells_per_batch"):
            Engine(llama, cells_per_batch=size)


def test_the_session_ends_when_a_policy_fails(loaded_models, monkeypatch):
    class Broken(Scatter):
        def select_many(self, view, budgets):
            raise ValueError("no")

    loaded, prompt = loaded_models["llama"], make_prompt("llama")
    engine = Engine(loaded)
    with pytest.raises(ValueError, match="no"):
        engine.run(prompt, [Branch(Broken(1), ratio=0.5)], Generation(1))
    assert attention._listener.get() is None
    assert engine.run(prompt, [Branch()], Generation(1))[0].text


def test_ties_of_generation_do_not_depend_on_the_order_of_branches(loaded_models):
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=14)
    branches = grid("restkv", "tova", "lacache")
    forward = Engine(loaded).run(prompt, branches, Generation(3))
    backward = Engine(loaded).run(prompt, branches[::-1], Generation(3))[::-1]
    assert [r.token_ids for r in forward] == [r.token_ids for r in backward]
