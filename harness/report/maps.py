"""What each method kept of a prompt: patches of its images shaded, and its tokens as a strip.

Works on the prompts and kept frames of a study and on image files; must not know plotly, statistics
or the page. Pictures are PNGs as data URIs, the same bytes for the same frames.
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from harness.report import words

SIDE = 192  # pixels of a picture's longer side
HUE = (0, 114, 178)  # plots.COLOURS[1]
STRONGEST = 0.9  # opacity of the shade of a patch that every head kept
BEHIND_TEXT = 0.6  # the same of a text token, which stays readable
LINE = 14  # pixels of the height of image tokens that form no grid
FIRST, LAST = 24, 96  # text tokens shown of a long prompt


@dataclass(frozen=True)
class Token:
    """A text token and its share of the (layer, head) pairs; None: not in the cache at eviction."""

    text: str
    share: float | None
    shade: float


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens of one segment; `gap` and `share` stand for those that are not shown."""

    segment: str
    tokens: tuple[Token, ...] = ()
    gap: int = 0
    share: float | None = None


@dataclass(frozen=True)
class Patches:
    """The shade of one image's patches: a transparent PNG, its size in pixels, its mean share."""

    uri: str
    width: int
    height: int
    share: float


@dataclass(frozen=True)
class Kept:
    """What one method kept of a row."""

    label: str
    image: float | None
    text: float | None
    patches: tuple[Patches, ...]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Shown:
    """A row whose prompt was recorded."""

    row: int
    behind: bool  # whether the picture lies behind its one grid of patches
    methods: tuple[Kept, ...]


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI with its size in pixels."""

    uri: str
    width: int
    height: int


def shown(prompts: pd.DataFrame, kept: pd.DataFrame, labels: Mapping[str, str]) -> Iterator[Shown]:
    """The rows of one group whose tokens were recorded, in the order of `prompts`.

    Args:
        prompts: columns row, segments, tokens, images.
        kept: columns cell_key, row, shares; the cells of the setting to show.
        labels: name of the method of each cell_key, in the order to show them.
    """
    if prompts.empty:
        return
    for _, prompt in prompts[prompts["tokens"].notna()].iterrows():
        read = _Prompt.of(prompt)
        own = kept[kept["row"] == prompt["row"]] if len(kept) else kept
        shares = {} if own.empty else dict(zip(own["cell_key"], own["shares"], strict=True))
        yield Shown(
            row=int(prompt["row"]),
            behind=len(read.grids) == 1,
            methods=tuple(
                _kept(name, np.asarray(shares[key], dtype=float), read)
                for key, name in labels.items()
                if key in shares
            ),
        )


def picture(name: object, folder: Path | None) -> Picture | None:
    """A small copy of a picture of the folder; None where there is none that can be read."""
    if folder is None or not isinstance(name, str) or name != Path(name).name:
        return None
    try:
        with Image.open(folder / name) as file:
            small = file.convert("RGB")
    except OSError:
        return None
    small.thumbnail((SIDE, SIDE))
    return Picture(_uri(small), *small.size)


def shade(share: np.ndarray, strongest: float = STRONGEST) -> np.ndarray:
    """Opacity for shares: by their square root, for most shares are small."""
    return strongest * np.sqrt(np.clip(share, 0, 1))


@dataclass(frozen=True)
class _Prompt:
    """A recorded prompt: its tokens, the segment of each, which of them are an image's, and the
    first token, rows and columns of each grid of patches.
    """

    tokens: list[str]
    owner: list[str]
    image: np.ndarray
    grids: list[Any]

    @classmethod
    def of(cls, row: pd.Series) -> "_Prompt":
        """A prompt from its row of the frame."""
        tokens, segments = _listed(row["tokens"]), _listed(row["segments"])
        owner = [segment for segment, count in segments for _ in range(count)][: len(tokens)]
        image = np.array([segment == "image" for segment in owner], dtype=bool)
        return cls(tokens, owner, image, _listed(row["images"]))


def _kept(name: str, shares: np.ndarray, prompt: _Prompt) -> Kept:
    count, image = len(prompt.tokens), prompt.image
    whole = np.full(count, np.nan)
    whole[: len(shares)] = shares[:count]
    return Kept(
        label=name,
        image=_mean(whole[image]),
        text=_mean(whole[~image]),
        patches=tuple(_patches(whole, image, prompt.grids)),
        runs=tuple(_runs(prompt.tokens, prompt.owner, whole)),
    )


def _patches(shares: np.ndarray, image: np.ndarray, grids: list[Any]) -> Iterator[Patches]:
    """A picture a grid, and a strip of the image tokens that are in none."""
    rest = image.copy()
    for first, rows, columns in grids:
        rest[first : first + rows * columns] = False
        part = shares[first : first + rows * columns]
        if len(part) == rows * columns:
            side = max(1, SIDE // max(rows, columns))
            yield _shaded(part.reshape(rows, columns), side, side)
    if rest.any():
        yield _shaded(shares[rest][None, :], max(1, SIDE // int(rest.sum())), LINE)


def _shaded(shares: np.ndarray, width: int, height: int) -> Patches:
    alpha = np.round(255 * shade(np.nan_to_num(shares))).astype("uint8")
    pixels = np.empty((*alpha.shape, 4), dtype="uint8")
    pixels[..., :3], pixels[..., 3] = HUE, alpha
    large = pixels.repeat(height, axis=0).repeat(width, axis=1)
    size = (large.shape[1], large.shape[0])
    return Patches(_uri(Image.fromarray(large)), *size, share=_mean(shares) or 0.0)


def _runs(tokens: list[str], owner: list[str], shares: np.ndarray) -> Iterator[Run]:
    """Text tokens by segment; those of images, and the middle of a long text, as a count."""
    text = [place for place, segment in enumerate(owner) if segment != "image"]
    hidden = set(text[FIRST:-LAST]) if len(text) > FIRST + LAST else set()
    start = 0
    for end in range(1, len(owner) + 1):
        kind = (owner[start], start in hidden)
        if end < len(owner) and (owner[end], end in hidden) == kind:
            continue
        part = shares[start:end]
        if kind[0] == "image" or kind[1]:
            yield Run(kind[0], gap=end - start, share=_mean(part))
        else:
            yield Run(kind[0], tuple(map(_token, tokens[start:end], part)))
        start = end


def _token(text: str, share: float) -> Token:
    known = not np.isnan(share)
    shown = words.visible(text).replace("\n", "\N{RETURN SYMBOL}")
    strength = round(float(shade(np.array(share), BEHIND_TEXT)), 3) if known else 0.0
    return Token(shown, float(share) if known else None, strength)


def _mean(shares: np.ndarray) -> float | None:
    known = shares[~np.isnan(shares)]
    return float(known.mean()) if known.size else None


def _listed(text: object) -> list[Any]:
    return json.loads(text) if isinstance(text, str) else []


def _uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
