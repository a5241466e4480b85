"""What is told the person at the terminal; must not know what it is about."""

import os
import shutil
import sys
import textwrap

WIDEST, NARROWEST = 100, 40  # columns


def say(text: str) -> None:
    """Print a line to standard output; what its encoding lacks is spelled out, "\\u2026".

    Where nobody reads any more, as behind `| head`, the work goes on and nothing more is said.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        fall_silent()


def width() -> int:
    """Columns of the terminal, as far as lines are good to read; `WIDEST` where there is none."""
    columns = shutil.get_terminal_size((WIDEST, 24)).columns
    return max(NARROWEST, min(WIDEST, columns))


def say_filled(text: str) -> None:
    """Print a paragraph in lines that fit."""
    say(textwrap.fill(text, width()))


def fall_silent() -> None:
    """Let standard output go nowhere: its reader has left."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
