"""Foreign text and numbers as they stand on a page.

Must not know frames or how a page is laid out. HTML is escaped by the page's template; only what
plotly draws is escaped here, because plotly reads some HTML in its labels.
"""

import html
import re

import pandas as pd
from markupsafe import Markup

from harness.report import tables

# Controls, lone surrogates and marks that turn the direction of writing, line breaks left alone.
UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
MINUS, DASH, SPACE = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{NO-BREAK SPACE}"
YES, NO = "\N{CHECK MARK}", "\N{MULTIPLICATION SIGN}"
MARKS = {
    "supported": (YES, "supported"), "kept": (YES, "supported"), "helps": (YES, "supported"),
    "not supported": (NO, "not-supported"), "lost": (NO, "not-supported"),
    "costs": (NO, "not-supported"), "no difference": ("=", "same"),
}  # fmt: skip


def visible(text: object) -> str:
    """The text with what cannot be seen, or makes the rest unreadable, spelled out: "\\u202e"."""
    return UNSEEN.sub(lambda found: found.group().encode("unicode_escape").decode(), str(text))


def cut(text: str, limit: int) -> str:
    """At most `limit` characters, the last one an ellipsis where some are left out."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def label(text: object, limit: int = 60) -> str:
    """Foreign text as one line for a label or hover text of plotly, without its markup."""
    return html.escape(cut(" ".join(visible(text).split()), limit), quote=False)


def points(value: float) -> str:
    """A difference of fractions in percentage points, signed; a dash for nan."""
    return DASH if pd.isna(value) else f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", MINUS)


def percent(value: float) -> str:
    """A fraction in percent with one decimal; a dash for nan."""
    return DASH if pd.isna(value) else tables.percent(value).replace("-", MINUS)


def span(low: object, high: object) -> str:
    """An interval of texts that stays on one line; nothing where an end is not known."""
    return "" if DASH in (low, high) else f"[{low},{SPACE}{high}]"


def difference(row: pd.Series, name: str = "difference") -> str:
    """A difference and its 95 % interval, from the columns <name>, <name>_low and <name>_high."""
    ends = (points(row[f"{name}_{end}"]) for end in ("low", "high"))
    return f"{points(row[name])} {span(*ends)}".rstrip()


def share(row: pd.Series, name: str) -> str:
    """A share in percent and its 95 % interval, from the columns as in `difference`."""
    ends = (percent(row[f"{name}_{end}"]) for end in ("low", "high"))
    return f"{percent(row[name])} {span(*ends)}".rstrip()


def probability(value: float) -> str:
    """A p value with three decimals, small ones as a bound; a dash for nan."""
    return DASH if pd.isna(value) else (f"<{SPACE}0.001" if value < 0.001 else f"{value:.3f}")


def whole(value: float) -> str:
    """A count; a dash for nan."""
    return DASH if pd.isna(value) else f"{int(value):,}"


def badge(text: str) -> Markup:
    """A verdict with a sign and a class of its own, so that colour is not all that tells them."""
    mark, kind = MARKS.get(text, ("?", "cannot-tell"))
    return Markup('<span class="badge {}"><span aria-hidden="true">{}</span> {}</span>').format(
        kind, mark, visible(text)
    )
