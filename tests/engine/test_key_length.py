"""How long a key is, told by a config before any weight is read; nothing where it is not told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import DeepseekV3Config, Gemma4TextConfig, JetMoeConfig, LlamaConfig, LlavaConfig

from harness.models import tokenizer

SIZES = {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 4}


class Odd(SimpleNamespace):
    """A config of a model with code of its own."""

    def get_text_config(self, decoder: bool) -> Odd:
        return self


class Ambiguous(Odd):
    def get_text_config(self, decoder: bool) -> Odd:
        raise ValueError("Multiple valid text configs were found")


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (LlamaConfig(**SIZES), 24),
        (LlamaConfig(**SIZES, head_dim=40), 40),
        (LlavaConfig(text_config=LlamaConfig(**SIZES)), 24),
        (JetMoeConfig(kv_channels=48), 48),
        (DeepseekV3Config(), None),
        (Gemma4TextConfig(), None),
        (Odd(hidden_size=96, num_attention_heads=[4, 8]), None),
        (Odd(hidden_size=96, num_attention_heads=None), None),
        (Odd(hidden_size=96, num_attention_heads=0), None),
        (Odd(hidden_size=96, num_attention_heads=4, head_dim=[24, 48]), None),
        (Odd(hidden_size=96, num_attention_heads=4, head_dim=24, swa_head_dim=48), None),
        (Odd(model_dim=96), None),
        (Ambiguous(), None),
    ],
)
def test_the_length_of_a_key_is_told_where_it_is_one_number(config, wanted, monkeypatch):
    monkeypatch.setattr(tokenizer, "locate", lambda *_: None)
    monkeypatch.setattr(tokenizer, "read_config", lambda *_: config)
    assert tokenizer.key_length.__wrapped__("a model", None, False) == wanted
