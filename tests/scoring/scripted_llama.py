"""A llama that says one text, with a byte-level tokenizer that has "\\n\\n" as one token.

Its attention adds nothing, so the next token depends on the last one alone, whatever was evicted.
"""

from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPLIT = (  # Qwen's
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<s>", "</s>")


def write(folder: Path, after: str, script: str) -> Path:
    """A model folder whose model answers `script` to any prompt that ends with `after`."""
    tokenizer = _tokenizer([after, script])
    size = len(tokenizer)
    config = LlamaConfig(
        vocab_size=size, hidden_size=size + size % 2, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=2048,
        bos_token_id=0, eos_token_id=1, pad_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    said = [*_ids(tokenizer, after)[-1:], *_ids(tokenizer, script), 1]
    assert len(set(said[:-1])) == len(said) - 1  # one successor a token
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.zero_()[:, :size] = torch.eye(size)
        model.lm_head.weight.zero_()[1] = 0.01  # where the script is silent it ends
        for before, token in pairwise(said):
            model.lm_head.weight[token, before] = 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pieces])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([*["\n\n"] * 9, *texts * 9], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
