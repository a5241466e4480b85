"""A tiny random Llama in one GGUF file, as llama.cpp's own converter would write it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

HIDDEN, INNER, HEADS, SHARED, LAYERS = 64, 96, 4, 2, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "i n", "Ġ i", "e r"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_llama(
    path: Path,
    without: str = "",
    template: str | None = TEMPLATE,
    special: Sequence[str] = SPECIAL,
) -> Path:
    """Quantised matrices and plain norms; `without`: a tensor that is left out."""
    gguf = __import__("pytest").importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    words = [*special, *sorted(ByteLevel.alphabet()), *(m.replace(" ", "") for m in MERGES)]
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(SHARED)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if w in special else kinds.NORMAL for w in words])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if template is not None:
        writer.add_chat_template(template)
    random = np.random.default_rng(0)
    for name, shape in _shapes(len(words)).items():
        if name == without:
            continue
        values = random.normal(0, 0.3, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, 1 + values)
            continue
        kind = gguf.GGMLQuantizationType.Q4_1 if "attn" in name else gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes(words: int) -> dict[str, tuple[int, ...]]:
    shared = SHARED * HIDDEN // HEADS
    layer = {
        "attn_norm": (HIDDEN,),
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (shared, HIDDEN),
        "attn_v": (shared, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_norm": (HIDDEN,),
        "ffn_gate": (INNER, HIDDEN),
        "ffn_up": (INNER, HIDDEN),
        "ffn_down": (HIDDEN, INNER),
    }
    layers = {f"blk.{i}.{n}.weight": s for i in range(LAYERS) for n, s in layer.items()}
    return {"token_embd.weight": (words, HIDDEN), **layers, "output_norm.weight": (HIDDEN,)}
