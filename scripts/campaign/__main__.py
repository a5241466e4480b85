"""`python -m scripts.campaign`: run the campaign, print its table, 1 where something is wrong."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "results" / "campaign"
# Before torch is imported; tests do the same.
SURROUNDINGS = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRITON_INTERPRET": "1",
    "MPLBACKEND": "agg",
}


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    found = argparse.ArgumentParser(prog="python -m scripts.campaign", description=__doc__)
    found.add_argument("--kind", action="append", help="run this kind only; may be repeated")
    found.add_argument("--case", type=int, help="run this case of the kind only")
    found.add_argument("--sample", action="store_true", help="run a few cases of each kind")
    found.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    found.add_argument("--keep", action="store_true", help="keep the folders of all cases")
    found.add_argument("--scratch", type=Path, help="where cases work; a temporary folder")
    found.add_argument("--out", type=Path, default=OUT, help=f"by default {OUT}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was chosen; 0 where every case is right or one sentence."""
    args = parser().parse_args(argv)
    for name, value in SURROUNDINGS.items():
        os.environ.setdefault(name, value)
    scratch = args.scratch or Path(tempfile.mkdtemp(prefix="campaign-"))
    scratch.mkdir(parents=True, exist_ok=True)
    os.environ["HF_HOME"] = str(scratch / "hub")
    from scripts.campaign import bench, outcome, runner

    names = args.kind or list(runner.KINDS)
    if unknown := set(names) - set(runner.KINDS):
        parser().error(f"{', '.join(unknown)} is no kind: choose from {', '.join(runner.KINDS)}.")
    bench.warm()
    found = []
    for one in runner.run(
        runner.cases(names, args.case, args.sample), scratch, args.jobs, args.keep
    ):
        found.append(one)
        runner.tell(one)
    print(f"\n{runner.table(found)}\n")
    print(f"cases    {runner.write(found, args.out)}")
    print(f"folders  {scratch}, of what is wrong")
    return int(any(one.label in outcome.BAD for one in found))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # libraries that were loaded for the forks complain at an ordinary exit
