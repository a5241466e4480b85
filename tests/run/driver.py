"""The program with a slow fake engine, for tests that kill it: driver.py <pause> <overrides...>."""

import sys

from harness import __main__ as program
from harness import collect
from tests.run.fakes import FakeEngine

if __name__ == "__main__":
    pause = float(sys.argv.pop(1))
    collect.load_engine = lambda *loading: FakeEngine(pause)
    sys.exit(program.main())
