"""Which part of a prompt each of its tokens belongs to, told by where it stands in the text.

Knows texts, character offsets and token ids; must not know models, tokenizers or tasks. Nothing is
guessed: a token whose place in the text cannot be told is called unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from harness.models.chat import Chat

TEMPLATE, IMAGE, CONTEXT, QUESTION = "template", "image", "context", "question"
OPTIONS, INSTRUCTION, UNKNOWN = "options", "instruction", "unknown"
PARTS = (TEMPLATE, IMAGE, CONTEXT, QUESTION, OPTIONS, INSTRUCTION, UNKNOWN)

Span = tuple[int, int]  # characters of the rendered prompt, the second behind the last


@dataclass(frozen=True)
class Texts:
    """What a benchmark knows of the text of a prompt.

    questions: wordings that the question may have; the first that occurs counts. options: each as
    the prompt writes it, in the prompt's order.
    """

    questions: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """The rendered prompt before a processor expands its images: token ids, characters of each."""

    ids: Sequence[int]
    offsets: Sequence[Span]


def segments(
    rendered: str,
    said: Chat,
    texts: Texts,
    ids: Sequence[int],
    images: Sequence[int],
    encoded: Encoded | None,
) -> list[tuple[str, int]]:
    """The parts of a prompt in its order, each with its number of tokens.

    template: outside of what users said. image: placeholders. context: up to the end of the part
    that the task marks. question and options: as `texts` says, the options from the first to the
    end of the last. instruction: what else users said. unknown: cannot be told.

    Args:
        rendered: the prompt as text, each image one placeholder.
        said: the chat that it renders.
        texts: what the benchmark knows of it.
        ids: the tokens that the model takes.
        images: 1 where a token is a placeholder of an image, else 0.
        encoded: the tokens of `rendered`; None where their offsets are not known.
    """
    plain = [token for token, image in zip(ids, images, strict=True) if not image]
    # What stands in an image alone: a line break between its rows is also one of the text.
    placeholders = {token for token, image in zip(ids, images, strict=True) if image} - {*plain}
    if encoded is None:
        names = [UNKNOWN] * len(plain)
    else:
        painted = characters(rendered, said, texts)
        pairs = zip(encoded.ids, encoded.offsets, strict=True)
        own = [
            (token, _part(rendered, painted, *offset))
            for token, offset in pairs
            if token not in placeholders
        ]
        names = _aligned(plain, [token for token, _ in own], [part for _, part in own])
    left = iter(names)
    every = (IMAGE if image else next(left) for image in images)
    return [(name, len(list(run))) for name, run in groupby(every)]


def characters(rendered: str, said: Chat, texts: Texts) -> bytearray:
    """The part of every character of the prompt, as its number in PARTS."""
    spans = _user_spans(rendered, said)
    if spans is None:
        return bytearray([PARTS.index(UNKNOWN)]) * len(rendered)
    painted = bytearray(len(rendered))  # template
    rest, options = INSTRUCTION, _options(rendered, spans, texts)
    if texts.options and options is None:
        rest = UNKNOWN
    for span in spans:
        _paint(painted, span, rest)
    context = _context(spans, said)
    if context is not None:
        _paint(painted, context, CONTEXT)
    question = _question(rendered, spans, texts, context, options)
    if question is not None:
        _paint(painted, question, QUESTION)
    if options is not None:
        _paint(painted, options, OPTIONS)
    return painted


def _paint(painted: bytearray, span: Span, name: str) -> None:
    begin, end = span
    painted[begin:end] = bytes([PARTS.index(name)]) * (end - begin)


def _user_spans(rendered: str, said: Chat) -> list[Span] | None:
    """Where each text of a user stands; None where one of them is not there as it was said."""
    spans: list[Span] = []
    end = len(rendered) - len(said.prefix)
    for text in reversed(said.user_texts):
        own = text.strip()
        begin = rendered.rfind(own, 0, end)
        if begin < 0:
            return None
        spans.append((begin, begin + len(own)))
        end = begin
    return spans[::-1]


def _context(spans: Sequence[Span], said: Chat) -> Span | None:
    """The marked context: the beginning of a text of a user."""
    for (begin, end), text in reversed([*zip(spans, said.user_texts, strict=True)]):
        if said.context is not None and text.startswith(said.context):
            return begin, min(begin + len(said.context.strip()), end)
    return None


def _options(rendered: str, spans: Sequence[Span], texts: Texts) -> Span | None:
    """From the first option to the end of the last, all in the last text that has them."""
    wanted = [own for option in texts.options if (own := option.strip())]
    for low, high in reversed(spans):
        places, end = [], high
        for option in reversed(wanted):
            end = rendered.rfind(option, low, end)
            places.append(end)
            if end < 0:
                break
        if places and places[-1] >= 0:
            return places[-1], places[0] + len(wanted[-1])
    return None


def _question(
    rendered: str,
    spans: Sequence[Span],
    texts: Texts,
    context: Span | None,
    options: Span | None,
) -> Span | None:
    """The last occurrence of the question behind the context and before its options."""
    low = context[1] if context else 0
    high = options[0] if options else len(rendered)
    for own in filter(None, (question.strip() for question in texts.questions)):
        for begin, end in reversed(spans):
            found = rendered.rfind(own, max(begin, low), min(end, high))
            if found >= 0:
                return found, found + len(own)
    return None


def _part(rendered: str, painted: bytearray, begin: int, end: int) -> str:
    """The part of a token: that of its first character which is no space, if it has one."""
    text = rendered[begin:end]
    spaces = len(text) - len(text.lstrip())
    place = begin + spaces if spaces < len(text) else begin
    return PARTS[painted[min(place, len(painted) - 1)]]


def _aligned(tokens: Sequence[int], known: Sequence[int], parts: Sequence[str]) -> list[str]:
    """The part of each of `tokens`, which are the `known` ones, whose parts are given, and what a
    processor adds: a first token, the ends of an image's rows.

    Where they are not, what differs is unknown.
    """
    behind = _common(tokens[::-1], known[::-1])
    found, at = [], 0
    for token in tokens[: len(tokens) - behind]:
        same = at < len(known) - behind and token == known[at]
        found.append(parts[at] if same else TEMPLATE)
        at += same
    if at < len(known) - behind:
        front = _common(tokens[: len(tokens) - behind], known[: len(known) - behind])
        inside = {*parts[front : len(known) - behind]}
        name = TEMPLATE if inside == {TEMPLATE} else UNKNOWN
        found[front:] = [name] * (len(found) - front)
    return [*found, *parts[len(known) - behind :]]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
