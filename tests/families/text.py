"""Text families: name -> a config of the real architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as hf
from transformers import AutoModelForCausalLM

from tests.families.base import VOCAB, sizes, template, tokenizer

LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FEW = {"num_local_experts": 4, "num_experts_per_tok": 2}
MIXED = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
LATENT = {
    "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
    "num_experts_per_tok": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 12, "moe_intermediate_size": 32,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 512,
}  # fmt: skip
SHARED = {
    "intermediate_size": [96] * 4, "num_kv_shared_layers": 2, "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8, "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4,
}  # fmt: skip
OLD = {"vocab_size": VOCAB, "eos_token_id": 7}


def of(kind: str, **changed: Any) -> Callable[[], Any]:
    """A config class of transformers by the beginning of its name, with small sizes."""
    return lambda: getattr(hf, f"{kind}Config")(**sizes(eos_token_id=7, **changed))


def old(kind: str, **given: Any) -> Callable[[], Any]:
    """The same for architectures whose settings have other names."""
    return lambda: getattr(hf, f"{kind}Config")(**OLD, **given)


CONFIGS: dict[str, Callable[[], Any]] = {
    "Llama 2": of("Llama"),
    "Llama 3": of("Llama", rope_parameters=LLAMA3),
    "Llama 4 (text)": of("Llama4Text", head_dim=16, num_hidden_layers=4, num_local_experts=2,
                         num_experts_per_tok=1, intermediate_size_mlp=96, attention_chunk_size=64),
    "Mistral": of("Mistral", sliding_window=None),
    "Mistral, window as long as its context": of("Mistral", sliding_window=16384),
    "Mixtral": of("Mixtral", sliding_window=None, **FEW),
    "Qwen2, Qwen2.5": of("Qwen2"),
    "Qwen3": of("Qwen3", head_dim=16),
    "Qwen3-MoE": of("Qwen3Moe", head_dim=16, **EXPERTS),
    "Qwen3-Next": of("Qwen3Next", head_dim=16, num_hidden_layers=4, **LINEAR, **EXPERTS,
                     layer_types=["linear_attention"] * 3 + ["full_attention"],
                     shared_expert_intermediate_size=32),
    "Gemma": of("Gemma", head_dim=16),
    "Gemma 2": of("Gemma2", head_dim=16, query_pre_attn_scalar=16),
    "Gemma 3 (text)": of("Gemma3Text", head_dim=16, sliding_window=40, query_pre_attn_scalar=16,
                         **MIXED),
    "Gemma 3n (text)": of("Gemma3nText", head_dim=16, sliding_window=40, **{**MIXED, **SHARED}),
    "Phi-2": of("Phi"),
    "Phi-3, Phi-4": of("Phi3", sliding_window=262144),
    "OLMo": of("Olmo"),
    "OLMo 2": of("Olmo2"),
    "SmolLM3": of("SmolLM3"),
    "DeepSeek-V2": of("DeepseekV2", **LATENT),
    "DeepSeek-V3": of("DeepseekV3", **LATENT),
    "GPT-OSS": of("GptOss", head_dim=16, **FEW),
    "LFM2": of("Lfm2", num_hidden_layers=4, block_ff_dim=96,
               layer_types=["conv", "conv", "full_attention", "conv"]),
    "Jamba": of("Jamba", num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1,
                num_experts=2, mamba_d_state=8, use_mamba_kernels=False),
    "Granite": of("Granite"),
    "Cohere": of("Cohere"),
    "Cohere 2": of("Cohere2", sliding_window=40, **MIXED),
    "GLM-4": of("Glm4", head_dim=16),
    "StarCoder2": of("Starcoder2", sliding_window=None),
    "StableLM": of("StableLm"),
    "ERNIE 4.5": of("Ernie4_5", head_dim=16),
    "Seed-OSS": of("SeedOss", head_dim=16),
    "MiniMax": of("MiniMax", head_dim=16, num_hidden_layers=4, **FEW,
                  layer_types=["linear_attention", "full_attention"] * 2),
    "GPT-2": old("GPT2", n_embd=64, n_layer=3, n_head=4, n_positions=4096),
    "GPT-NeoX, Pythia": old("GPTNeoX", hidden_size=64, intermediate_size=96, num_hidden_layers=3,
                            num_attention_heads=4, max_position_embeddings=8192),
    "OPT": old("OPT", hidden_size=64, ffn_dim=96, num_hidden_layers=3, num_attention_heads=4,
               max_position_embeddings=8192, word_embed_proj_dim=64),
    "Falcon": old("Falcon", hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
                  new_decoder_architecture=True, num_kv_heads=2, alibi=False,
                  max_position_embeddings=8192),
    "BLOOM": old("Bloom", hidden_size=64, n_layer=3, n_head=4),
    "MPT": old("Mpt", d_model=64, n_heads=4, n_layers=3, max_seq_len=4096),
    "Mamba 2": old("Mamba2", hidden_size=64, num_hidden_layers=2, num_heads=4, head_dim=32,
                   state_size=16, n_groups=1, expand=2),
}  # fmt: skip


def build(name: str) -> tuple[Any, Any]:
    """A model, its weights not yet chosen, and its tokenizer."""
    words = tokenizer(eos="<|im_end|>", add_bos=True, chat_template=template())
    return AutoModelForCausalLM.from_config(CONFIGS[name]()), words
