"""`evictbench compare RUN RUN ...`: several finished runs in one table and on one page.

Reads run folders; must not answer or score.
"""

import argparse
import hashlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.process import stopping
from harness.process.console import say
from harness.records import places
from harness.records.atomic import replacing
from harness.records.folder import locked

if TYPE_CHECKING:
    import pandas as pd

MODES = ("offline", "online", "disabled")


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    found = argparse.ArgumentParser(prog="evictbench compare", description=__doc__)
    found.add_argument("run", nargs="+", type=Path, help="folders of finished runs, two or more")
    found.add_argument("--out", type=Path, help="where it is written; by default beside the first")
    found.add_argument("--wandb", choices=MODES, default="offline", help="by default offline")
    found.add_argument("--project", default="evictbench", help="project in wandb")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; 2 for what cannot be compared, and as `harness.run.cli` when stopped."""
    args = parser().parse_args(argv)
    try:
        with stopping.heard():
            compare(args.run, args.out or _beside(args.run), args.wandb, args.project)
    except UserError as error:
        if os.environ.get("EVICTBENCH_TRACEBACK") == "1":
            traceback.print_exception(error)
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        stopping.tell(error)
        return stopping.code(error)
    return 0


def compare(runs: Sequence[Path], out: Path, mode: str, project: str) -> None:
    """Write compare.html, compare.md and the tables as parquet, and print what differs.

    Raises:
        UserError: fewer than two runs, one that is not finished or damaged, or `out` cannot be
            written.
    """
    folders = list(dict.fromkeys(runs))
    if len(folders) < 2:
        raise UserError(
            f"compare takes two runs or more, and was given {folders[0]} alone: name another."
        )
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        raise UserError(f"{missing[0]} is not there: name the folder of a finished run.")
    from harness import tracking  # late: bad input is known without them
    from harness.report import build, compare_page, reading
    from harness.report.compare import parts
    from harness.report.compare import said as told

    studies = [(build.read(folder), reading.manifest(folder).get("data", {})) for folder in folders]
    found = parts(studies)
    frames = compare_page.frames(found)
    tables = compare_page.rows(frames)
    with places.speaking(out), locked(out, say):
        for name, frame in frames.items():
            with replacing(out / f"{name}.parquet") as part:
                frame.to_parquet(part, index=False)
        texts = {"compare.md": compare_page.text, "compare.html": compare_page.render}
        for name, make in texts.items():
            with replacing(out / name) as part:
                part.write_text(make(found, tables), encoding="utf-8")
        tracking.log_comparison(frames, compare_page.title(found), out, mode, project=project)
    for run, text in told(found):
        say(f"{run}: {text}")
    say(_differing(frames["verdicts"]))
    for name in texts:
        say(f"{name.rpartition('.')[2]:<6} {out / name}")


def _differing(verdicts: "pd.DataFrame") -> str:
    """How many verdicts are not the same for all runs."""
    kinds = verdicts.groupby(["method", "ratio", "budget"], dropna=False)["verdict"].nunique()
    count = int((kinds > 1).sum())
    return f"{count} of {len(kinds)} verdicts differ" if len(kinds) else "there is no verdict"


def _beside(runs: Sequence[Path]) -> Path:
    """compare-<a>-<b> in the folder of the first run; a digest keeps long names apart."""
    names = "-".join(dict.fromkeys(run.resolve().name for run in runs))
    if len(names) > 100:
        names = f"{names[:90]}-{hashlib.sha256(names.encode()).hexdigest()[:8]}"
    return runs[0].resolve().parent / f"compare-{names}"
