"""An image-text model of parts: a text model, a vision tower, a projector and a low-rank adapter.

The text model is SmolLM2 as its package holds it, the tower that of tiny_vlm. Must not know where
the result is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from harness.models.modelfiles import listed
from harness.models.reading import quiet, reading
from harness.models.saving import save

_REMEDY = "restore the folder, or download it again"
UNUSED, IMAGE = "<reponame>", "<image>"  # a token that SmolLM2 never saw becomes the image's
TEXT = "message['content']"


def untrained(text: Path, pictures: Path, seed: int = 0) -> LlavaForConditionalGeneration:
    """The model without its adapter, in float32; the projector's weights are random.

    Args:
        text: folder of a text model of the Llama family.
        pictures: folder of a LLaVA model, whose tower is taken.
        seed: of the projector.
    """
    torch.manual_seed(seed)
    language = AutoModelForCausalLM.from_pretrained(text, dtype=torch.float32)
    seeing = AutoModelForImageTextToText.from_pretrained(pictures, dtype=torch.float32)
    config = LlavaConfig(
        vision_config=seeing.config.vision_config,
        text_config=language.config,
        image_token_index=tokenizer(text).convert_tokens_to_ids(IMAGE),
        vision_feature_layer=seeing.config.vision_feature_layer,
        vision_feature_select_strategy=seeing.config.vision_feature_select_strategy,
        image_seq_length=seeing.config.image_seq_length,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(seeing.model.vision_tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig.from_pretrained(text)
    return model.eval()


def tokenizer(text: Path) -> Any:
    """SmolLM2's own tokenizer, in which one unused token is called `<image>`."""
    found = AutoTokenizer.from_pretrained(text)
    if UNUSED not in found.get_vocab():
        raise ValueError(f"the text model has no unused token {UNUSED} to stand for an image")
    backend = found.backend_tokenizer.to_str().replace(f'"{UNUSED}"', f'"{IMAGE}"')
    result = type(found)(
        tokenizer_object=type(found.backend_tokenizer).from_str(backend),
        bos_token=found.bos_token,
        eos_token=found.eos_token,
        pad_token=found.pad_token,
        unk_token=found.unk_token,
        padding_side="left",
        model_max_length=8192,
        extra_special_tokens={"image_token": IMAGE},
    )
    result.chat_template = chat(found.chat_template)
    return result


def chat(template: str) -> str:
    """SmolLM2's chat template, which then takes a message of parts as well as a text."""
    before, after = template.split(f" + {TEXT} + ")
    said = (
        "{% if " + TEXT + " is string %}{{ " + TEXT + " }}{% else %}"
        "{% for part in " + TEXT + " %}{% if part['type'] == 'image' %}<image>\n"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    )
    return f"{before} }}}}{said}{{{{ {after}"


def processor(text: Path, pictures: Path) -> LlavaProcessor:
    """The processor of `pictures` with the tokenizer and the chat template of `text`."""
    result = AutoProcessor.from_pretrained(pictures)
    words = tokenizer(text)
    return LlavaProcessor(
        image_processor=result.image_processor,
        tokenizer=words,
        patch_size=result.patch_size,
        vision_feature_select_strategy=result.vision_feature_select_strategy,
        num_additional_image_tokens=result.num_additional_image_tokens,
        chat_template=words.chat_template,
    )


def write(text: Path, pictures: Path, adapter: Path, folder: Path) -> None:
    """Write the whole model and its processor, in float32.

    Args:
        text: folder of a text model.
        pictures: folder of a LLaVA model.
        adapter: a safetensors file that says its `scale`, see `add`.
        folder: is made.

    Raises:
        ValueError: one sentence: a part cannot be read, or the adapter is for another model.
    """
    with reading(str(adapter), "the adapter", _REMEDY), quiet():
        with safe_open(adapter, "pt") as file:
            scale = float((file.metadata() or {})["scale"])
            numbers = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model = untrained(text, pictures)
        add(model, numbers, scale)
    save(model, processor(text, pictures), folder)


def add(
    model: LlavaForConditionalGeneration, numbers: dict[str, torch.Tensor], scale: float
) -> None:
    """Put a projector and a low-rank adapter into a model: W + scale B A, in float32.

    Args:
        model: what `untrained` gives.
        numbers: the projector's by their names in `model.model`, the adapter's by the name of a
            projection with `.lora_A` [r, in] or `.lora_B` [out, r] behind it; all of any dtype.
        scale: of the product.

    Raises:
        ValueError: the model has no such weights, or numbers are missing.
    """
    own = dict(model.model.named_parameters())
    low = {name.removesuffix(".lora_A") for name in numbers if name.endswith(".lora_A")}
    plain = {name for name in own if name.startswith("multi_modal_projector.")}
    wanted = {f"{name}{part}" for name in low for part in (".lora_A", ".lora_B")} | plain
    if wrong := sorted(wanted ^ numbers.keys()):
        raise ValueError(f"it lacks or has beyond need: {listed(wrong)}")
    with torch.no_grad():
        for name in low:
            below, above = numbers[f"{name}.lora_A"].float(), numbers[f"{name}.lora_B"].float()
            own[f"{name}.weight"] += scale * (above @ below)
        for name in plain:
            own[name].copy_(numbers[name])
