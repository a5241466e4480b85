"""Sparse prefill against the plain model, its attention masked token by token to the blocks that
plain loops of the published rules choose, and against kept sets that plain code computes from it.
"""

from __future__ import annotations

from dataclasses import replace

import masked_oracle as oracle
import pytest
import torch
from engine_helpers import run_with_logits
from tiny_models import build_llama, make_prompt, random_ids, text, wrap
from torch.nn.functional import avg_pool1d
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.masking_utils import eager_mask

import harness
import methods
from harness import sparse
from harness.engine import Branch, Engine, Generation, Protocol, masked
from harness.models.prompts import Prompt
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
