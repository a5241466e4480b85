"""`evictbench report RUN`: write a run's reports anew, without its model.

A finished run is read from its files alone. Of one that is not finished the answers that are stored
by now are scored, which takes its data.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from harness.errors import UserError
from harness.process.console import say
from harness.records import places
from harness.records.folder import SETTINGS, locked
from harness.report import build, files, reading
from harness.report.headline import headline
from harness.run.each import each_folder

RUNS = Path("results/runs")


def latest(runs: Path) -> Path:
    """The run that was written last; UserError where there is none."""
    found = [path.parent for path in runs.glob(f"*/{SETTINGS}")]
    if not found:
        raise UserError(f"{runs} holds no run: run one first, with make sweep.")
    return max(found, key=lambda folder: (folder / SETTINGS).stat().st_mtime)


def report(folder: Path) -> None:
    """Write every table, picture and report of a run folder, and print its verdict and paths."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not there: name the folder of a run.")
    if reading.is_finished(folder) or not (folder / SETTINGS).is_file():
        _finished(folder)
        return
    from harness.run import unfinished  # late: it brings lmms-eval

    unfinished.report(folder)


def _finished(folder: Path) -> None:
    with locked(folder, say), places.speaking(folder):
        study = build.read(folder)
        try:
            paths = files.write(study, folder, but=["samples"])
        except (ArithmeticError, LookupError, TypeError, ValueError, SyntaxError) as error:
            raise UserError(
                f"The files of {folder} cannot be reported ({reading.line(error)}): "
                f"{reading.REMEDY}."
            ) from error
    say("\n".join(headline(study)))
    for name in ("answer", "report", "summary"):
        say(f"{name:<12} {paths[name]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Report each folder; 2 where one cannot be reported, and as `harness.run.cli` when stopped."""
    parser = argparse.ArgumentParser(prog="evictbench report", description=__doc__)
    parser.add_argument(
        "folder",
        nargs="*",
        type=Path,
        help=f"run folders; by default the one under {RUNS} that was written last",
    )
    args = parser.parse_args(argv)
    return each_folder(args.folder or [None], lambda folder: report(folder or latest(RUNS)))
