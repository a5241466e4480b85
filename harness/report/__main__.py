"""`python -m harness.report`: write a run's reports anew from its files, without model or data.

Knows run folders; must not answer or score.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.console import say
from harness.errors import UserError
from harness.report import answer, build, files
from harness.store import locked

RUNS = Path("results/runs")


def latest(runs: Path) -> Path:
    """The finished run that was written last; UserError where there is none."""
    found = [path.parent for path in runs.glob(f"*/{build.MANIFEST}")]
    finished = [folder for folder in found if (folder / build.SAMPLES).is_file()]
    if not finished:
        raise UserError(f"{runs} holds no finished run: run one first, with make sweep.")
    return max(finished, key=lambda folder: (folder / build.MANIFEST).stat().st_mtime)


def report(folder: Path) -> None:
    """Write every table, picture and report of a run folder, and print its verdict and paths."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not there: name the folder of a finished run.")
    with locked(folder):
        study = build.read(folder)
        paths = files.write(study, folder)
    say("\n".join(answer.verdict(study)))
    for name in ("answer", "report", "summary"):
        say(f"{name:<12} {paths[name]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Report each folder; 2 where one cannot be reported."""
    parser = argparse.ArgumentParser(prog="python -m harness.report", description=__doc__)
    parser.add_argument(
        "folder",
        nargs="*",
        type=Path,
        help=f"run folders; by default the one under {RUNS} that was written last",
    )
    args = parser.parse_args(argv)
    try:
        for folder in args.folder or [latest(RUNS)]:
            report(folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except json.JSONDecodeError as error:
        print(
            f"error: a {build.MANIFEST} is damaged ({error}): give the sweep's command again.",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
