"""Any transformers image-text or text model: loading it and building prompts from chat messages.

Knows model folders, tokenizers and processors. It must not know eviction, tasks or scoring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

from harness.hub import locate

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SMALL = 50_000_000  # parameters
_PLACEHOLDERS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")

Messages = Sequence[Mapping[str, Any]]


@dataclass
class Prompt:
    """One prompt as the model takes it.

    inputs: arguments of forward, input_ids [1, L] among them. modality [L]: 0 text, 1 image.
    suffix: trailing tokens that follow the last user text. context: tokens up to the end of the
    last image or of the text marked with `"context": True`, whichever is later; None without
    either.
    """

    inputs: dict[str, Tensor]
    modality: Tensor
    suffix: int
    context: int | None


@dataclass
class LoadedModel:
    """A model with its processor; tokenizer and processor are one object for text models."""

    model: PreTrainedModel
    processor: Any
    tokenizer: Any
    name: str
    device: torch.device
    dtype: torch.dtype
    fingerprint: str
    takes_images: bool

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""
        ends = self.model.generation_config.eos_token_id
        several = ends if isinstance(ends, list | tuple) else [ends]
        return frozenset(i for i in [*several, self.tokenizer.eos_token_id] if i is not None)

    def letter_ids(self, letters: Sequence[str]) -> list[int]:
        """The last token id of each letter (some tokenizers write a space token before it)."""
        return [self.tokenizer.encode(x, add_special_tokens=False)[-1] for x in letters]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def prompt(self, messages: Messages) -> Prompt:
        """Build the prompt of chat messages in lmms-eval's protocol.

        Each message is {"role", "content": [{"type": "image", "url": PIL image} or {"type": "text",
        "text": str}]}; a final assistant message is continued. ValueError for images where the
        model takes none, and for other content types.
        """
        chat, images = _normalise(messages)
        if images and not self.takes_images:
            raise ValueError(
                f"{self.name} takes no images and the prompt has {len(images)}; choose an "
                "image-text model."
            )
        rendered = self._render(chat)
        encoded = self._encode(rendered, images)
        inputs = {name: self._place(value) for name, value in encoded.items()}
        ids = inputs["input_ids"]
        kinds = modality(self.model.config, ids[0])
        ends = self._trailing(rendered, [_last_user_text(chat), _marked_text(messages)])
        length = ids.shape[1]
        marked = None if ends[1] is None else length - ends[1]
        found = kinds.nonzero()
        last_image = int(found[-1]) + 1 if len(found) else None
        context = max((c for c in (marked, last_image) if c is not None), default=None)
        return Prompt(inputs, kinds, ends[0] or 0, context)

    def _render(self, chat: list[dict[str, Any]]) -> str:
        """The prompt as text; a text model without a chat template gets the plain text."""
        if not self.takes_images:
            chat = [{**m, "content": "".join(p["text"] for p in m["content"])} for m in chat]
            if self.tokenizer.chat_template is None:
                return "\n".join(m["content"] for m in chat)
        continues = chat[-1]["role"] == "assistant"
        return self.processor.apply_chat_template(
            chat,
            tokenize=False,
            add_generation_prompt=not continues,
            continue_final_message=continues,
        )

    def _encode(self, rendered: str, images: list[Any]) -> Mapping[str, Any]:
        if not self.takes_images:
            plain = self.tokenizer.chat_template is None
            return self.tokenizer(rendered, return_tensors="pt", add_special_tokens=plain)
        bos = self.tokenizer.bos_token
        return self.processor(
            text=[rendered],
            images=images or None,
            return_tensors="pt",
            add_special_tokens=not (bos and rendered.startswith(bos)),
        )

    def _place(self, value: Tensor) -> Tensor:
        value = value.to(self.device)
        return value.to(self.dtype) if value.is_floating_point() else value

    def _trailing(self, rendered: str, texts: Sequence[str | None]) -> list[int | None]:
        """How many tokens follow the last occurrence of each text; None where it does not occur."""
        starts = [
            None if text is None or (at := rendered.rfind(text)) < 0 else at + len(text)
            for text in texts
        ]
        if all(start is None for start in starts):
            return [None] * len(texts)
        if not self.tokenizer.is_fast:
            tails = [None if start is None else rendered[start:] for start in starts]
            count = self.tokenizer.encode
            return [None if t is None else len(count(t, add_special_tokens=False)) for t in tails]
        encoded = self.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        return [
            None if start is None else sum(begin >= start for begin, _ in offsets)
            for start in starts
        ]


def modality(config: Any, input_ids: Tensor) -> Tensor:
    """0 for text and 1 for image or video placeholders, int64 [L], of input_ids [L]."""
    known = {getattr(config, name, None) for name in _PLACEHOLDERS} - {None}
    kinds = torch.zeros_like(input_ids)
    for placeholder in known:
        kinds |= input_ids == placeholder
    return kinds


def load(
    pretrained: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a folder or a hub id; weights come from safetensors only.

    device auto: cuda where there is one. dtype auto: bfloat16 on cuda, float32 elsewhere.
    ValueError, one sentence, for what does not exist, cannot be reached or is of another kind.
    """
    target = device_of(device)
    number = _dtype(dtype, target)
    source = locate(pretrained, revision)
    options: dict[str, Any] = {
        "trust_remote_code": trust_remote_code,
        "local_files_only": source.local,
        **({"revision": source.commit} if source.commit else {}),
    }
    try:
        config = AutoConfig.from_pretrained(source.name, **options)
        takes_images = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        if (
            not takes_images
            and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
            and not trust_remote_code
        ):
            raise ValueError(
                f"a {config.model_type} model is neither an image-text nor a causal language model"
            )
        kind = AutoModelForImageTextToText if takes_images else AutoModelForCausalLM
        model = kind.from_pretrained(
            source.name, dtype=number, use_safetensors=True, attn_implementation="sdpa", **options
        )
        reader = AutoProcessor if takes_images else AutoTokenizer
        processor = reader.from_pretrained(source.name, **options)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"model {pretrained!r} cannot be loaded: {reason}; give a folder or hub id of a "
            "complete image-text or text model with safetensors weights."
        ) from error
    tokenizer = processor.tokenizer if takes_images else processor
    placed = model.to(target).eval()
    return LoadedModel(
        placed,
        processor,
        tokenizer,
        pretrained,
        target,
        number,
        source.fingerprint(),
        takes_images,
    )


