"""The program with a slow fake engine, for tests that kill it: driver.py <pause> <overrides...>."""

import sys

from harness import __main__ as program
from harness import sweep
from tests.run.fakes import FakeEngine

if __name__ == "__main__":
    pause = float(sys.argv.pop(1))
    sweep.load_engine = lambda job, context: FakeEngine(pause)
    sys.exit(program.main())
