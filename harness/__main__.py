"""`evictbench`, the same as `python -m harness`: the first word chooses what is done.

A stop is heard from the first line on: what takes time is imported late.
"""

import sys
from importlib import import_module

from harness import __version__
from harness.process import stopping

COMMANDS = {
    "run": "harness.run.cli",
    "check": "harness.run.check",
    "report": "harness.run.report",
    "compare": "harness.run.compare",
    "merge": "harness.run.merge",
    "published": "harness.run.published",
}


def main() -> int:
    """Do what the first word says, `run` where it is none of COMMANDS; returns the exit code."""
    if sys.argv[1:] == ["--version"]:
        print(f"evictbench {__version__}")
        return 0
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in COMMANDS:
        del sys.argv[1]
    command = import_module(COMMANDS.get(word, COMMANDS["run"]))
    return int(command.main())


def door() -> int:
    """Hear a stop from now on, then `main`."""
    stopping.listen()
    return main()


if __name__ == "__main__":
    sys.exit(door())
