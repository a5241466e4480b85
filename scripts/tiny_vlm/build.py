"""The untrained model and its processor: a LLaVA with a small CLIP tower and a small Llama."""

from __future__ import annotations

import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from harness.drawing import world
from harness.drawing.render import CELL, SIDE
from harness.embedded import questions, texts
from harness.embedded.words import PATTERN

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
# Said in questions, beside the names of things.
PHRASES = (
    "What is the color of the ? Which color is the shape is that is digit number word text Where "
    "is corner nearest to How many shapes are there Is there a Does the image show a largest Left "
    "Above or left right above below , where background pattern bright light yes no There are "
    "several options : . Answer with the option ' s letter from the given choices directly USER "
    "ASSISTANT A B C D"
)


def picture_words() -> list[str]:
    """Every word that the world and its questions can say, in a fixed order."""
    things = [world.COLORS, world.SHAPES, world.DIGITS, world.WORDS, world.SIZES, world.CORNERS]
    things += [world.BACKGROUNDS, world.BRIGHTNESS, world.COUNTS]
    words = [word for group in things for word in group]
    said = " ".join((PHRASES, *questions.HINTS)).replace(".", " . ").split()
    return list(dict.fromkeys([*SPECIAL, "\n", *words, *said]))


def vocabulary() -> list[str]:
    """Those words, then what texts and their questions say besides."""
    return list(dict.fromkeys([*picture_words(), *texts.vocabulary()]))


def tokenizer(longest: int = 2048) -> PreTrainedTokenizerFast:
    """A word-level tokenizer; words, single digits, marks and newlines are tokens."""
    words = {word: index for index, word in enumerate(vocabulary())}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), "removed", invert=True)
    result = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=longest,
        extra_special_tokens={"image_token": "<image>"},
    )
    result.chat_template = CHAT
    return result


def processor(longest: int = 2048) -> LlavaProcessor:
    """Pixels in [-1, 1] at SIDE x SIDE, 64 image tokens, the chat template above."""
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(longest),
        patch_size=CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )


def model(seed: int) -> LlavaForConditionalGeneration:
    """The model of pictures with random weights; its word embeddings are unit-norm so that they
    add up well.
    """
    torch.manual_seed(seed)
    words = picture_words()
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=CELL,
        projection_dim=96,
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=words.index("<s>"),
        eos_token_id=words.index("</s>"),
        pad_token_id=words.index("<pad>"),
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.index("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=64,
        tie_word_embeddings=True,
    )
    result = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        embedding = result.get_input_embeddings().weight
        embedding.normal_(std=embedding.shape[1] ** -0.5)
    result.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    )
    return result
