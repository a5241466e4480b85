"""Text can be read on what lies behind it: at least 4.5 to 1, as WCAG 2.2 asks."""

import re

import numpy as np
import pytest

from harness.report import charts, maps, page

LEAST = 4.5
CSS = (page.HERE / "page.css").read_text()
LIGHT, DARK, PRINT = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)


def rgb(text: str) -> np.ndarray:
    if text.startswith("#"):
        digits = text[1:] if len(text) == 7 else "".join(2 * d for d in text[1:])
        return np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.array([float(part) for part in text.split()]) / 255


def luminance(colour: np.ndarray) -> float:
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


def named(block: str) -> dict[str, np.ndarray]:
    return {name: rgb(value) for name, value in re.findall(r"--([\w-]+): ([#\w ]+);", block)}


def test_the_measure_is_the_standards() -> None:
    assert contrast(rgb("#000"), rgb("#ffffff")) == pytest.approx(21)
    assert contrast(rgb("#777777"), rgb("#fff")) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("block", [LIGHT, DARK, LIGHT + PRINT], ids=["light", "dark", "print"])
def test_words_stand_out(block: str) -> None:
    colours = named(block)
    for back in ("paper", "card", "band"):
        for text in ("ink", "soft", "link"):
            assert contrast(colours[text], colours[back]) >= LEAST, (text, back)
    for kind in ("yes", "no", "open"):
        assert contrast(colours[kind], colours[f"{kind}-back"]) >= LEAST, kind


@pytest.mark.parametrize("block", [LIGHT, DARK, LIGHT + PRINT], ids=["light", "dark", "print"])
def test_tokens_stand_out_from_their_shade(block: str) -> None:
    colours = named(block)
    for share in np.linspace(0, 1, 21):
        opacity = maps.shade(np.array(share), maps.BEHIND_TEXT)
        shaded = opacity * colours["shade"] + (1 - opacity) * colours["card"]
        assert contrast(colours["ink"], shaded) >= LEAST, share


def test_numbers_stand_out_from_the_heatmap() -> None:
    places, ends = zip(*charts.SCALE, strict=True)
    ends = np.array([rgb(end) for end in ends])
    for share in np.linspace(0, 1, 101):
        colour = np.array([np.interp(share, places, ends[:, i]) for i in range(3)])
        assert contrast(rgb(charts.INK), colour) >= LEAST, share
