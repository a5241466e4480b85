"""Chat messages in lmms-eval's protocol, and what a task may ask of them.

Knows the shape of messages; must not know models, tokenizers or tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Chat:
    """Messages with bare image entries and adjacent texts joined, ready for a chat template.

    images, videos: in the order of their entries. context: the joined text up to the end of the
    last part that is marked with `"context": True`. template: False where the prompt is the text
    alone. cuttable: whether a prompt that is too long may lose the middle of its user text.
    """

    messages: list[dict[str, Any]]
    images: list[Any]
    context: str | None = None
    template: bool = True
    cuttable: bool = False
    videos: list[Any] = field(default_factory=list)

    @property
    def shows(self) -> bool:
        """Whether there are images or videos."""
        return bool(self.images or self.videos)

    @property
    def continues(self) -> bool:
        """Whether the last message is the beginning of the answer."""
        return self.messages[-1]["role"] == "assistant"

    @property
    def user_texts(self) -> list[str]:
        """Every text of a user, those around an image apart."""
        return [
            part["text"]
            for message in self.messages
            if message["role"] == "user"
            for part in message["content"]
            if part["type"] == "text"
        ]

    @property
    def last_user_text(self) -> str | None:
        """The last text of a user, None where there is none."""
        texts = self.user_texts
        return texts[-1].strip() or None if texts else None

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The messages before the beginning of the answer."""
        return self.messages[:-1] if self.continues else self.messages

    @property
    def prefix(self) -> str:
        """The beginning of the answer; it follows the prompt as it is, its spaces included."""
        return _text_of(self.messages[-1]) if self.continues else ""

    def plain(self, image: str = "", video: str = "") -> str:
        """All texts without any template, `image` and `video` in the place of each."""
        signs = {"image": image, "video": video}
        return "\n".join(_text_of(one, signs) for one in self.asked) + self.prefix

    def with_user_text(self, text: str) -> Chat:
        """The chat with another text in place of its only user text, the marked context moved.

        What followed the context must still end the text, else the mark is gone.
        """
        place = self._user_message()
        before = self.messages[place]["content"][0]["text"]
        behind = before[len(self.context) :] if self.context else ""
        kept = len(text) - len(behind)
        context = text[:kept] if self.context and kept > 0 and text.endswith(behind) else None
        messages = [*self.messages]
        messages[place] = {"role": "user", "content": [{"type": "text", "text": text}]}
        return Chat(messages, self.images, context, self.template, self.cuttable, self.videos)

    def only_user_text(self) -> str | None:
        """The one text that all users said; None where images or several texts are shown."""
        users = [m for m in self.messages if m["role"] == "user"]
        if len(users) != 1 or self.shows or len(users[0]["content"]) != 1:
            return None
        return str(users[0]["content"][0]["text"])

    def _user_message(self) -> int:
        return next(i for i, m in enumerate(self.messages) if m["role"] == "user")


def _text_of(message: Mapping[str, Any], signs: Mapping[str, str] | None = None) -> str:
    signs = signs or {}
    return "".join(signs.get(part["type"]) or part.get("text", "") for part in message["content"])


def read(messages: Messages) -> Chat:
    """Read messages: {"role", "content": text or parts {"type": "image"|"video"|"text", ...}}.

    A video is what transformers' processors take: a path, or frames [frames, height, width, 3].

    A text part may be marked with `"context": True`. A message may say `"template": False` and
    `"truncate": "middle"`. ValueError, one sentence, for what is none of these.
    """
    if not messages:
        raise ValueError("the prompt has no messages; give at least one user message.")
    chat: list[dict[str, Any]] = []
    images: list[Any] = []
    videos: list[Any] = []
    context: str | None = None
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        joined: list[dict[str, Any]] = []
        for part in parts:
            _add(joined, images, videos, part)
            if part["type"] == "text" and part.get("context"):
                context = joined[-1]["text"]
        chat.append({"role": message["role"], "content": joined})
    template = all(message.get("template", True) for message in messages)
    if not template and (images or videos):
        raise ValueError("a prompt with images needs the chat template; leave template out.")
    return Chat(chat, images, context, template, _cuttable(messages), videos)


def _add(
    joined: list[dict[str, Any]], images: list[Any], videos: list[Any], part: Mapping[str, Any]
) -> None:
    """Append a part; texts that follow one another are one text to a template."""
    if part["type"] == "image":
        images.append(part.get("url", part.get("image")))
        joined.append({"type": "image"})
    elif part["type"] == "video":
        videos.append(part.get("url", part.get("video")))
        joined.append({"type": "video"})
    elif part["type"] == "text" and joined and joined[-1]["type"] == "text":
        joined[-1] = {"type": "text", "text": joined[-1]["text"] + part["text"]}
    elif part["type"] == "text":
        joined.append({"type": "text", "text": part["text"]})
    else:
        raise ValueError(
            f"content of type {part['type']!r} is not supported; give text, images and videos."
        )


def _cuttable(messages: Messages) -> bool:
    rules = {message["truncate"] for message in messages if message.get("truncate") is not None}
    if rules - {"middle"}:
        raise ValueError(f"truncate={sorted(rules)} is not known; give middle, or leave it out.")
    return bool(rules)
