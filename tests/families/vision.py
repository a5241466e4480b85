"""Image-text families: name -> a model of the real architecture with its real processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as hf

from tests.families.base import CLIP, PINPOINTS, number, sizes, template, tokenizer

Built = tuple[Any, Any]
FAMILIES: dict[str, Callable[[], Built]] = {}
TOWER = {**CLIP, "image_size": 56, "patch_size": 14}
WHOLE = {"height": 56, "width": 56}


def family(name: str) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    def keep(build: Callable[[], Built]) -> Callable[[], Built]:
        FAMILIES[name] = build
        return build

    return keep


def build(name: str) -> Built:
    """A model, its weights not yet chosen, and its processor."""
    return FAMILIES[name]()


# Qwen --------------------------------------------------------------------------------------------

MARKS = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>",
    "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>",
}  # fmt: skip
QWEN = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2,
        "temporal_patch_size": 2}  # fmt: skip
QWEN3 = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 16,
         "out_hidden_size": 64, "num_position_embeddings": 64}  # fmt: skip


def qwen(processor: str, pixels: int, videos: str, **rope: Any) -> tuple[Any, dict, dict]:
    """The processor, the ids of its marks, and the text config."""
    words = tokenizer(MARKS, eos="<|im_end|>", bos=None, pad="<|endoftext|>")
    marks = {
        "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
    }  # fmt: skip
    ids = {key: number(words, name) for key, name in marks.items()}
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    images = hf.Qwen2VLImageProcessor(
        patch_size=pixels, min_pixels=4 * pixels**2, max_pixels=1280 * 4 * pixels**2
    )
    made = getattr(hf, processor)(
        images, words, getattr(hf, videos)(),
        chat_template=template(shown, video=shown.replace("image", "video")),
    )  # fmt: skip
    positions = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], **rope}
    text = sizes(rope_parameters=positions, eos_token_id=number(words, "<|im_end|>"),
                 pad_token_id=number(words, "<|endoftext|>"))  # fmt: skip
    return made, ids, text


@family("Qwen2-VL")
def qwen2_vl() -> Built:
    made, ids, text = qwen("Qwen2VLProcessor", 14, "Qwen2VLVideoProcessor")
    vision = {**QWEN, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    config = hf.Qwen2VLConfig(vision_config=vision, text_config=text, **ids)
    return hf.Qwen2VLForConditionalGeneration(config), made


@family("Qwen2.5-VL")
def qwen2_5_vl() -> Built:
    made, ids, text = qwen("Qwen2_5_VLProcessor", 14, "Qwen2VLVideoProcessor")
    vision = {**QWEN, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64,
              "window_size": 56, "fullatt_block_indexes": [1]}  # fmt: skip
    config = hf.Qwen2_5_VLConfig(vision_config=vision, text_config=text, **ids)
    return hf.Qwen2_5_VLForConditionalGeneration(config), made


@family("Qwen3-VL")
def qwen3_vl() -> Built:
    made, ids, text = qwen("Qwen3VLProcessor", 16, "Qwen3VLVideoProcessor")
    vision = {**QWEN3, "deepstack_visual_indexes": [0, 1]}
    config = hf.Qwen3VLConfig(vision_config=vision, text_config={**text, "head_dim": 16}, **ids)
    return hf.Qwen3VLForConditionalGeneration(config), made


@family("Qwen3-VL-MoE")
def qwen3_vl_moe() -> Built:
    made, ids, text = qwen("Qwen3VLProcessor", 16, "Qwen3VLVideoProcessor")
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    vision = {**QWEN3, "deepstack_visual_indexes": [0, 1]}
    text = {**text, **experts, "head_dim": 16}
    config = hf.Qwen3VLMoeConfig(vision_config=vision, text_config=text, **ids)
    return hf.Qwen3VLMoeForConditionalGeneration(config), made


@family("Qwen3.5")
def qwen3_5() -> Built:
    part = {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5, "mrope_interleaved": True}
    made, ids, text = qwen("Qwen3VLProcessor", 16, "Qwen3VLVideoProcessor", **part)
    linear = {f"linear_{k}_head_dim": 16 for k in ("key", "value")}
    linear |= {f"linear_num_{k}_heads": 2 for k in ("key", "value")}
    kinds = ["linear_attention"] * 3 + ["full_attention"]
    text = {**text, **linear, "head_dim": 16, "num_hidden_layers": 4, "layer_types": kinds}
    config = hf.Qwen3_5Config(vision_config=QWEN3, text_config=text, **ids)
    return hf.Qwen3_5ForConditionalGeneration(config), made


# LLaVA and its kin -------------------------------------------------------------------------------


@family("LLaVA-1.5")
def llava() -> Built:
    words = tokenizer({"image_token": "<image>"}, add_bos=True)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER), text_config=hf.LlamaConfig(**sizes()),
        image_token_index=number(words, "<image>"),
    )  # fmt: skip
    images = hf.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=WHOLE)
    form = template("<image>\n", turn=("{{ m['role'] }}: ", " "), answer="ASSISTANT:")
    made = hf.LlavaProcessor(
        images, words, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=form,
    )  # fmt: skip
    return hf.LlavaForConditionalGeneration(config), made


@family("LLaVA-NeXT (1.6)")
def llava_next() -> Built:
    words = tokenizer({"image_token": "<image>"}, add_bos=True)
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER),
        text_config=hf.MistralConfig(**sizes(sliding_window=None)),
        image_token_index=number(words, "<image>"), image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 56}, crop_size=WHOLE, image_grid_pinpoints=PINPOINTS
    )
    form = template("<image>\n", turn=("[INST] ", " [/INST]"), answer="")
    made = hf.LlavaNextProcessor(
        images, words, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=form,
    )  # fmt: skip
    return hf.LlavaNextForConditionalGeneration(config), made


@family("LLaVA-OneVision")
def llava_onevision() -> Built:
    marks = {"image_token": "<image>", "video_token": "<video>"}
    words = tokenizer(marks, eos="<|im_end|>", bos=None)
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER), text_config=hf.Qwen2Config(**sizes()),
        image_token_index=number(words, "<image>"), video_token_index=number(words, "<video>"),
        image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    made = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=WHOLE, image_grid_pinpoints=PINPOINTS), words,
        hf.LlavaOnevisionVideoProcessor(size=WHOLE), num_image_tokens=16,
        vision_feature_select_strategy="full", chat_template=template("<image>", video="<video>"),
    )  # fmt: skip
    return hf.LlavaOnevisionForConditionalGeneration(config), made


@family("InternVL3")
def internvl() -> Built:
    marks = {"start_image_token": "<img>", "end_image_token": "</img>",
             "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}  # fmt: skip
    words = tokenizer(marks, eos="<|im_end|>", bos=None)
    config = hf.InternVLConfig(
        vision_config={**CLIP, "image_size": [56, 56], "patch_size": [14, 14]},
        text_config=hf.Qwen3Config(**sizes(head_dim=16)),
        image_token_id=number(words, "<IMG_CONTEXT>"), image_seq_length=4, downsample_ratio=0.5,
    )  # fmt: skip
    images = hf.GotOcr2ImageProcessor(
        size=WHOLE, crop_to_patches=True, min_patches=1, max_patches=12
    )
    made = hf.InternVLProcessor(
        images, words, hf.InternVLVideoProcessor(size=WHOLE), image_seq_length=4,
        chat_template=template("<IMG_CONTEXT>\n", video="<video>\n"),
    )  # fmt: skip
    return hf.InternVLForConditionalGeneration(config), made


# Google ------------------------------------------------------------------------------------------


@family("Gemma 3")
def gemma3() -> Built:
    marks = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>",
             "eoi_token": "<end_of_image>"}  # fmt: skip
    words = tokenizer(marks, bos="<bos>", eos="<eos>", add_bos=True)
    ends = {"bos_token_id": number(words, "<bos>"), "eos_token_id": number(words, "<eos>")}
    text = hf.Gemma3TextConfig(
        **sizes(num_hidden_layers=4, head_dim=16, sliding_window=40, **ends,
                layer_types=["sliding_attention", "full_attention"] * 2),
        query_pre_attn_scalar=16,
    )  # fmt: skip
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**TOWER), text_config=text, mm_tokens_per_image=4,
        image_token_index=number(words, "<image_soft_token>"),
        boi_token_index=number(words, "<start_of_image>"),
        eoi_token_index=number(words, "<end_of_image>"),
    )  # fmt: skip
    turn = ("<start_of_turn>{{ m['role'] }}\n", "<end_of_turn>\n")
    form = template("<start_of_image>", "{{ bos_token }}", turn, "<start_of_turn>model\n")
    images = hf.Gemma3ImageProcessor(size=WHOLE)
    made = hf.Gemma3Processor(images, words, image_seq_length=4, chat_template=form)
    return hf.Gemma3ForConditionalGeneration(config), made


def paligemma_of(text: type) -> Built:
    """It has no chat template."""
    words = tokenizer({"image_token": "<image>"}, bos="<bos>", eos="<eos>")
    ends = {"bos_token_id": number(words, "<bos>"), "eos_token_id": number(words, "<eos>")}
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER),
        text_config=text(**sizes(head_dim=16, **ends)),
        image_token_index=number(words, "<image>"), projection_dim=64, hidden_size=64,
    )  # fmt: skip
    images = hf.SiglipImageProcessor(size=WHOLE)
    images.image_seq_length = 16
    return hf.PaliGemmaForConditionalGeneration(config), hf.PaliGemmaProcessor(images, words)


@family("PaliGemma")
def paligemma() -> Built:
    return paligemma_of(hf.GemmaConfig)


@family("PaliGemma 2")
def paligemma2() -> Built:
    return paligemma_of(hf.Gemma2Config)


# Idefics -----------------------------------------------------------------------------------------


@family("SmolVLM")
def smolvlm() -> Built:
    marks = {
        "image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
        "end_of_utterance_token": "<end_of_utterance>", "global_image_token": "<global-img>",
        "video_token": "<video>",
    }  # fmt: skip
    words = tokenizer(marks, bos="<|im_start|>", eos="<end_of_utterance>")
    config = hf.SmolVLMConfig(
        vision_config=TOWER, text_config=hf.LlamaConfig(**sizes()), scale_factor=2,
        image_token_id=number(words, "<image>"),
    )  # fmt: skip
    most = {"max_image_size": {"longest_edge": 56}}
    made = hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessor(size={"longest_edge": 224}, **most), words,
        hf.SmolVLMVideoProcessor(size={"longest_edge": 56}, **most), image_seq_len=4,
        chat_template=template("<image>", "<|im_start|>", USER, "Assistant:", "<video>"),
    )  # fmt: skip
    return hf.SmolVLMForConditionalGeneration(config), made


USER = ("{{ m['role'] }}: ", "<end_of_utterance>\n")


@family("Idefics3")
def idefics3() -> Built:
    words = tokenizer({"image_token": "<image>"}, "<|begin_of_text|>", "<end_of_utterance>")
    config = hf.Idefics3Config(
        vision_config=TOWER, text_config=hf.LlamaConfig(**sizes()), scale_factor=2,
        image_token_id=number(words, "<image>"),
    )  # fmt: skip
    images = hf.Idefics3ImageProcessor(
        size={"longest_edge": 224}, max_image_size={"longest_edge": 56}
    )
    form = template("<image>", "<|begin_of_text|>", USER, "Assistant:")
    made = hf.Idefics3Processor(images, words, image_seq_len=4, chat_template=form)
    return hf.Idefics3ForConditionalGeneration(config), made


# Mistral -----------------------------------------------------------------------------------------

PIXTRAL = {**CLIP, "head_dim": 16, "image_size": 1024, "patch_size": 14}
INST = template("[IMG]", "{{ bos_token }}", ("[INST]", "[/INST]"), "")


@family("Pixtral")
def pixtral() -> Built:
    words = tokenizer({"image_token": "[IMG]"})
    config = hf.LlavaConfig(
        vision_config=hf.PixtralVisionConfig(**PIXTRAL), vision_feature_layer=-1,
        text_config=hf.MistralConfig(**sizes(head_dim=16, sliding_window=None)),
        image_token_index=number(words, "[IMG]"), vision_feature_select_strategy="full",
    )  # fmt: skip
    images = hf.PixtralImageProcessor(
        size={"longest_edge": 1024}, patch_size={"height": 14, "width": 14}
    )
    made = hf.PixtralProcessor(images, words, patch_size=14, chat_template=INST)
    return hf.LlavaForConditionalGeneration(config), made


@family("Mistral Small 3")
def mistral3() -> Built:
    words = tokenizer({"image_token": "[IMG]"})
    config = hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(**PIXTRAL), spatial_merge_size=2,
        text_config=hf.MistralConfig(**sizes(head_dim=16, sliding_window=None)),
        image_token_index=number(words, "[IMG]"),
    )  # fmt: skip
    images = hf.PixtralImageProcessor(
        size={"longest_edge": 1024}, patch_size={"height": 28, "width": 28}
    )
    made = hf.PixtralProcessor(
        images, words, patch_size=14, spatial_merge_size=2, chat_template=INST
    )
    return hf.Mistral3ForConditionalGeneration(config), made
