"""`python -m harness.report`, see `harness.report.command`; a stop is heard from the first line."""

import sys

from harness.process import stopping

if __name__ == "__main__":
    stopping.listen()
    from harness.report.command import main  # late: a stop while this loads is one sentence too

    sys.exit(main())
