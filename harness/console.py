"""What is told the person at the terminal; must not know what it is about."""

import sys


def say(text: str) -> None:
    """Print a line to standard output; what its encoding lacks is spelled out, "\\u2026"."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
