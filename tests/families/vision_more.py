"""More image-text families: one tower, one projection, and a decoder that is known by itself."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.families.base import CLIP, number, sizes, template, tokenizer
from tests.families.vision import FAMILIES, TOWER, WHOLE, Built, family

__all__ = ["FAMILIES"]

# Cohere ------------------------------------------------------------------------------------------

COHERE_MARKS = {
    "image_token": "<|IMG_PATCH|>", "boi_token": "<|START_OF_IMG|>",
    "eoi_token": "<|END_OF_IMG|>", "img_line_break_token": "<|IMG_LINE_BREAK|>",
}  # fmt: skip
COHERE_TURN = ("<|START_OF_TURN_TOKEN|>{{ m['role'] }}: ", "<|END_OF_TURN_TOKEN|>")


def cohere(image: str, marks: dict[str, str] | None) -> tuple[Any, Any, str]:
    """The tokenizer, the text config and the chat template."""
    words = tokenizer(marks, eos="<|END_OF_TURN_TOKEN|>")
    text = hf.Cohere2Config(
        **sizes(head_dim=16, num_hidden_layers=4, sliding_window=40, logit_scale=1.0,
                layer_types=["sliding_attention", "full_attention"] * 2,
                eos_token_id=number(words, "<|END_OF_TURN_TOKEN|>"))
    )  # fmt: skip
    answer = "<|START_OF_TURN_TOKEN|>assistant: "
    return words, text, template(image, "{{ bos_token }}", COHERE_TURN, answer)


@family("Aya Vision")
def aya_vision() -> Built:
    words, text, form = cohere("<image>", None)
    config = hf.AyaVisionConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER), text_config=text, downsample_factor=2,
        image_token_index=number(words, "<|IMG_PATCH|>"),
    )  # fmt: skip
    made = hf.AyaVisionProcessor(
        hf.GotOcr2ImageProcessor(size=WHOLE, crop_to_patches=True, max_patches=4), words,
        patch_size=14, img_size=56, downsample_factor=2, chat_template=form,
    )  # fmt: skip
    return hf.AyaVisionForConditionalGeneration(config), made


@family("Command A Vision")
def command_a_vision() -> Built:
    words, text, form = cohere("<|IMG_PATCH|>", COHERE_MARKS)
    config = hf.Cohere2VisionConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER), text_config=text, downsample_factor=2,
        image_token_id=number(words, "<|IMG_PATCH|>"), alignment_intermediate_size=64,
    )  # fmt: skip
    images = hf.Cohere2VisionImageProcessor(size=WHOLE, max_patches=4, patch_size=2)
    made = hf.Cohere2VisionProcessor(images, words, chat_template=form)
    return hf.Cohere2VisionForConditionalGeneration(config), made


# Liquid ------------------------------------------------------------------------------------------


@family("LFM2-VL")
def lfm2_vl() -> Built:
    marks = {
        "image_token": "<image>", "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>", "image_thumbnail_token": "<|img_thumbnail|>",
    }  # fmt: skip
    words = tokenizer(marks, eos="<|im_end|>")
    text = hf.Lfm2Config(
        **sizes(num_hidden_layers=4, block_ff_dim=96, eos_token_id=number(words, "<|im_end|>"),
                layer_types=["conv", "full_attention", "conv", "full_attention"])
    )  # fmt: skip
    tower = hf.Siglip2VisionConfig(**CLIP, patch_size=16, num_patches=16)
    config = hf.Lfm2VlConfig(
        vision_config=tower, text_config=text, projector_hidden_size=48,
        image_token_id=number(words, "<image>"),
    )  # fmt: skip
    images = hf.Lfm2VlImageProcessor(
        tile_size=64, max_tiles=4, min_image_tokens=4, max_image_tokens=16,
        size={"height": 64, "width": 64},
    )  # fmt: skip
    form = template("<image>", "{{ bos_token }}")
    return hf.Lfm2VlForConditionalGeneration(config), hf.Lfm2VlProcessor(images, words, form)


# Meta --------------------------------------------------------------------------------------------

LLAMA_TURN = ("<|header_start|>{{ m['role'] }}<|header_end|>\n\n", "<|eot|>")
LLAMA_ANSWER = "<|header_start|>assistant<|header_end|>\n\n"


@family("Llama 4")
def llama4() -> Built:
    words = tokenizer(None, bos="<|begin_of_text|>", eos="<|eot|>")
    text = hf.Llama4TextConfig(
        **sizes(head_dim=16, num_hidden_layers=4, num_local_experts=2, num_experts_per_tok=1,
                intermediate_size_mlp=96, attention_chunk_size=64,
                eos_token_id=number(words, "<|eot|>"))
    )  # fmt: skip
    tower = hf.Llama4VisionConfig(
        **{**TOWER, "intermediate_size": 128}, vision_output_dim=32, projector_input_dim=32,
        projector_output_dim=32,
    )  # fmt: skip
    config = hf.Llama4Config(
        vision_config=tower, text_config=text, image_token_index=number(words, "<|patch|>"),
        boi_token_index=number(words, "<|image_start|>"),
        eoi_token_index=number(words, "<|image_end|>"),
    )  # fmt: skip
    form = template("<|image|>", "{{ bos_token }}", LLAMA_TURN, LLAMA_ANSWER)
    images = hf.Llama4ImageProcessor(size=WHOLE, max_patches=4)
    made = hf.Llama4Processor(images, words, patch_size=14, chat_template=form)
    return hf.Llama4ForConditionalGeneration(config), made


@family("Llama 3.2 Vision")
def mllama() -> Built:
    words = tokenizer({"image_token": "<|image|>"}, bos="<|begin_of_text|>", eos="<|eot|>")
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    text = hf.MllamaTextConfig(
        **sizes(num_hidden_layers=4, cross_attention_layers=[1, 3], rope_parameters=rope)
    )
    tower = hf.MllamaVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, attention_heads=2,
        num_global_layers=1, image_size=56, intermediate_layers_indices=[0, 1],
        vision_output_dim=96,
    )  # fmt: skip
    config = hf.MllamaConfig(
        vision_config=tower, text_config=text, image_token_index=number(words, "<|image|>")
    )
    form = template("<|image|>", "{{ bos_token }}", LLAMA_TURN, LLAMA_ANSWER)
    made = hf.MllamaProcessor(hf.MllamaImageProcessor(size=WHOLE), words, chat_template=form)
    return hf.MllamaForConditionalGeneration(config), made


@family("Perception LM")
def perception_lm() -> Built:
    marks = {"image_token": "<image>", "video_token": "<video>"}
    words = tokenizer(marks, bos="<|begin_of_text|>", eos="<|eot|>")
    tower = hf.TimmWrapperConfig(
        architecture="vit_pe_core_large_patch14_336", do_pooling=False, num_classes=0,
        model_args={"embed_dim": 64, "img_size": [56, 56], "depth": 2, "global_pool": "",
                    "use_post_transformer_norm": False, "init_values": 0.1,
                    "ref_feat_shape": [4, 4]},
    )  # fmt: skip
    config = hf.PerceptionLMConfig(
        vision_config=tower, text_config=hf.LlamaConfig(**sizes()), projector_pooling_ratio=2,
        image_token_id=number(words, "<image>"), video_token_id=number(words, "<video>"),
    )  # fmt: skip
    images = hf.PerceptionLMImageProcessor(tile_size=56, max_num_tiles=4, size=WHOLE)
    made = hf.PerceptionLMProcessor(
        hf.PerceptionLMVideoProcessor(size=WHOLE), images, words, patch_size=14, pooling_ratio=2,
        chat_template=template("<image>", "{{ bos_token }}", LLAMA_TURN, LLAMA_ANSWER, "<video>"),
    )  # fmt: skip
    return hf.PerceptionLMForConditionalGeneration(config), made


# DeepSeek ----------------------------------------------------------------------------------------

DEEPSEEK_MARKS = {
    "image_token": "<image_placeholder>", "boi_token": "<begin_of_image>",
    "eoi_token": "<|end_of_image|>",
}  # fmt: skip


def deepseek() -> tuple[Any, Any, str]:
    """The tokenizer, the text config and the chat template."""
    words = tokenizer(DEEPSEEK_MARKS, add_bos=True)
    form = template("<image_placeholder>\n", "", ("{{ m['role'] }}: ", "\n\n"), "Assistant:")
    return words, hf.LlamaConfig(**sizes()), form


@family("DeepSeek-VL")
def deepseek_vl() -> Built:
    words, text, form = deepseek()
    config = hf.DeepseekVLConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER), text_config=text,
        image_token_id=number(words, "<image_placeholder>"),
    )  # fmt: skip
    images = hf.DeepseekVLImageProcessor(size=WHOLE)
    made = hf.DeepseekVLProcessor(images, words, form, num_image_tokens=16)
    return hf.DeepseekVLForConditionalGeneration(config), made


@family("Janus-Pro")
def janus() -> Built:
    words, text, form = deepseek()
    tower = hf.JanusVisionConfig(**TOWER, mlp_ratio=2, projection_dim=64, num_image_tokens=16)
    drawing = hf.JanusVQVAEConfig(
        embed_dim=8, num_embeddings=16, latent_channels=32, base_channels=32,
        channel_multiplier=[1, 1], num_res_blocks=1, projection_dim=64, image_token_embed_dim=64,
    )  # fmt: skip
    config = hf.JanusConfig(
        vision_config=tower, vq_config=drawing, text_config=text,
        image_token_id=number(words, "<image_placeholder>"),
    )  # fmt: skip
    made = hf.JanusProcessor(hf.JanusImageProcessor(size=WHOLE), words, form, num_image_tokens=16)
    return hf.JanusForConditionalGeneration(config), made
