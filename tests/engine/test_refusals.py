"""Models and settings the engine must refuse, each with one sentence that names what is wrong."""

from __future__ import annotations

import pytest
import torch
from engine_helpers import Scatter
from tiny_models import make_prompt, text, wrap
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MllamaConfig,
    MllamaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import methods
from harness.engine import Branch, Engine, Generation, Protocol
from harness.engine.layout import prepare
from harness.models.prompts import Prompt

SMALL = {
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def t5():
    return T5ForConditionalGeneration(
        T5Config(vocab_size=160, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    )


def mllama():
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        "max_num_tiles": 2,
        "vision_output_dim": 64,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1]],
    }
    rope = {"rope_type": "default", "rope_theta": 1e4}
    words = {**SMALL, "cross_attention_layers": [1], "rope_parameters": rope}
    return MllamaForConditionalGeneration(MllamaConfig(vision_config=vision, text_config=words))


def qwen3_next():
    config = Qwen3NextConfig(
        **SMALL,
        head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
    )
    return Qwen3NextForCausalLM(config)


def deepseek():
    config = DeepseekV3Config(
        **{**SMALL, "num_key_value_heads": 4},
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=12,
        moe_intermediate_size=8,
    )
    return DeepseekV3ForCausalLM(config)


def gemma3n():
    config = Gemma3nTextConfig(
        **SMALL,
        head_dim=8,
        vocab_size_per_layer_input=160,
        num_kv_shared_layers=1,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
    )
    return Gemma3nForCausalLM(config)


def paligemma():
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        "projection_dim": 32,
    }
    words = {**SMALL, "model_type": "gemma", "head_dim": 8}
    return PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config=vision,
            text_config=words,
            image_token_index=150,
            projection_dim=32,
            hidden_size=32,
        )
    )


@pytest.mark.parametrize(
    ("build", "part"),
    [
        (t5, "encoder-decoder"),
        (mllama, "cross-attention"),
        (lambda: MambaForCausalLM(MambaConfig(vocab_size=160, hidden_size=32)), "recurrent state"),
        (deepseek, "latent vectors"),
        (lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8)), "caps its attention"),
        (
            lambda: GptOssForCausalLM(GptOssConfig(**SMALL, head_dim=8, num_local_experts=2)),
            "sinks",
        ),
        (
            lambda: BloomForCausalLM(
                BloomConfig(vocab_size=160, hidden_size=32, n_layer=2, n_head=4)
            ),
            "ALiBi",
        ),
        (
            lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=8)),
            "no full-attention layer",
        ),
    ],
    ids=[
        "t5",
        "mllama",
        "mamba",
        "deepseek",
        "gemma2",
        "gpt_oss",
        "bloom",
        "sliding",
    ],
)
def test_models_whose_cache_cannot_be_evicted(build, part):
    with pytest.raises(ValueError, match=part) as caught:
        prepare(build())
    assert str(caught.value).count(". ") == 0
    assert str(caught.value).endswith(".")


def test_prompts_with_bidirectional_text_cannot_be_split():
    torch.manual_seed(0)
    loaded = wrap(paligemma())
    ids = torch.cat([torch.full((1, 4), 150), torch.arange(20, 29)[None]], dim=1)
    kinds = (ids[0] == 150).long()
    inputs = {
        "input_ids": ids,
        "pixel_values": torch.randn(1, 3, 16, 16),
        "token_type_ids": torch.zeros_like(ids),
    }
    prompt = Prompt(inputs, kinds, 1, 4)
    branches = [Branch(), Branch(methods.build("random"), ratio=0.5)]
    with pytest.raises(ValueError, match="use protocol=paper"):
        Engine(loaded, Protocol("replay")).run(prompt, branches, Generation(2))
    results = Engine(loaded, Protocol("paper")).run(prompt, branches, Generation(3))
    plain = loaded.model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert results[0].token_ids == plain[0, 13:].tolist()


