"""What a model's processor makes of a chat: its text, and the tokens and pixels of that.

Knows tokenizers and processors. Must not know the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from harness.models.chat import Chat
from harness.models.reading import reason
from harness.models.segments import Encoded


@dataclass(frozen=True)
class Reader:
    """A processor and its tokenizer, one object for text models; name: of their model."""

    processor: Any
    tokenizer: Any
    name: str
    takes_images: bool

    @property
    def _template(self) -> str | None:
        """The chat template: a processor may have its own."""
        own = getattr(self.processor, "chat_template", None)
        return own if own is not None else self.tokenizer.chat_template

    def render(self, said: Chat) -> str:
        """The prompt as text. A model without a chat template gets the plain text, the tokens of
        its images where they were shown.
        """
        if not said.template or self._template is None:
            signs = (getattr(self.processor, f"{kind}_token", "") for kind in ("image", "video"))
            return said.plain(*(str(sign or "") for sign in signs))
        messages = said.asked
        if not self.takes_images:
            messages = [
                {**m, "content": "".join(p["text"] for p in m["content"])} for m in messages
            ]
        try:
            rendered = self.processor.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # whatever jinja or the template itself raises
            raise ValueError(
                f"the chat template of {self.name} cannot be used: {reason(error)}; give the "
                "chat_template.jinja or tokenizer_config.json that came with this model."
            ) from error
        return rendered + said.prefix

    def encode(self, rendered: str, said: Chat) -> Mapping[str, Any]:
        """The inputs of the model; ValueError, one sentence, where the processor cannot."""
        try:
            return self._read(rendered, said)
        except Exception as error:  # whatever PIL, numpy or code of the checkpoint raises
            raise ValueError(
                f"the processor of {self.name} cannot read a prompt with {len(said.images)} images:"
                f" {reason(error)}; give the chat template, processor and tokenizer files of this "
                "model."
            ) from error

    def _read(self, rendered: str, said: Chat) -> Mapping[str, Any]:
        """As `apply_chat_template` of transformers calls a processor: one list a conversation, or
        one list of images where a processor refuses that.
        """
        if not self.takes_images:
            plain = not said.template or self._template is None
            return self.tokenizer(rendered, return_tensors="pt", add_special_tokens=plain)
        bos = self.tokenizer.bos_token
        read = partial(
            self.processor,
            text=[rendered],
            return_tensors="pt",
            return_mm_token_type_ids=True,
            add_special_tokens=not (bos and rendered.startswith(bos)),
            **({"videos": [said.videos]} if said.videos else {}),
        )
        try:
            return read(images=[said.images] if said.images else None)
        except ValueError:
            if not said.images:
                raise
            return read(images=said.images)

    def halves(self, said: Chat, count: int) -> Chat:
        """The first and the last half of `count` tokens of the user text, if it has more.

        As LongBench cuts before the template (arXiv 2308.14508, the released pred.py).
        """
        text = said.only_user_text() or ""
        ids = self.tokenizer(text).input_ids
        if len(ids) <= count:
            return said
        half = count // 2
        words = partial(self.tokenizer.decode, skip_special_tokens=True)
        return said.with_user_text(words(ids[:half]) + words(ids[-half:]))

    def plain(self, rendered: str) -> Encoded | None:
        """The tokens of a text with their offsets, which only a fast tokenizer tells."""
        if not self.tokenizer.is_fast:
            return None
        found = self.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
        return Encoded(found["input_ids"], found["offset_mapping"])

    def trailing(
        self, rendered: str, texts: Sequence[str | None], plain: Encoded | None
    ) -> list[int | None]:
        """How many tokens follow the last occurrence of each text; None where it does not occur."""
        starts = [
            None if text is None or (at := rendered.rfind(text)) < 0 else at + len(text)
            for text in texts
        ]
        if plain is None:
            tails = [None if start is None else rendered[start:] for start in starts]
            count = self.tokenizer.encode
            return [None if t is None else len(count(t, add_special_tokens=False)) for t in tails]
        return [
            None if start is None else sum(begin >= start for begin, _ in plain.offsets)
            for start in starts
        ]
