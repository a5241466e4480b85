"""What `evictbench check` prints: a line for each thing, and numbers as people read them.

Must not know how they were found.
"""

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from harness.process.console import say, width
from harness.settings.grid import Cell

if TYPE_CHECKING:
    import torch

INDENT = 9  # columns before the text of a line


def line(name: str, text: str) -> None:
    """Print a name and what is said of it, in lines that fit."""
    later = " " * INDENT
    say(textwrap.fill(text, width(), initial_indent=name.ljust(INDENT), subsequent_indent=later))


def named(cell: Cell) -> str:
    """A cell by its label and amount."""
    if not cell.evicts:
        return cell.label
    amount = f"ratio {cell.ratio:g}" if cell.budget is None else f"{cell.budget:,} tokens"
    return f"{cell.label} at {amount}"


def percent(share: float) -> str:
    """A share in percent with two digits, never with an exponent."""
    said = np.format_float_positional(100 * share, precision=2, fractional=False, trim="-")
    return f"{said} %"


def size(count: float) -> str:
    """Bytes in MB or GB."""
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def duration(seconds: float) -> str:
    """Seconds, minutes, or hours and minutes."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60:,} h {minutes % 60:02} min"


def hours(seconds: float) -> str:
    """Hours with two digits, or all before the point."""
    found = seconds / 3600
    return f"{found:,.0f}" if found >= 10 else f"{found:.2g}"


def device(found: "torch.device") -> str:
    """The device, by its name where it has one."""
    import torch

    return torch.cuda.get_device_name(found) if found.type == "cuda" else str(found)