def use_threads(loaded: LoadedModel, count: int | str) -> None:
    """Set torch's CPU threads: a number, or `auto`, which takes one for small models on the CPU.

    Their operations are too short to share: threads would wait for one another most of the time,
    and on a busy machine for the scheduler as well.
    """
    if count == "auto":
        size = sum(p.numel() for p in loaded.model.parameters())
        if loaded.device.type == "cpu" and size < _SMALL:
            torch.set_num_threads(1)
    else:
        torch.set_num_threads(int(count))


def device_of(name: str) -> torch.device:
    """The device that is meant; ValueError, one sentence, for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is unknown; give auto, cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={name!r} is not supported; give auto, cpu, cuda or cuda:N.")
    present = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= present:
        raise ValueError(
            f"device={name!r} is not there ({present} CUDA devices found); give auto or cpu."
        )
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise ValueError(f"dtype={name!r} is unknown; give auto or one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def _normalise(messages: Messages) -> tuple[list[dict[str, Any]], list[Any]]:
    """Messages with bare image entries, and the images in order."""
    if not messages:
        raise ValueError("the prompt has no messages; give at least one user message.")
    chat: list[dict[str, Any]] = []
    images: list[Any] = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        kept: list[dict[str, Any]] = []
        for part in parts:
            if part["type"] == "image":
                images.append(part.get("url", part.get("image")))
                kept.append({"type": "image"})
            elif part["type"] == "text":
                kept.append({"type": "text", "text": part["text"]})
            else:
                raise ValueError(
                    f"content of type {part['type']!r} is not supported; give text and images."
                )
        chat.append({"role": message["role"], "content": kept})
    return chat, images


def _last_user_text(chat: list[dict[str, Any]]) -> str | None:
    texts = [p["text"] for m in chat if m["role"] == "user" for p in m["content"] if "text" in p]
    return texts[-1].strip() or None if texts else None


def _marked_text(messages: Messages) -> str | None:
    parts = [p for m in messages if not isinstance(m["content"], str) for p in m["content"]]
    marked = [p["text"] for p in parts if p["type"] == "text" and p.get("context")]
    return marked[-1].strip() or None if marked else None
