"""Image-text families whose inputs, towers or decoders are their own."""

from __future__ import annotations

import transformers as hf

from tests.families.base import CLIP, number, sizes, template, tokenizer
from tests.families.vision import FAMILIES, TOWER, USER, WHOLE, Built, family

__all__ = ["FAMILIES"]


@family("ViP-LLaVA")
def vipllava() -> Built:
    words = tokenizer({"image_token": "<image>"}, add_bos=True)
    config = hf.VipLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER), text_config=hf.LlamaConfig(**sizes()),
        image_token_index=number(words, "<image>"), vision_feature_layer=[-2, -1],
    )  # fmt: skip
    images = hf.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=WHOLE)
    form = template("<image>\n", turn=("###{{ m['role'] }}: ", "\n"), answer="###Assistant:")
    made = hf.LlavaProcessor(
        images, words, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=form,
    )  # fmt: skip
    return hf.VipLlavaForConditionalGeneration(config), made


@family("Video-LLaVA")
def video_llava() -> Built:
    words = tokenizer({"image_token": "<image>", "video_token": "<video>"}, add_bos=True)
    config = hf.VideoLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER), text_config=hf.LlamaConfig(**sizes()),
        image_token_index=number(words, "<image>"), video_token_index=number(words, "<video>"),
    )  # fmt: skip
    square = {"size": {"shortest_edge": 56}, "crop_size": WHOLE}
    form = template("<image>\n", "", ("{{ m['role'] }}: ", " "), "ASSISTANT:", "<video>\n")
    made = hf.VideoLlavaProcessor(
        hf.VideoLlavaImageProcessor(**square), hf.VideoLlavaVideoProcessor(**square), words,
        chat_template=form,
    )  # fmt: skip
    return hf.VideoLlavaForConditionalGeneration(config), made


@family("GLM-4.1V")
def glm4v() -> Built:
    marks = {"image_token": "<|image|>", "video_token": "<|video|>"}
    words = tokenizer(marks, eos="<|user|>")
    ids = {
        "image_token_id": "<|image|>", "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>", "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>", "video_end_token_id": "<|end_of_video|>",
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1],
            "partial_rotary_factor": 0.5}  # fmt: skip
    tower = hf.Glm4vConfig().vision_config.to_dict() | {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 64, "image_size": 112,
        "intermediate_size": 48,
    }  # fmt: skip
    config = hf.Glm4vConfig(
        vision_config=tower,
        text_config=sizes(rope_parameters=rope, eos_token_id=number(words, "<|user|>")),
        **{key: number(words, name) for key, name in ids.items()},
    )
    shown = "<|begin_of_image|><|image|><|end_of_image|>"
    form = template(shown, "", ("<|{{ m['role'] }}|>\n", ""), "<|assistant|>\n",
                    "<|begin_of_video|><|video|><|end_of_video|>")  # fmt: skip
    images = hf.Glm4vImageProcessor(size={"shortest_edge": 4 * 28**2, "longest_edge": 64 * 28**2})
    made = hf.Glm4vProcessor(images, words, hf.Glm4vVideoProcessor(), chat_template=form)
    return hf.Glm4vForConditionalGeneration(config), made


@family("Idefics2")
def idefics2() -> Built:
    marks = {"image_token": "<image>", "image_boundary_token": "<fake_token_around_image>"}
    words = tokenizer(marks, eos="<end_of_utterance>", add_bos=True)
    config = hf.Idefics2Config(
        vision_config=TOWER,
        perceiver_config={"hidden_size": 64, "resampler_n_latents": 4, "resampler_depth": 1,
                          "resampler_n_heads": 4, "resampler_head_dim": 16,
                          "num_key_value_heads": 2, "rms_norm_eps": 1e-6},
        text_config=hf.MistralConfig(**sizes(head_dim=16, sliding_window=None)),
        image_token_id=number(words, "<image>"),
    )  # fmt: skip
    images = hf.Idefics2ImageProcessor(size={"shortest_edge": 42, "longest_edge": 56})
    form = template("<image>", "", USER, "Assistant:")
    made = hf.Idefics2Processor(images, words, image_seq_len=4, chat_template=form)
    return hf.Idefics2ForConditionalGeneration(config), made


@family("Ovis2")
def ovis2() -> Built:
    words = tokenizer({"image_token": "<image>"}, eos="<|im_end|>", bos=None)
    named = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tower = {**CLIP, "image_size": 56, "patch_size": 14, "vocab_size": 32, "hidden_stride": 2,
             "num_visual_indicator_tokens": 5}  # fmt: skip
    config = hf.Ovis2Config(
        vision_config=tower, text_config=hf.Qwen2Config(**sizes()), hidden_size=64, vocab_size=640,
        image_token_id=number(words, "<IMG_ATOM>"),
        visual_indicator_token_ids=[number(words, name) for name in named],
    )  # fmt: skip
    images = hf.Ovis2ImageProcessor(size=WHOLE, crop_to_patches=True, max_patches=4)
    made = hf.Ovis2Processor(images, words, image_seq_length=4, chat_template=template("<image>\n"))
    return hf.Ovis2ForConditionalGeneration(config), made


