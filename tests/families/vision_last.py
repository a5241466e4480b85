"""Image-text families that transformers files apart: without a tower, with ears, or refused."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.families.base import CLIP, VOCAB, number, sizes, template, tokenizer
from tests.families.vision import FAMILIES, QWEN, WHOLE, Built, family

__all__ = ["FAMILIES"]


@family("Fuyu")
def fuyu() -> Built:
    """Patches of pixels go straight into the decoder; its processor lays out the prompt."""
    words = tokenizer(None, eos="|ENDOFTEXT|")
    text = hf.PersimmonConfig(**sizes(num_key_value_heads=4, hidden_act="relu2"))
    config = hf.FuyuConfig(
        text_config=text, patch_size=30, image_token_id=number(words, "|SPEAKER|")
    )
    images = hf.FuyuImageProcessor(size={"height": 90, "width": 120})
    return hf.FuyuForCausalLM(config), hf.FuyuProcessor(images, words)


@family("Phi-4-multimodal")
def phi4_multimodal() -> Built:
    """An image of 448 pixels always has 273 tokens."""
    marks = {"image_token": "<|endoftext10|>", "audio_token": "<|endoftext11|>"}
    words = tokenizer(marks, eos="<|endoftext|>", bos=None)
    tower = {**CLIP, "num_hidden_layers": 1, "image_token_id": number(words, "<|endoftext10|>")}
    ears = {
        "hidden_size": 32, "intermediate_size": 48, "num_blocks": 1, "num_attention_heads": 2,
        "ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32,
        "nemo_conv_channels": 8, "audio_token_id": number(words, "<|endoftext11|>"),
    }  # fmt: skip
    ends = [number(words, name) for name in ("<|endoftext|>", "<|end|>")]
    config = hf.Phi4MultimodalConfig(
        vision_config=tower, audio_config=ears,
        **sizes(eos_token_id=ends, bos_token_id=None, pad_token_id=ends[0]),
    )  # fmt: skip
    form = template("<|endoftext10|>", "", ("<|{{ m['role'] }}|>", "<|end|>"), "<|assistant|>")
    made = hf.Phi4MultimodalProcessor(
        hf.Phi4MultimodalImageProcessor(dynamic_hd=1), hf.Phi4MultimodalFeatureExtractor(), words,
        chat_template=form,
    )  # fmt: skip
    return hf.Phi4MultimodalForCausalLM(config), made


OMNI_MARKS = {
    "image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
}  # fmt: skip


@family("Qwen2.5-Omni")
def qwen2_5_omni() -> Built:
    """The whole folder: what thinks, what talks and what makes sound of that."""
    words = tokenizer(OMNI_MARKS, eos="<|im_end|>", bos=None, pad="<|endoftext|>")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text = sizes(rope_parameters=rope, eos_token_id=number(words, "<|im_end|>"),
                 pad_token_id=number(words, "<|endoftext|>"))  # fmt: skip
    tower = {**QWEN, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64,
             "window_size": 56, "fullatt_block_indexes": [1]}  # fmt: skip
    ears = {"num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48, "d_model": 32, "output_dim": 64, "n_window": 4}  # fmt: skip
    thinker = {
        "vision_config": tower, "audio_config": ears, "text_config": text,
        "image_token_index": number(words, "<|IMAGE|>"),
        "video_token_index": number(words, "<|VIDEO|>"),
        "audio_token_index": number(words, "<|AUDIO|>"),
        "vision_start_token_id": number(words, "<|vision_bos|>"),
        "audio_start_token_id": number(words, "<|audio_bos|>"),
    }  # fmt: skip
    config = hf.Qwen2_5OmniConfig(
        thinker_config=thinker, talker_config=talker(rope), token2wav_config=SOUND
    )
    shown = "<|vision_bos|><|IMAGE|><|vision_eos|>"
    made = hf.Qwen2_5OmniProcessor(
        hf.Qwen2VLImageProcessor(patch_size=14, min_pixels=4 * 14**2, max_pixels=1280 * 28**2),
        hf.Qwen2VLVideoProcessor(), hf.WhisperFeatureExtractor(feature_size=8), words,
        chat_template=template(shown, video=shown.replace("IMAGE", "VIDEO")),
    )  # fmt: skip
    return hf.Qwen2_5OmniForConditionalGeneration(config), made


def talker(rope: dict[str, Any]) -> dict[str, Any]:
    """The config of what says aloud."""
    return sizes(
        vocab_size=64, embedding_size=64, hidden_size=32, intermediate_size=48, head_dim=16,
        num_hidden_layers=1, rope_parameters=rope,
    )  # fmt: skip


SOUND = {
    "dit_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                   "head_dim": 16, "emb_dim": 8, "num_embeds": 17, "enc_emb_dim": 8, "enc_dim": 8,
                   "enc_channels": [8, 8, 8, 8, 24], "enc_attention_channels": 8,
                   "enc_res2net_scale": 2, "enc_se_channels": 8},
    "bigvgan_config": {"upsample_initial_channel": 64},
}  # fmt: skip


@family("Kimi K2.5")
def kimi_k25() -> Built:
    marks = {"image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>"}
    words = tokenizer(marks, eos="<|im_end|>", bos=None)
    text = hf.DeepseekV3Config(
        **sizes(num_key_value_heads=4, moe_intermediate_size=32, n_routed_experts=4,
                num_experts_per_tok=2, n_group=1, topk_group=1, kv_lora_rank=16, q_lora_rank=16,
                qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16, first_k_dense_replace=1)
    )  # fmt: skip
    config = hf.Kimi_K25Config(
        text_config=text, vision_config={**CLIP, "pos_emb_height": 8, "pos_emb_width": 8},
        projection_hidden_size=32, image_token_id=number(words, "<|media_pad|>"),
        video_token_id=number(words, "<|kimi_k25_video_placeholder|>"),
        tie_word_embeddings=False,
    )  # fmt: skip
    made = hf.Kimi_K25Processor(
        hf.Kimi_K25ImageProcessor(), words, hf.Kimi_K25VideoProcessor(),
        chat_template=template("<|media_pad|>"),
    )  # fmt: skip
    return hf.Kimi_K25ForConditionalGeneration(config), made


@family("Idefics")
def idefics() -> Built:
    """Each few layers look at the images by a cross-attention of their own."""
    words = tokenizer({"image_token": "<image>"}, eos="</s>", add_bos=True)
    config = hf.IdeficsConfig(
        **{**sizes(num_key_value_heads=4), "vocab_size": VOCAB}, additional_vocab_size=0,
        cross_layer_interval=2, use_resampler=False,
        vision_config={"embed_dim": 32, "image_size": 56, "intermediate_size": 48,
                       "num_hidden_layers": 1, "num_attention_heads": 2},
    )  # fmt: skip
    form = template("<image>", "", ("{{ m['role'] }}: ", "\n"), "Assistant:")
    images = hf.IdeficsImageProcessor(image_size=WHOLE["height"])
    made = hf.IdeficsProcessor(images, words)
    made.chat_template = words.chat_template = form
    model = hf.IdeficsForVisionText2Text(config)
    model.generation_config.bad_words_ids = [
        [number(words, name)] for name in ("<fake_token_around_image>", "<image>")
    ]
    return model, made
