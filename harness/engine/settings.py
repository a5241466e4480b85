"""What the engine is asked for and what it answers: plain data, validated on construction.

Must not know tensors or models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import TYPE_CHECKING, Any

from harness.settings.caches import Storage, refused

if TYPE_CHECKING:
    from methods import Policy


class NotFinite(ValueError):
    """The full cache itself gives numbers that are not finite: there is nothing to compare with."""


class NoRoom(ValueError):
    """A prompt, or a cell of it, does not fit into memory; others may."""


PROTOCOLS = ("replay", "context", "paper")
TAILS = ("last_token", "suffix")

STOPS = ("until", "until_tokens")
# lmms-eval generation arguments that change nothing when decoding greedily.
_WITHOUT_EFFECT = {"top_p", "top_k", "use_cache", "image_aspect_ratio", "image_sizes"}


@dataclass(frozen=True)
class Protocol:
    """When eviction happens.

    name: `replay` evicts after all prompt tokens but the tail, `context` after the images or the
    marked context, `paper` after the whole prompt. tail (of `replay`): `last_token`, or `suffix`
    for all tokens of the chat template that follow the last user text.
    """

    name: str = "replay"
    tail: str = "last_token"

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        if self.name not in PROTOCOLS:
            raise ValueError(
                f"protocol={self.name!r} is unknown; choose one of {', '.join(PROTOCOLS)}."
            )
        if self.tail not in TAILS:
            raise ValueError(f"tail={self.tail!r} is unknown; choose one of {', '.join(TAILS)}.")


@dataclass(frozen=True)
class Generation:
    """Greedy decoding of at most `max_new_tokens`.

    until: texts before which the answer is cut, wherever they stand in a token. until_tokens: texts
    whose last token ends the answer as the model's own end does; the same characters inside
    another token do not. nonempty: no answer begins with a token that ends it, and `until` is
    looked for behind the first token.
    """

    max_new_tokens: int
    until: tuple[str, ...] = ()
    nonempty: bool = False
    until_tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse lengths below 1."""
        count = self.max_new_tokens
        if not _is(count, int) or count < 1:
            raise ValueError(
                f"max_new_tokens={count!r} is not a whole number of tokens; give 1 or more."
            )

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> Generation:
        """Read lmms-eval generation arguments; without max_new_tokens, 128 as its own models use.

        ValueError, one sentence, for beams, sampling and arguments this engine does not know.
        """
        rest = dict(kwargs)
        until, until_tokens = (_texts(name, rest.pop(name, None)) for name in STOPS)
        limit = rest.pop("max_new_tokens", None)
        limit = rest.pop("max_gen_toks", None) if limit is None else limit
        least = rest.pop("min_new_tokens", None)
        if least not in (None, 0, 1):
            raise ValueError(f"min_new_tokens={least!r} is not supported; give 1 or leave it out.")
        _refuse_sampling(rest)
        for name, value in rest.items():
            if name not in _WITHOUT_EFFECT and value is not None:
                raise ValueError(
                    f"generation argument {name}={value!r} is not supported; allowed are "
                    "max_new_tokens, min_new_tokens, until, until_tokens and greedy settings of "
                    "temperature and num_beams."
                )
        return cls(128 if limit is None else limit, until, bool(least), until_tokens)

    def cut(self, text: str, start: int = 0) -> str:
        """The text before the first occurrence of every `until` string at or after `start`."""
        head, rest = text[:start], text[start:]
        for stop in self.until:
            rest = rest.split(stop)[0]
        return head + rest


def _texts(name: str, given: object) -> tuple[str, ...]:
    """One text or several, empty ones left out."""
    texts = (given,) if isinstance(given, str) else given or ()
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name}={given!r} is not text; give a string or a list of strings.")
    return tuple(text for text in texts if text)


