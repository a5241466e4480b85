"""Numbers and foreign text in words."""

import math

import pandas as pd
import pytest

from harness.report import words

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\tb\nc\r\n", "a\tb\nc\r\n"),
        ("\x00\x1b[1m\x7f\x9f", "\\x00\\x1b[1m\\x7f\\x9f"),
        ("\u202eevil\u2066\u200f", "\\u202eevil\\u2066\\u200f"),
        ("\ud800", "\\ud800"),
        ("é 中文 👩‍🚀 שלום", "é 中文 👩‍🚀 שלום"),
        (3, "3"),
    ],
)
def test_visible(text, seen):
    assert words.visible(text) == seen


def test_labels_lose_their_markup_not_their_text():
    assert words.label("<b>a</b> & $x$\n b") == "&lt;b&gt;a&lt;/b&gt; &amp; $x$ b"
    assert words.label("abcdef", 4) == "abc…"
    assert words.label("<<<<<<", 4) == "&lt;&lt;&lt;…"


def test_numbers():
    nan = math.nan
    assert [words.points(v) for v in (0.0123, -0.5, -0.0001, nan)] == [
        "+1.2",
        f"{MINUS}50.0",
        "+0.0",
        DASH,
    ]
    assert [words.percent(v) for v in (0.5, nan)] == ["50.0", DASH]
    assert [words.probability(v) for v in (0.04951, 0.0009, 0.001, 1, nan)] == [
        "0.050", "<\xa00.001", "0.001", "1.000", DASH,
    ]  # fmt: skip
    assert [words.whole(v) for v in (1234.0, pd.NA)] == ["1,234", DASH]
    row = pd.Series({"difference": -0.02, "difference_low": -0.031, "difference_high": 0.004})
    assert words.difference(row) == f"{MINUS}2.0 [{MINUS}3.1,\xa0+0.4]"
    assert words.difference(row.replace(-0.031, nan)) == f"{MINUS}2.0"
    assert words.share(row.abs(), "difference") == "2.0 [3.1,\xa00.4]"


def test_badges_tell_verdicts_apart_without_colour():
    signs = [words.badge(v) for v in ("supported", "not supported", "cannot tell", "<i>")]
    assert ["badge supported" in s for s in signs] == [True, False, False, False]
    assert signs[1].endswith("</span> not supported</span>")
    assert len({sign.split("</span>")[0][-1] for sign in signs[:3]}) == 3
    assert "&lt;i&gt;" in signs[3]
    assert "cannot-tell" in signs[3]
