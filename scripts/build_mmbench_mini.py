"""Write harness/embedded/mmbench_mini: a small benchmark in MMBench's schema, drawn from a seed.

The same seed and library versions give the same bytes. Rotations of a question follow MMBench's
CircularEval convention: row `index` belongs to question `index % 1_000_000`.
"""

from __future__ import annotations

import argparse
import io
import string
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value

from harness.drawing.render import render
from harness.drawing.world import Scene, sample_scene
from harness.embedded import MMBENCH_MINI
from harness.embedded.questions import KINDS, Question, ask

SEED = 20_260_901
ROTATION = 1_000_000
CARD = """---
license: apache-2.0
configs:
- config_name: en
  data_files:
  - split: dev
    path: en/dev-*
---
Drawn scenes with multiple-choice questions in MMBench's schema, made by
`scripts/build_mmbench_mini.py --seed {seed} --per-kind {per_kind}`. No third-party content.
"""


def _png(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    render(scene).save(buffer, format="PNG", optimize=False, compress_level=9)
    return buffer.getvalue()


def _rows(number: int, scene: Scene, question: Question) -> list[dict[str, object]]:
    """The question once for each rotation of its options."""
    image, rows = _png(scene), []
    for turn in range(len(question.options)):
        options = question.options[turn:] + question.options[:turn]
        letters = dict(zip("ABCD", options, strict=False))
        rows.append(
            {
                "index": number + turn * ROTATION,
                "question": question.text,
                "hint": question.hint,
                "answer": string.ascii_uppercase[options.index(question.answer)],
                **{letter: letters.get(letter) for letter in "ABCD"},
                "category": question.category,
                "image": {"bytes": image, "path": f"{number}.png"},
                "source": "mmbench_mini",
                "L2-category": question.l2_category,
                "comment": question.kind,
                "split": "dev",
            }
        )
    return rows


def build(folder: Path, seed: int = SEED, per_kind: int = 27) -> int:
    """Write the dataset folder; returns the number of rows."""
    rng, rows, number = Random(seed), [], 0
    for _ in range(per_kind):
        for kind in KINDS:
            question = None
            while question is None:
                scene = sample_scene(rng)
                question = ask(scene, kind, rng)
            rows += _rows(number, scene, question)
            number += 1
    rows.sort(key=lambda row: row["index"])
    types = {"index": Value("int64"), "image": Image()}
    schema = Features({name: types.get(name, Value("string")) for name in rows[0]}).arrow_schema
    folder.joinpath("en").mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, folder / "en" / "dev-00000-of-00001.parquet", compression="zstd")
    folder.joinpath("README.md").write_text(CARD.format(seed=seed, per_kind=per_kind))
    return len(rows)


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=MMBENCH_MINI)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--per-kind", type=int, default=27, help="questions of each kind")
    args = parser.parse_args()
    print(f"{build(args.folder, args.seed, args.per_kind)} rows in {args.folder}")


if __name__ == "__main__":
    main()
