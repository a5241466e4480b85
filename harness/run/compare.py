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

from harness.errors import UserError
from harness.process import stopping
from harness.process.console import say
from harness.records import places
from harness.records.atomic import replacing
from harness.records.folder import locked

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
    folders = list({run.resolve(): run for run in runs}.values())
    if len(folders) < 2:
        raise UserError(
            f"compare takes two runs or more, and was given {folders[0]} alone: name another."
        )
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        raise UserError(f"{missing[0]} is not there: name the folder of a finished run.")
    from harness.report import build, compare_page, reading  # late: bad input is known without them
    from harness.report import compare as comparing

    studies = [(build.read(folder), reading.manifest(folder).get("data", {})) for folder in folders]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"{out} cannot be written ({error.strerror})"
        raise UserError(f"{why}: name another folder with --out.") from error
    found = comparing.parts(studies)
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
        for run, text in comparing.said(found):
            say(f"{run}: {text}")
        judged = comparing.shared(frames["verdicts"])
        say(f"{len(comparing.unlike(frames['verdicts']))} of {judged} verdicts differ")
        for name in texts:
            say(f"{name.rpartition('.')[2]:<6} {out / name}")
        if mode != "disabled":
            from harness import tracking  # late: wandb takes seconds to import

            tracking.log_comparison(frames, compare_page.title(found), out, mode, project=project)


def _beside(runs: Sequence[Path]) -> Path:
    """compare-<a>-<b> in the folder of the first run; a digest keeps long names apart."""
    places = [str(run.resolve()) for run in runs]
    names = "-".join(Path(place).name for place in places)
    if len(names) > 100 or len({Path(place).name for place in places}) < len(places):
        names = f"{names[:90]}-{hashlib.sha256(' '.join(places).encode()).hexdigest()[:8]}"
    return runs[0].resolve().parent / f"compare-{names}"