def _is(value: object, kind: type | UnionType) -> bool:
    """isinstance, but True and False are no numbers."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _refuse_sampling(arguments: dict[str, object]) -> None:
    beams = arguments.pop("num_beams", None)
    if beams not in (None, 1):
        raise ValueError(f"num_beams={beams!r} is not supported; leave it out or give 1.")
    sample, temperature = arguments.pop("do_sample", None), arguments.pop("temperature", None)
    if sample is not False and temperature not in (None, 0):
        raise ValueError(
            f"temperature={temperature!r} asks for sampling, which is not supported; give 0."
        )
    if sample not in (None, False) and temperature is None:
        raise ValueError(f"do_sample={sample!r} is not supported; give false or temperature=0.")


@dataclass(frozen=True)
class Branch:
    """One cell of the grid: a policy with a ratio (fraction evicted) or a budget (tokens kept).

    policy None is the full cache. Branches that share a policy object are measured once. cache: how
    what is kept is stored; None: in full precision.
    """

    policy: Policy | None = None
    ratio: float | None = None
    budget: int | None = None
    cache: Storage | None = None

    def __post_init__(self) -> None:
        """Refuse a policy without an amount, two amounts, amounts out of range, and a cache that
        its policy cannot have.
        """
        if self.policy is None:
            return
        own = {name: getattr(self.policy, name) for name in ("decode", "merge", "positions")}
        if reason := refused(own, self.cache):
            raise ValueError(reason)
        if (self.ratio is None) == (self.budget is None):
            raise ValueError(
                f"ratio={self.ratio!r} and budget={self.budget!r}: give exactly one of the two."
            )
        ratio, budget = self.ratio, self.budget
        if ratio is not None and not (_is(ratio, int | float) and 0 <= ratio < 1):
            raise ValueError(f"ratio={ratio!r} is not a fraction evicted; give 0 <= ratio < 1.")
        if budget is not None and not (_is(budget, int) and budget >= 1):
            raise ValueError(f"budget={budget!r} is not a number of kept tokens; give 1 or more.")


@dataclass(frozen=True)
class Shown:
    """How to draw a prompt: each token as text, and where its images lie.

    grids: first token, rows and columns of every image whose tokens are known to form a grid.
    """

    tokens: list[str]
    grids: list[tuple[int, int, int]]


@dataclass
class BranchResult:
    """The answer of one cell and what it was produced from.

    evictable_tokens: prompt tokens in the cache at eviction (L). kept_*: mean over the compressed
    layers and KV heads. exposed_tokens: scored tokens whose logits came from a compacted cache.
    cache_bytes and full_cache_bytes: prompt entries at eviction, kept and all, over all layers, on
    the device. host_bytes: of those that are kept, what lies on the host; fetched_bytes: what came
    from there in all of the passes after the eviction, whose number is `passes`.
    window, adaptive: as in methods.Selection, the adaptive share as a mean over layers.
    fallback: the pattern that replaced the method's own where that did not fit, or None.
    letter_logits: at the first answer token. timings: seconds of prefill, score, compact and
    decode, the batch's cost divided by its branches, and of search, a part of prefill.
    computed_blocks: of a sparse prefill the share of the causal pairs of blocks that each layer
    computed, by its index. truncated_tokens: what the prompt lost to fit
    the model's context before any of this. segments: what the prompt's tokens belong to, see
    harness.models.segments. Of prompts that are traced, else None: kept_shares, for each of the L
    tokens the share of compressed layers and KV heads whose cache kept it at the eviction; shown.
    nonfinite_tokens: answer tokens that were chosen by logits that are no numbers (a NaN or +inf
    among them, or nothing but -inf); all of them where the prompt's own pass, or the scores by
    which the cell was evicted, are none. Above 0 the answer means nothing.
    """

    text: str
    token_ids: list[int]
    exposed_tokens: int
    evictable_tokens: int
    prompt_tokens: int
    image_tokens: int
    kept_tokens: float
    kept_image: float
    kept_text: float
    cache_bytes: int
    full_cache_bytes: int
    window: int | None
    adaptive: float | None
    fallback: str | None = None
    letter_logits: dict[str, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    truncated_tokens: int = 0
    nonfinite_tokens: int = 0
    host_bytes: int = 0
    fetched_bytes: int = 0
    passes: int = 0
    segments: list[tuple[str, int]] = field(default_factory=list)
    kept_shares: list[float] | None = None
    shown: Shown | None = None
    computed_blocks: dict[int, float] | None = None
