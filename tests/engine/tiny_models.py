"""Tiny random models of real architectures and prompts for them."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SiglipVisionConfig,
)

from harness.engine import Protocol
from harness.models.loaded import LoadedModel
from harness.models.prompts import Prompt

VOCAB = 160
IMAGE = 150
EOS = 2


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", "A", "B", "C", "D", "<image>"]
    words += [f"w{i}" for i in range(VOCAB - len(words))]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )


def wrap(model: torch.nn.Module, stops: bool = False) -> LoadedModel:
    """A loaded model without a processor. Without stops, every cell runs to max_new_tokens."""
    model = model.float().eval()
    # An answer must never hold an image placeholder: its logit is half of another token's.
    head = model.get_output_embeddings().weight.data
    head[IMAGE:] = head[10 : 10 + VOCAB - IMAGE] / 2
    loaded = LoadedModel(
        model, None, make_tokenizer(), "tiny", torch.device("cpu"), torch.float32, "", True
    )
    if not stops:
        loaded.__dict__["stop_ids"] = frozenset()
    return loaded


def text(**changes: object) -> dict[str, object]:
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "initializer_range": 0.3,  # wide enough for answers that depend on what is kept
    }
    return {**sizes, **changes}


def build_llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**text()))


def build_llava() -> LlavaForConditionalGeneration:
    torch.manual_seed(2)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**text()),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    return LlavaForConditionalGeneration(config)


def build_qwen() -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(3)
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 48,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "spatial_merge_size": 2,
        "temporal_patch_size": 1,
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text(rope_parameters=rope),
        image_token_id=IMAGE,
        video_token_id=IMAGE + 1,
        vision_start_token_id=IMAGE + 2,
        vision_end_token_id=IMAGE + 3,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def build_gemma() -> Gemma3ForConditionalGeneration:
    torch.manual_seed(4)
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    config = Gemma3Config(
        vision_config=vision,
        text_config=Gemma3TextConfig(
            **text(num_hidden_layers=4, head_dim=8, layer_types=kinds, sliding_window=11),
            query_pre_attn_scalar=8,
        ),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
    )
    return Gemma3ForConditionalGeneration(config)


def random_ids(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, IMAGE, (1, count), generator=generator)


def make_prompt(kind: str, seed: int = 0) -> Prompt:
    """A prompt of the kind: text, then images where the model takes them, then a question."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.full((1, 1), IMAGE)
    head, middle, question = random_ids(5, seed), random_ids(3, seed + 1), random_ids(14, seed + 2)
    inputs: dict[str, torch.Tensor] = {}
    if kind == "llama":
        parts = [random_ids(37, seed)]
    elif kind == "llava":
        parts = [head, image.expand(1, 16), question]
        inputs["pixel_values"] = torch.randn(1, 3, 32, 32, generator=generator)
    elif kind == "gemma":
        parts = [head, image.expand(1, 4), middle, image.expand(1, 4), question]
        inputs["pixel_values"] = torch.randn(2, 3, 32, 32, generator=generator)
    else:
        parts = [head, image.expand(1, 12), middle, image.expand(1, 6), question]
        inputs["image_grid_thw"] = torch.tensor([[1, 6, 8], [1, 4, 6]])
        inputs["pixel_values"] = torch.randn(72, 3 * 4 * 4, generator=generator)
    ids = torch.cat(parts, dim=1)
    inputs["input_ids"] = ids
    kinds = (ids[0] == IMAGE).long()
    if kind == "gemma":
        inputs["token_type_ids"] = kinds[None]
    if kind == "qwen":
        inputs["mm_token_type_ids"] = kinds[None]
    found = kinds.nonzero()
    return Prompt(inputs, kinds, 3, int(found[-1]) + 1 if len(found) else None)


BUILDERS = {"llama": build_llama, "llava": build_llava, "qwen": build_qwen, "gemma": build_gemma}
KINDS = tuple(BUILDERS)
PROTOCOLS = {
    "replay": Protocol("replay"),
    "suffix": Protocol("replay", "suffix"),
    "context": Protocol("context"),
    "paper": Protocol("paper"),
}
# A text prompt has no context before its question.
CASES = [(k, p) for k in KINDS for p in PROTOCOLS if (k, p) != ("llama", "context")]
