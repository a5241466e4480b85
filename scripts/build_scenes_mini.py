"""Write harness/embedded/scenes_mini: pictures to be read out, thing after thing.

Three sizes: one tile (64 image tokens), 3 x 3 (584) and 6 x 6 (2,339, with the newlines between
tiles). The same seed and library versions give the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from harness.drawing.poster import read_out, said
from harness.drawing.render import render_wall
from harness.embedded import SCENES_MINI, scenes
from scripts.build_mmbench_mini import png

SEED = 20_260_903
ROWS = 20  # of each size
SCHEMA = {
    "index": Value("int64"),
    "image": Image(),
    "question": Value("string"),
    "outputs": List(Value("string")),  # the words of the answer in their order
    "tiles": Value("int64"),
}
CARD = """---
license: apache-2.0
configs:
{configs}
---
Drawn pictures of 64 to 2,304 image tokens with all that they show, to be read out, made by
`scripts/build_scenes_mini.py --seed {seed}`. No third-party content.
"""
CONFIG = """- config_name: {name}
  data_files:
  - split: test
    path: {name}/test-*"""


def rows(size: str, seed: int, count: int = ROWS) -> list[dict[str, object]]:
    """The first rows of a size."""
    rng, out = Random(f"{seed} scenes {size}"), []
    for index in range(count):
        wall = scenes.draw(rng, scenes.ACROSS[size])
        out.append(
            {
                "index": index,
                "image": {"bytes": png(render_wall(wall)), "path": f"{size}-{index}.png"},
                "question": scenes.QUESTION,
                "outputs": [word for thing in read_out(wall) for word in said(thing)],
                "tiles": len(wall.tiles),
            }
        )
    return out


def build(folder: Path, seed: int = SEED) -> dict[str, int]:
    """Write the dataset folder; returns the number of rows of each size."""
    made = {}
    for size in scenes.ACROSS:
        found = rows(size, seed)
        folder.joinpath(size).mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(found, schema=Features(SCHEMA).arrow_schema)
        pq.write_table(table, folder / size / "test-00000-of-00001.parquet", compression="zstd")
        made[size] = len(found)
    configs = "\n".join(CONFIG.format(name=name) for name in made)
    folder.joinpath("README.md").write_text(CARD.format(configs=configs, seed=seed))
    return made


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=SCENES_MINI, help="where it goes")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    for size, count in build(args.folder, args.seed).items():
        print(f"{count} rows in {args.folder / size}")


if __name__ == "__main__":
    main()
