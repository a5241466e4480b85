"""What all tiny families share: a tokenizer with every family's special tokens, sizes, weights."""

from __future__ import annotations

import math

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

SPECIAL = """
<pad> <s> </s> <unk> <bos> <eos> <|im_start|> <|im_end|> <|endoftext|>
<|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> <|object_ref_start|>
<image> <video> <img> </img> <IMG_CONTEXT> <image_soft_token> <start_of_image> <end_of_image>
<audio_soft_token> <start_of_audio> <end_of_audio> <start_of_turn> <end_of_turn> <|image|> <|video|>
<|audio|> <fake_token_around_image> <global-img> <end_of_utterance> [IMG] [IMG_BREAK] [IMG_END]
[INST] [/INST] <|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|>
<|image_start|> <|image_end|> <|patch|> <|tile_x_separator|> <|tile_y_separator|> <|begin_of_text|>
<|eot|> <|header_start|> <|header_end|> <image_placeholder> <begin_of_image>
<|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|START_OF_IMG|> <|END_OF_IMG|> <|IMG_PATCH|>
<|IMG_LINE_BREAK|> <|TILE_GLOBAL|> <|image_thumbnail|> <|img_row_1_col_1|> <|speaker|> <|NEWLINE|>
<|dummy|> <|user|> <|assistant|> <|end|> <image_id> </image_id> <|file_separator|> <atom> <image0>
""".split()  # noqa: SIM905
SPECIAL += [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
SPECIAL += [f"TILE_{i}" for i in range(1, 13)]
SPECIAL += [f"<|img_row_{i}_col_{j}|>" for i in range(1, 5) for j in range(1, 5) if i + j > 2]
SPECIAL += """
TILE_GLOBAL <|img_thumbnail|> <IMG_START> <IMG_ATOM> <IMG_GRID> <IMG_COL> <IMG_ROW> <IMG_END>
<imgpad> <im_patch> <im_col> <im_start> <im_end> <im_low> <low_res_im_start> <frame_start>
<frame_end> <|python_tag|> |SPEAKER| |NEWLINE| |ENDOFTEXT| <0x04>
<|endoftext10|> <|endoftext11|> <|IMAGE|> <|AUDIO|> <|VIDEO|> <|vision_bos|> <|vision_eos|>
<|audio_bos|> <|audio_eos|> <|media_pad|> <|kimi_k25_video_placeholder|>
""".split()  # noqa: SIM905
WORDS = "the is of what What Answer with option letter color image Question".split()  # noqa: SIM905
VOCAB = 640
CLIP = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def tokenizer(
    names: dict[str, str] | None = None,
    bos: str | None = "<s>",
    eos: str = "</s>",
    pad: str = "<pad>",
    add_bos: bool = False,
    chat_template: str | None = None,
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of few words; names: attributes such as image_token."""
    vocab = {w: i for i, w in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = ["Ġ", *word]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
            vocab.setdefault("".join(pair), len(vocab))
            parts = ["".join(pair), *parts[2:]]
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in SPECIAL])
    if add_bos:
        core.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocab[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token=eos, pad_token=pad, unk_token="<unk>",
        extra_special_tokens=names or {}, model_max_length=100_000, chat_template=chat_template,
    )  # fmt: skip


def template(
    image: str = "",
    start: str = "",
    turn: tuple[str, str] = ("<|im_start|>{{ m['role'] }}\n", "<|im_end|>\n"),
    answer: str = "<|im_start|>assistant\n",
    video: str = "",
) -> str:
    """A chat template: `start`, each message within `turn`, and what begins the answer."""
    part = (
        "{% if p['type'] == 'image' %}" + image + "{% elif p['type'] == 'video' %}" + video
        + "{% else %}{{ p['text'] }}{% endif %}"
    )  # fmt: skip
    content = (
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for p in m['content'] %}" + part + "{% endfor %}{% endif %}"
    )
    messages = "{% for m in messages %}" + turn[0] + content + turn[1] + "{% endfor %}"
    return start + messages + "{% if add_generation_prompt %}" + answer + "{% endif %}"


def sizes(**changed: object) -> dict[str, object]:
    """The config of a small decoder."""
    usual = {
        "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return usual | changed


def number(tokens: PreTrainedTokenizerFast, name: str) -> int:
    """The id of a special token."""
    return int(tokens.convert_tokens_to_ids(name))


@torch.no_grad()
def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights large enough that what is evicted matters; special tokens are seldom answered."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() < 2 or "norm" in name.lower():
            continue
        spread = 1 / math.sqrt(weight[0].numel() if weight.dim() != 3 else weight.shape[-1])
        if any(part in name for part in ("q_proj", "k_proj", "qkv", "query_key_value", "c_attn")):
            spread *= 1.6
        if "embed_tokens" in name or "wte" in name:
            spread = 0.5
        weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
    head = model.get_output_embeddings()
    if head is not None:
        head.weight[: len(SPECIAL)] *= 0.05
    return model.float().eval()
