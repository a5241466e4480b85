"""LOOK-M (arXiv 2406.18139): text before images, and what is evicted is merged into what stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .h2o import H2O


@dataclass(frozen=True, kw_only=True)
class LookM(H2O):
    """H2O's scores over the image tokens, all text protected, and merging as published (pivot).

    Half the budget, or `recent`, are recent tokens; all text stays; images get the rest, and where
    there is none of it more than the budget is kept. Nothing is evicted while decoding. Any method
    with scores takes protect=text and merge, see ScoringPolicy; this one has them by default.

    The released code expects images of 576 tokens and one KV head a query head. Its average and
    weighted mergings take in only evicted tokens whose similarity, averaged over heads by their
    rank in each, is not below the mean, of which the paper says nothing; average then pairs these
    tokens' targets with the first evicted tokens in place of themselves. Here all are merged.
    """

    name: ClassVar[str] = "look_m"
    title: ClassVar[str] = "LOOK-M"
    made_for_images: ClassVar[bool] = True
    decode: str = "grow"
    protect: str = "text"
    merge: str = "pivot"
