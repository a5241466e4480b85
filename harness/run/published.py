"""`evictbench published [RUN ...]`: scores that others published, beside those of finished runs.

Reads run folders; must not answer or score.
"""

import argparse
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.process.console import say, width
from harness.run.each import each_folder

if TYPE_CHECKING:
    from harness.report.verdict_tables import Rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; 2 where a run cannot be read or nothing is published of it."""
    parser = argparse.ArgumentParser(prog="evictbench published", description=__doc__)
    parser.add_argument(
        "run", nargs="*", type=Path, help="folders of finished runs; without any: all that is known"
    )
    args = parser.parse_args(argv)
    if not args.run:
        from harness.report.published import known  # late: it brings pandas

        show(known())
        return 0
    return each_folder(args.run, beside)


def beside(folder: Path) -> None:
    """Print published scores beside those of a run.

    Raises:
        UserError: there is no finished run, or nothing is published of what it ran.
    """
    from harness.report import build, published  # late: bad input is known without them

    if not folder.is_dir():
        raise UserError(f"{folder} is not there: name the folder of a finished run.")
    found = list(published.of(build.read(folder)))
    if not found:
        raise UserError(
            f"{folder} holds no model, task, method and setting of which a score is published: "
            "`evictbench published` lists them."
        )
    show(found)


def show(tables: Iterable["Rows"]) -> None:
    """Print tables of text with their notes."""
    for rows in tables:
        lines = [rows.header, *rows.body]
        wide = [max(len(line[i]) for line in lines) for i in range(len(rows.header))]
        say(f"\n{rows.title}\n")
        for line in lines:
            padded = (text.ljust(size) for text, size in zip(line, wide, strict=True))
            say("  ".join(padded).rstrip())
        for note in rows.notes:
            say(textwrap.fill(note, width(), initial_indent="- ", subsequent_indent="  "))
