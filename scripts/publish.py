"""Run the sweeps that results/ holds and put there what they say: `make publish`.

Answers that are in the stores under results/runs/published are not computed anew. What is published
holds no times and no dates, so that the same answers give the same bytes.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import stats
from harness.report import build, files
from harness.report.study import Study

ROOT = Path(__file__).resolve().parent.parent
RUNS, RESULTS = Path("results/runs/published"), Path("results")
TABLES = ("cells", "comparisons", "ablation", "verdicts", "contrasts", "abilities", "means")
WHOLE = ("answer.md", "summary.md", "manifest.json", "config.yaml")
# Of a model that takes 5 s a row and more some methods are asked, and what smoothing adds to one.
REAL = "random,h2o,snapkv,tova,keydiff,restkv,restkv_neither"


@dataclass(frozen=True)
class Publication:
    """A folder of results/, the settings of its run, and whether its report.html is kept."""

    folder: str
    settings: tuple[str, ...] = ()
    page: bool = False


PUBLICATIONS = (
    Publication("ruler_mini", ("task=ruler_mini", "protocol=replay")),
    Publication("longbench_mini", ("task=longbench_mini", "protocol=replay")),
    Publication("needle_mini", ("task=needle_mini", "protocol=replay")),
    Publication("smoothing", ("experiment=smoothing",)),
    Publication("smollm2", ("experiment=smollm2",)),
    Publication("embedded_long", ("experiment=long",)),
    Publication("short_without_hints", ("model=tiny_vlm_long",)),
    Publication("long_answers", ("experiment=long_answers",)),
    Publication("learned", ("experiment=learned", "limit=120")),
    Publication("field", ("experiment=field",)),
    Publication("field_ruler", ("experiment=field", "task=ruler_mini", "limit=40")),
    Publication(
        "field_smollm2",
        (
            "experiment=field",
            "model=smollm2_135m",
            "task=needle",
            "tasks.needle.data.lengths=[1024]",
            "ratios=[0.5,0.8,0.9]",
        ),
    ),
    Publication("bytes", ("experiment=bytes",)),
    Publication("bytes_smollm2", ("experiment=bytes_smollm2",)),
    Publication("sparse_prefill", ("experiment=sparse_prefill",)),
    Publication(
        "smol_vlm",
        ("model=smol_vlm", f"method=[{REAL}]", "ratios=[0.5,0.8,0.9]"),
        page=True,
    ),
    Publication("smol_vlm_long", ("experiment=smol_vlm_long", "limit=30")),
    Publication("embedded", page=True),
)


def run(one: Publication) -> None:
    """Run one sweep to its end, with a store of its own: each plan comes before its answers."""
    own = [f"run.name={one.folder}", f"run.dir={RUNS / one.folder}"]
    command = [sys.executable, "-m", "harness", *one.settings, *own]
    subprocess.run(command, check=True)


def place(one: Publication) -> Path:
    """The folder of its run."""
    return RUNS / one.folder / one.folder


def publish(one: Publication, results: Path = RESULTS) -> Path:
    """Replace the published files of a finished run."""
    source, target = place(one), results / one.folder
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / one.folder
        files.write(without_times(build.read(source)), made)
        shutil.copy(source / build.MANIFEST, made / build.MANIFEST)
        settings = (source / "config.yaml").read_text(encoding="utf-8")
        (made / "config.yaml").write_text(settings.replace(f"{ROOT}/", ""), encoding="utf-8")
        wanted = [made / name for name in (*WHOLE, *(f"{table}.parquet" for table in TABLES))]
        wanted += sorted(made.glob("*.png")) + ([made / "report.html"] if one.page else [])
        fresh = results / f".{one.folder}.part"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for path in wanted:
            if path.is_file():
                shutil.copy(path, fresh / path.name)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    return target


def without_times(study: Study) -> Study:
    """The study without what differs from run to run of the same answers."""
    cells, means = (
        frame.drop(columns=stats.TIMINGS, errors="ignore") for frame in (study.cells, study.means)
    )
    return replace(study, cells=cells, means=means, session={})


def digest(folder: Path) -> str:
    """sha256 over names and bytes of a folder's files."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Publish what was named, all by default, and print a digest of each folder."""
    parser = argparse.ArgumentParser(prog="python -m scripts.publish", description=__doc__)
    names = [one.folder for one in PUBLICATIONS]
    parser.add_argument("name", nargs="*", help=f"some of {', '.join(names)}; all by default")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.name) - set(names))
    if unknown:
        parser.error(f"{', '.join(unknown)} is not published: choose from {', '.join(names)}.")
    chosen = [one for one in PUBLICATIONS if not args.name or one.folder in args.name]
    for one in chosen:
        run(one)
    for one in chosen:  # every ledger reads the tables of all: they have to be there first
        publish(one)
    for one in chosen:
        print(f"{digest(publish(one))}  results/{one.folder}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
