"""What is told the person at the terminal; must not know what it is about."""

import os
import sys


def say(text: str) -> None:
    """Print a line to standard output; what its encoding lacks is spelled out, "\\u2026".

    Where nobody reads any more, as behind `| head`, the work goes on and nothing more is said.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        fall_silent()


def fall_silent() -> None:
    """Let standard output go nowhere: its reader has left."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