def test_a_quantised_output_projection_is_refused_by_the_methods_that_need_it():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**text()))
    for layer in model.model.layers:
        layer.self_attn.o_proj = torch.nn.Identity()  # no weight matrix, as in quantised models
    engine = Engine(wrap(model))
    prompt, seen = make_prompt("llama"), Scatter(1)
    engine.run(prompt, [Branch(seen, ratio=0.5)], Generation(1))
    assert seen.views[0].output_weight is None
    with pytest.raises(ValueError, match=r"output_weight|projection"):
        engine.run(prompt, [Branch(methods.build("restkv"), ratio=0.5)], Generation(1))


def test_generation_settings_that_change_answers_are_refused():
    torch.manual_seed(0)
    loaded = wrap(LlamaForCausalLM(LlamaConfig(**text())))
    loaded.model.generation_config.no_repeat_ngram_size = 3
    with pytest.raises(ValueError, match="no_repeat_ngram_size=3"):
        Engine(loaded)


@pytest.mark.parametrize(
    ("kwargs", "part"),
    [
        ({"num_beams": 4}, "num_beams=4"),
        ({"temperature": 0.7}, "temperature=0.7"),
        ({"do_sample": True}, "do_sample=True"),
        ({"do_sample": True, "temperature": 0.2}, "temperature=0.2"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": "many"}, "max_new_tokens='many'"),
        ({"until": 3}, "until=3"),
        ({"until_tokens": ["a", 3]}, "until_tokens="),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
    ],
)
def test_generation_arguments_outside_greedy_decoding_are_refused(kwargs, part):
    with pytest.raises(ValueError, match=part):
        Generation.from_kwargs(kwargs)


@pytest.mark.parametrize(
    ("kwargs", "wanted"),
    [
        ({}, Generation(128)),
        ({"max_new_tokens": 7, "until": "\n"}, Generation(7, ("\n",))),
        (
            {"until_tokens": ["\n", ""], "min_new_tokens": 1},
            Generation(128, nonempty=True, until_tokens=("\n",)),
        ),
        (
            {
                "until": ["ASSISTANT:"],
                "max_new_tokens": 1024,
                "temperature": 0,
                "top_p": 1.0,
                "num_beams": 1,
                "do_sample": False,
            },
            Generation(1024, ("ASSISTANT:",)),
        ),
        ({"do_sample": True, "temperature": 0, "max_gen_toks": 3, "until": [""]}, Generation(3)),
        ({"do_sample": False, "temperature": 0.7, "image_aspect_ratio": "x"}, Generation(128)),
    ],
)
def test_generation_arguments_of_lmms_eval_are_read(kwargs, wanted):
    assert Generation.from_kwargs(kwargs) == wanted


@pytest.mark.parametrize(
    ("amount", "part"),
    [
        ({}, "exactly one"),
        ({"ratio": 0.5, "budget": 4}, "exactly one"),
        ({"ratio": 1.0}, "ratio=1.0"),
        ({"ratio": -0.1}, "ratio=-0.1"),
        ({"ratio": float("nan")}, "ratio=nan"),
        ({"ratio": "0.5"}, "ratio='0.5'"),
        ({"budget": 0}, "budget=0"),
        ({"budget": 2.5}, "budget=2.5"),
    ],
)
def test_branches_need_one_amount_in_range(amount, part):
    with pytest.raises(ValueError, match=part):
        Branch(Scatter(1), **amount)


@pytest.mark.parametrize(("name", "tail"), [("never", "last_token"), ("replay", "word")])
def test_unknown_protocols_are_refused(name, tail):
    with pytest.raises(ValueError, match="choose one of"):
        Protocol(name, tail)


def test_a_model_that_caches_something_else_than_its_keys_is_refused(monkeypatch):
    loaded = wrap(deepseek())
    loaded.model.config.kv_lora_rank = 0  # past the first check, into the forward pass
    with pytest.raises(ValueError, match="choose a model that caches its keys"):
        Engine(loaded).run(make_prompt("llama"), [Branch()], Generation(1))
