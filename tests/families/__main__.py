"""`python -m tests.families [--write] [NAME ...]`: check families, and write docs/models.md."""

import argparse
import tempfile
from pathlib import Path

from tests.families import page
from tests.families.checks import NAMES, check, saved

parser = argparse.ArgumentParser(prog="python -m tests.families", description=__doc__)
parser.add_argument("name", nargs="*", help="families; by default all of them")
parser.add_argument("--write", action="store_true", help="write docs/models.md")
args = parser.parse_args()
reports = []
with tempfile.TemporaryDirectory() as top:
    for name in args.name or NAMES:
        report = check(name, saved(name, Path(top)))
        reports.append(report)
        state = "; ".join(report.wrong) or "; ".join(sorted({*report.refused.values()}))
        print(f"{name}: {report.checks} checks, {report.worst:.1e} {state}", flush=True)
print(f"{len(reports)} families, {sum(one.checks for one in reports):,} checks")
if args.write:
    page.PATH.write_text(page.text(reports), encoding="utf-8")
raise SystemExit(any(one.wrong for one in reports))
