"""Filters made of a model's queries, against those that its own attention is given."""

from __future__ import annotations

import masked_oracle as oracle
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import make_prompt

import harness
import methods
from harness.engine import Branch, Engine, Generation, Protocol
from scripts import make_filters


@pytest.mark.parametrize("kind", ["llama", "qwen"])
def test_filters_come_from_the_queries_that_attention_sees(loaded_models, kind, monkeypatch):
    """All queries of two prompts; SVD of them in float64."""
    loaded = loaded_models[kind]
    prompts = [make_prompt(kind, seed=seed) for seed in (81, 82)]
    seen = {}
    original = oracle.masked_attention

    def note(module, query, key, *others, **named):
        seen.setdefault(module.layer_idx, []).append((query[0].double(), key.shape[1]))
        return original(module, query, key, *others, **named)

    monkeypatch.setitem(oracle.AttentionInterface._global_mapping, "oracle", note)
    for prompt in prompts:
        oracle.logits(loaded.model, prompt, [0])
    found = make_filters.make(loaded, prompts, 10_000, seed=1)
    assert found.shape[0] == len(seen) == len(Engine(loaded).layout.layers)
    for layer, parts in sorted(seen.items()):
        queries, heads = torch.cat([part for part, _ in parts], 1), parts[0][1]
        wanted = []
        for own in queries:
            vector = torch.linalg.eigh(own.T @ own).eigenvectors[:, -1]
            votes = int((own @ vector).sign().sum()) or float((own @ vector).sum())
            wanted.append(-vector if votes > 0 else vector)
        wanted = torch.stack(wanted).unflatten(0, (heads, -1)).mean(1)
        torch.testing.assert_close(found[layer].double(), wanted, rtol=0, atol=1e-4)


def test_a_prompt_is_ranked_alike_whatever_is_asked(loaded_models, tmp_path):
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=83)
    filters = make_filters.make(loaded, [make_prompt("llava", seed=84)], 50, seed=2)
    save_file({"q_filters": filters}, tmp_path / "filters.safetensors")
    policy = methods.build("qfilters", filters=str(tmp_path))
    engine = Engine(loaded, Protocol("context"))
    wanted = engine.run(prompt, [Branch(policy, ratio=0.5)], Generation(6))[0]
    with harness.evict(loaded.model, "qfilters", ratio=0.5, protocol="context",
                       filters=str(tmp_path)):  # fmt: skip
        inputs = {key: value.clone() for key, value in prompt.inputs.items()}
        found = loaded.model.generate(**inputs, max_new_tokens=6, do_sample=False,
                                      eos_token_id=None)  # fmt: skip
    assert found[0, prompt.modality.shape[0] :].tolist() == wanted.token_ids
