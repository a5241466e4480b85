"""Models whose positions cannot be re-indexed, and those whose frequencies have a memory."""

from __future__ import annotations

import pytest
import torch
from rotary_models import build, make
from tiny_models import build_gemma, build_qwen, make_prompt, random_ids, text, wrap
from transformers import GlmConfig, GPT2Config, HunYuanDenseV1Config, OPTConfig

import harness
import methods
from harness.engine import Branch, Engine, Generation
from harness.models.prompts import Prompt

SMALL = {"vocab_size": 160, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
REFUSED = {
    "qwen": ("M-RoPE", build_qwen),
    "gemma": ("layers of another kind", build_gemma),
    "glm": ("rotates its keys in another way", lambda: build(GlmConfig(**text(), head_dim=8))),
    "gpt2": (
        "has no rotary positions",
        lambda: build(GPT2Config(**SMALL, n_embd=48, n_layer=2, n_head=6)),
    ),
    "opt": (
        "has no rotary positions",
        lambda: build(
            OPTConfig(
                **SMALL,
                hidden_size=48,
                word_embed_proj_dim=48,
                ffn_dim=64,
                num_hidden_layers=2,
                num_attention_heads=6,
            )
        ),
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_without_plain_positions_are_refused(kind):
    reason, builder = REFUSED[kind]
    loaded = wrap(builder())
    prompt = make_prompt(kind if kind in ("qwen", "gemma") else "llama", seed=55)
    policy = methods.build("streaming_llm", positions="cache")
    engine = Engine(loaded)
    with pytest.raises(ValueError, match=reason) as refusal:
        engine.run(prompt, [Branch(), Branch(policy, ratio=0.5)], Generation(2))
    message = str(refusal.value)
    assert message.startswith("positions=cache")
    assert message.endswith("use positions=original.")
    assert ". " not in message
    inputs = {name: value.clone() for name, value in prompt.inputs.items()}
    with (
        harness.evict(loaded.model, policy, ratio=0.5),
        pytest.raises(ValueError, match=reason),
    ):
        loaded.model.generate(**inputs, max_new_tokens=2)
    kept = methods.build("streaming_llm")
    assert engine.run(prompt, [Branch(kept, ratio=0.5)], Generation(2))[0].exposed_tokens


def test_a_model_that_changes_its_keys_after_rotating_them_is_refused():
    """Its layers look like any other's, only what they cache tells."""
    config = HunYuanDenseV1Config(**text(head_dim=8))
    model = build(config)
    for layer in model.model.layers:
        torch.nn.init.uniform_(layer.self_attn.key_layernorm.weight, 0.3, 3.0)
    branch = Branch(methods.build("streaming_llm", positions="cache"), budget=9)
    with pytest.raises(ValueError, match="after they were rotated; use positions=original"):
        Engine(wrap(model)).run(make_prompt("llama"), [branch], Generation(1))


def test_dynamic_frequencies_do_not_depend_on_earlier_prompts():
    """The library's own module remembers the longest sequence; the engine lets it forget."""
    loaded = wrap(make("dynamic"))
    short, long = (
        make_prompt("llama", seed=3),
        Prompt({"input_ids": random_ids(70, 5)}, None, 0, None),
    )
    long.modality = torch.zeros(70, dtype=torch.long)
    branches = [Branch(), *(Branch(methods.build("h2o"), budget=n) for n in (9, 20))]

    def answers(prompt, size="auto"):
        results = Engine(loaded, cells_per_batch=size).run(prompt, branches, Generation(6), "AB")
        return [(r.token_ids, r.letter_logits) for r in results]

    first = answers(short)
    answers(long)
    for again in (answers(short), answers(short, 1)):
        for (ids, logits), (wanted, exact) in zip(again, first, strict=True):
            assert ids == wanted
            assert logits == pytest.approx(exact, abs=1e-4)
