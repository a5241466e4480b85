"""Tiny random models with rotary positions of every kind of scaling and layout."""

from __future__ import annotations

import torch
from tiny_models import text
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
    PhiConfig,
    StableLmConfig,
)

LONGEST = 24  # where scalings by length begin
HALF = [1.0, 1.5, 2.0, 3.0]


def rope(kind, **settings):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


def llama(kind, longest=512, **settings):
    return LlamaConfig(**text(max_position_embeddings=longest, **rope(kind, **settings)))


def without(name):
    return {key: value for key, value in text().items() if key != name}


YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {"short_factor": HALF, "long_factor": [3 * x for x in HALF], "factor": 4.0}
CONFIGS = {
    "default": lambda: llama("default"),
    "linear": lambda: llama("linear", factor=3.0),
    "dynamic": lambda: llama("dynamic", LONGEST, factor=2.0),
    "yarn": lambda: llama("yarn", **YARN),
    "llama3": lambda: llama("llama3", factor=8.0, **LLAMA3),
    "longrope": lambda: Phi3Config(
        **text(max_position_embeddings=4 * LONGEST, **rope("longrope", **LONGROPE)),
        original_max_position_embeddings=LONGEST,
    ),
    "phi": lambda: PhiConfig(**text(), partial_rotary_factor=0.5),
    "neox": lambda: GPTNeoXConfig(**without("num_key_value_heads"), rotary_pct=0.5),
    "stablelm": lambda: StableLmConfig(**text(), partial_rotary_factor=0.25),
    "cohere": lambda: CohereConfig(**text()),
}
INTERLEAVED = ("cohere",)  # pairs lie side by side there, elsewhere half a head apart


def build(config, dtype=torch.float32):
    torch.manual_seed(5)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def make(kind, dtype=torch.float32):
    return build(CONFIGS[kind](), dtype)
