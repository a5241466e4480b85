"""A loaded model with its processor: what it says of itself, and prompts built from a chat.

Must not know model folders, eviction, tasks or scoring.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from threading import RLock
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.models import chat
from harness.models.chat import Chat, Messages
from harness.models.configs import auto_class
from harness.models.prompts import Prompt, modality, remember
from harness.models.reader import Reader
from harness.models.segments import Texts, segments

F = TypeVar("F", bound=Callable[..., Any])
_words = RLock()


def _alone(method: F) -> F:
    """One thread at a time: a tokenizer that changes its settings in one fails in another."""

    @wraps(method)
    def called(*given: Any, **named: Any) -> Any:
        with _words:
            return method(*given, **named)

    return cast(F, called)


@dataclass(frozen=True)
class Unloaded:
    """Stands where the model will be until its weights are there."""

    config: Any
    generation_config: Any


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
        known = [i for i in [*several, self.tokenizer.eos_token_id] if isinstance(i, int)]
        return frozenset(i for i in known if self.rows is None or 0 <= i < self.rows)

    @property
    def rows(self) -> int | None:
        """How many token ids the model has embeddings for, by its config."""
        return getattr(self.model.config.get_text_config(decoder=True), "vocab_size", None)

    @cached_property
    def accepted(self) -> frozenset[str]:
        """Inputs that `generate` would hand to the model: no labels, for one."""
        model = type(self.model)
        if isinstance(self.model, Unloaded):
            config = self.model.config
            model = auto_class(config)._model_mapping.get(type(config), None)
        if model is None:  # code that came with the checkpoint
            return frozenset({"input_ids", "attention_mask", "pixel_values"})
        methods = (model.forward, model.prepare_inputs_for_generation)
        names = {name for one in methods for name in inspect.signature(one).parameters}
        return frozenset(names - {"labels", "self"})

    @property
    def reader(self) -> Reader:
        """What turns chats into tokens."""
        return Reader(self.processor, self.tokenizer, self.name, self.takes_images)

    def _modality(self, encoded: Mapping[str, Any]) -> Tensor:
        """0 for text and 1 for image tokens, int64 [L], as the processor says or the config.

        Both: a processor may call the sign of an image so and not what stands for its pixels.
        """
        ids, types = encoded["input_ids"][0], encoded.get("mm_token_type_ids")
        kinds = modality(self.model.config, ids)
        if types is None or not bool(torch.as_tensor(types).any()):
            return kinds.to(self.device)
        kinds = kinds | (torch.as_tensor(types)[0] > 0).to(ids.dtype)
        if isinstance(self.model, PreTrainedModel):
            special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
            remember(self.model, special & {*ids[kinds > 0].tolist()})
        return kinds.to(self.device)

    @_alone
    def letter_ids(self, letters: Sequence[str]) -> list[int]:
        """The last token id of each letter (some tokenizers write a space token before it)."""
        return [self.tokenizer.encode(x, add_special_tokens=False)[-1] for x in letters]

    @_alone
    def ending_ids(self, stops: Sequence[str]) -> frozenset[int]:
        """The last token id of each text; a text that the tokenizer drops has none."""
        encoded = [self.tokenizer.encode(stop, add_special_tokens=False) for stop in stops]
        return frozenset(ids[-1] for ids in encoded if ids)

    @_alone
    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    @_alone
    def encode(self, text: str) -> list[int]:
        """Token ids of a text inside of a prompt."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    @_alone
    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token as text by itself, special ones too."""
        return [self.tokenizer.decode([token]) for token in ids]

    @property
    def context_limit(self) -> int | None:
        """The longest prompt and answer together by the model's own settings, in tokens."""
        text = self.model.config.get_text_config(decoder=True)
        return getattr(text, "max_position_embeddings", None)

    @_alone
    def prompt(
        self,
        messages: Messages,
        room: int | None = None,
        longest: int | None = None,
        texts: Texts | None = None,
    ) -> Prompt:
        """Build the prompt of chat messages in lmms-eval's protocol, see `chat.read`.

        A final assistant message is continued. A text of more than `longest` tokens, and a prompt
        of more than `room`, lose their middle where the messages allow it. ValueError, one
        sentence, for images where the model takes none, and for a prompt that does not fit.
        texts: what the prompt's segments tell apart.
        """
        said = chat.read(messages)
        if said.shows and not self.takes_images:
            count = len(said.images) + len(said.videos)
            raise ValueError(
                f"{self.name} takes no images and the prompt has {count}; choose an image-text "
                "model."
            )
        rendered = self.reader.render(said)
        encoded = self.reader.encode(rendered, said)
        length = _length(encoded)
        if longest is not None and said.cuttable:
            said = self.reader.halves(said, longest)
            rendered = self.reader.render(said)
            encoded = self.reader.encode(rendered, said)
        if room is not None and _length(encoded) > room:
            said, rendered, encoded = self._shortened(said, _length(encoded), room)
        cut = length - _length(encoded)
        return self._prompt(said, rendered, encoded, cut, texts or Texts())

    def rendered(self, messages: Messages) -> str:
        """The text of a prompt before it is split into tokens."""
        return self.reader.render(chat.read(messages))

    def _prompt(
        self, said: Chat, rendered: str, encoded: Mapping[str, Any], cut: int, texts: Texts
    ) -> Prompt:
        self._check_ids(encoded)
        inputs = {n: self._place(value) for n, value in encoded.items() if n in self.accepted}
        ids = inputs["input_ids"]
        kinds = self._modality(encoded)
        marked = said.context.strip() or None if said.context else None
        plain = self.reader.plain(rendered)
        ends = self.reader.trailing(rendered, [said.last_user_text, marked], plain)
        found = kinds.nonzero()
        after_images = ids.shape[1] - (int(found[-1]) + 1 if len(found) else 0)
        # A text before the last image ends later than that: images are counted unexpanded there.
        behind = [end for end in (ends[1], after_images if len(found) else None) if end is not None]
        context = ids.shape[1] - min(behind) if behind else None
        suffix = min(ends[0] or 0, after_images)
        parts = segments(rendered, said, texts, ids[0].tolist(), kinds.tolist(), plain)
        return Prompt(inputs, kinds, suffix, context, cut, parts)

    def _shortened(self, said: Chat, length: int, room: int) -> tuple[Chat, str, Mapping[str, Any]]:
        """The chat without the middle of its user text; text decoded from tokens can come out
        longer, so it is cut until it fits.
        """
        text = said.only_user_text()
        if not said.cuttable or text is None:
            raise ValueError(
                f"a prompt of {length:,} tokens does not fit the {room:,} that {self.name} takes "
                "beside its answer; choose a task with shorter prompts or a model with a longer "
                "context, or set model.max_length if it is longer than its settings say."
            )
        wanted = room - (length - len(self.tokenizer(text).input_ids))
        while wanted > 1:
            shorter = self.reader.halves(said, wanted)
            rendered = self.reader.render(shorter)
            encoded = self.reader.encode(rendered, shorter)
            excess = _length(encoded) - room
            if excess <= 0:
                return shorter, rendered, encoded
            wanted -= excess
        raise ValueError(
            f"the chat template of {self.name} leaves no room for text in {room:,} tokens; set a "
            "larger model.max_length."
        )

    def _check_ids(self, encoded: Mapping[str, Any]) -> None:
        """ValueError for a token of the text that the model has no embedding for."""
        text = encoded["input_ids"][0][self._modality(encoded).cpu() == 0]
        highest = int(text.max()) if len(text) else 0
        if self.rows is not None and highest >= self.rows:
            raise ValueError(
                f"the tokenizer of {self.name} writes {self.tokenizer.decode([highest])!r} as "
                f"token {highest:,} and the model has {self.rows:,} tokens; give the tokenizer "
                "files that were saved with this model."
            )

    def _place(self, value: Tensor) -> Tensor:
        value = value.to(self.device)
        return value.to(self.dtype) if value.is_floating_point() else value


def _length(encoded: Mapping[str, Any]) -> int:
    return int(encoded["input_ids"].shape[1])
