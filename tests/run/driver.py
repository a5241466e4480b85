"""The program with jobs for tests that kill it: driver.py <seconds a row, or -> <overrides...>."""

import sys
from functools import partial

from harness.process import stopping
from harness.run import cli
from tests.run.fake_program import FakeProgram, install

if __name__ == "__main__":
    stopping.listen()
    typed = sys.argv.pop(1)
    pause = None if typed == "-" else float(typed)
    install(pause)
    cli.Program = partial(FakeProgram, pause=pause)
    sys.exit(cli.main())