@family("GOT-OCR 2")
def got_ocr2() -> Built:
    """It has no chat template, and always 256 tokens an image."""
    words = tokenizer(None, eos="<|im_end|>", bos=None)
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 48,
             "output_channels": 16, "image_size": 256, "patch_size": 4, "window_size": 8,
             "global_attn_indexes": []}  # fmt: skip
    config = hf.GotOcr2Config(
        vision_config=tower, text_config=hf.Qwen2Config(**sizes()),
        image_token_index=number(words, "<imgpad>"),
    )  # fmt: skip
    images = hf.GotOcr2ImageProcessor(size={"height": 256, "width": 256})
    return hf.GotOcr2ForConditionalGeneration(config), hf.GotOcr2Processor(images, words)


HEARS = {
    "image_token": "<image_soft_token>", "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>", "audio_token": "<audio_soft_token>",
    "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>",
}  # fmt: skip
GEMMA_TURN = ("<start_of_turn>{{ m['role'] }}\n", "<end_of_turn>\n")


@family("Gemma 4")
def gemma4() -> Built:
    words = tokenizer(HEARS, bos="<bos>", eos="<eos>", add_bos=True)
    ids = {f"{key}_id": number(words, name) for key, name in HEARS.items()}
    ids["eoa_token_index"] = ids.pop("eoa_token_id")
    text = hf.Gemma4TextConfig(
        **sizes(num_hidden_layers=6, head_dim=16, sliding_window=40, global_head_dim=32,
                layer_types=["sliding_attention", "full_attention"] * 3,
                bos_token_id=number(words, "<bos>"), eos_token_id=number(words, "<eos>")),
        num_kv_shared_layers=2, hidden_size_per_layer_input=8, vocab_size_per_layer_input=640,
        use_bidirectional_attention=None,
    )  # fmt: skip
    tower = {**CLIP, "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 64}
    config = hf.Gemma4Config(
        vision_config=tower, text_config=text, video_token_id=number(words, "<|video|>"), **ids
    )
    form = template("<image_soft_token>", "{{ bos_token }}", GEMMA_TURN, "<start_of_turn>model\n")
    made = hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(), hf.Gemma4ImageProcessor(max_soft_tokens=70), words,
        hf.Gemma4VideoProcessor(), form, image_seq_length=70,
    )  # fmt: skip
    return hf.Gemma4ForConditionalGeneration(config), made


@family("Gemma 3n")
def gemma3n() -> Built:
    words = tokenizer(HEARS, bos="<bos>", eos="<eos>", add_bos=True)
    ids = {f"{key}_id": number(words, name) for key, name in HEARS.items()}
    text = hf.Gemma3nTextConfig(
        **sizes(num_hidden_layers=4, head_dim=16, sliding_window=40, num_kv_shared_layers=2,
                layer_types=["sliding_attention", "full_attention"] * 2,
                intermediate_size=[96] * 4, vocab_size_per_layer_input=640,
                hidden_size_per_layer_input=8, laurel_rank=4,
                activation_sparsity_pattern=[0.0] * 4,
                bos_token_id=number(words, "<bos>"), eos_token_id=number(words, "<eos>"))
    )  # fmt: skip
    config = hf.Gemma3nConfig(
        text_config=text, vision_soft_tokens_per_image=4,
        vision_config={"architecture": "resnet10t", "hidden_size": 512, "vocab_size": 8,
                       "vocab_offset": 600},
        audio_config={"hidden_size": 32, "conf_num_attention_heads": 2, "vocab_size": 8,
                      "conf_num_hidden_layers": 1, "vocab_offset": 608,
                      "sscp_conv_channel_size": [8, 4]},
        **ids,
    )  # fmt: skip
    form = template("<image_soft_token>", "{{ bos_token }}", GEMMA_TURN, "<start_of_turn>model\n")
    made = hf.Gemma3nProcessor(
        hf.Gemma3nAudioFeatureExtractor(),
        hf.SiglipImageProcessor(size={"height": 64, "width": 64}), words, form,
        image_seq_length=4,
    )  # fmt: skip
    return hf.Gemma3nForConditionalGeneration(config), made


@family("Molmo 2")
def molmo2() -> Built:
    marks = {"image_token": "<|image|>", "video_token": "<|video|>"}
    words = tokenizer(marks, bos="<|im_end|>", eos="<|im_end|>")
    ids = {
        "image_start_token_id": "<im_start>", "low_res_image_start_token_id": "<low_res_im_start>",
        "image_end_token_id": "<im_end>", "image_patch_id": "<im_patch>",
        "frame_start_token_id": "<frame_start>", "frame_end_token_id": "<frame_end>",
    }  # fmt: skip
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    tower = {**CLIP, **heads, "image_size": [56, 56], "patch_size": 14}
    adapter = {"vision_feature_layer": [-1, 0], "hidden_size": 32, **heads,
               "intermediate_size": 48, "text_hidden_size": 64}  # fmt: skip
    text = hf.Molmo2TextConfig(**sizes(head_dim=16, vocab_size=512), additional_vocab_size=128)
    config = hf.Molmo2Config(
        vision_config=tower, adapter_config=adapter, text_config=text,
        **{key: number(words, name) for key, name in ids.items()},
    )  # fmt: skip
    images = hf.Molmo2ImageProcessor(size=WHOLE, max_crops=4, overlap_margins=[1, 1])
    made = hf.Molmo2Processor(
        images, hf.Molmo2VideoProcessor(size=WHOLE), words,
        chat_template=template("<|image|>", video="<|video|>"),
    )  # fmt: skip
    return hf.Molmo2ForConditionalGeneration(config), made
