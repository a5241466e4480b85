"""What a run found, read from its tables: scores, verdicts, and pairs of methods.

`python examples/read_results.py FOLDER` takes the folder of a run, such as results/runs/NAME, and
without a folder results/embedded. A table that is not there is left out. It takes two seconds.
"""

import sys
from pathlib import Path

import pandas as pd

PUBLISHED = Path(__file__).resolve().parents[1] / "results" / "embedded"
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else PUBLISHED
if not (folder / "cells.parquet").is_file():
    sys.exit(f"error: {folder} holds no cells.parquet: name the folder of a finished run.")

cells = pd.read_parquet(folder / "cells.parquet")
amount = "budget" if cells["budget"].notna().any() else "ratio"
for (task, protocol), rows in cells.groupby(["task", "protocol"], sort=False):
    whole = rows["method"].isin(["full", "blank_image"])
    print(f"{task}, protocol {protocol}: score in % by {amount}")
    for _, cell in rows[whole].iterrows():
        print(f"{cell['method']} {100 * cell['accuracy']:.1f}")
    scores = 100 * rows[~whole].pivot_table("accuracy", "method", amount, sort=False)
    print(scores.round(1).to_string(), "\n")

found = {
    "verdicts": ("method", ["difference", "difference_low", "difference_high"], "verdict"),
    "contrasts": ("label", ["difference", "low", "high"], "effect"),
}
for name, (label, points, said) in found.items():
    if (folder / f"{name}.parquet").is_file():
        table = pd.read_parquet(folder / f"{name}.parquet")
        table[points] = (100 * table[points]).round(1)
        pair = [label, *(["against"] if "against" in table else [])]
        print(f"{name}: differences in points")
        print(
            table[["task", "protocol", *pair, amount, *points, said]].to_string(index=False), "\n"
        )
