"""Whatever a library or a checkpoint's own code raises while files are read, as one sentence.

Must not know what is read.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

from harness.models.memory import ran_out

_PLAIN = (  # what Python calls a thing, and what a reader does
    (r"^unsupported operand type\(s\) for .*?: (.*)$", r"a value is of the wrong kind (\1)"),
    (r"^.*?('\w+') object (?:is|has).*$", r"a value is of the wrong kind (\1)"),
    (r"module '([\w.]+)' has no attribute", r"\1 has no"),
    (r"<class '(?:\w+\.)*(\w+)'>", r"\1"),
    (r"NoneType", "null"),
    (r"^.*\b\w+(?:Error|Exception): ", ""),
)
_COMPLETE = (
    "give a folder or hub id of a complete image-text or text model with safetensors weights"
)


@contextmanager
def reading(pretrained: str, part: str, remedy: str = _COMPLETE) -> Iterator[None]:
    """Put in one sentence whatever a library or a checkpoint's own code raises meanwhile."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the code of a checkpoint may raise SystemExit, Rust a panic
        if not isinstance(error, Exception) and _is_ours(error):
            raise
        words = reason(error)
        if ran_out(error):
            raise ValueError(
                f"model {pretrained!r} does not fit into memory; choose a smaller model, a smaller "
                "dtype or a larger device."
            ) from error
        if "custom code" in words:
            remedy = "set model.trust_remote_code=true if you trust the code that comes with it"
        raise ValueError(
            f"model {pretrained!r} cannot be loaded: {part}: {words}; {remedy}."
        ) from error


def reason(error: BaseException) -> str:
    """The first sentence of what a library says, in words and not in names of classes."""
    try:
        words = " ".join(str(error).split())
    except Exception:  # code of a checkpoint may raise anything
        words = ""
    for pattern, plain in _PLAIN:
        words = re.sub(pattern, plain, words)
    first = re.split(r"(?<=[^.])\.\s", words, maxsplit=1)[0].rstrip(".")[:240]
    if isinstance(error, SystemExit):
        return f"its code ends the program ({first})"
    if isinstance(error, KeyError):
        return f"there is no {first}"
    return first or "no reason is given"


def _is_ours(error: BaseException) -> bool:
    """Whether this project raised it, as its handlers of signals do."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("harness.") and (
        frame.f_globals["__name__"] != __name__
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' reports to itself: what matters of them is raised."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)
