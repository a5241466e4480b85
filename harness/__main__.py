"""`python -m harness`: a stop is heard from the first line on, then the command line is read."""

import sys

from harness.process import stopping


def main() -> int:
    """Run the command line; returns the exit code, see `harness.run.cli.main`."""
    from harness.run.cli import main as run  # late: a stop while this loads is one sentence too

    return run()


if __name__ == "__main__":
    stopping.listen()
    sys.exit(main())
