"""Write harness/embedded/mmbench_mini and mmbench_mini_long: small benchmarks in MMBench's schema.

The long one shows pictures of 6 x 6 tiles, 2,339 image tokens for a model that cuts them. The same
seed and library versions give the same bytes. Rotations of a question follow MMBench's CircularEval
convention: row `index` belongs to question `index % 1_000_000`.
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
from PIL.Image import Image as Picture

from harness.drawing.render import render, render_wall
from harness.drawing.wall import Wall, sample_wall
from harness.drawing.world import sample_scene
from harness.embedded import MMBENCH_MINI, MMBENCH_MINI_LONG, questions, wall_questions
from harness.embedded.questions import Question

SEED = 20_260_901
ACROSS = 6  # tiles of a long picture's side
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
`scripts/build_mmbench_mini.py {told}`. No third-party content.
"""


def png(image: Picture) -> bytes:
    """The same bytes for the same picture."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=False, compress_level=9)
    return buffer.getvalue()


def _rows(number: int, image: bytes, question: Question, source: str) -> list[dict[str, object]]:
    """The question once for each rotation of its options."""
    rows = []
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
                "source": source,
                "L2-category": question.l2_category,
                "comment": question.kind,
                "split": "dev",
            }
        )
    return rows


def _short(kind: str, rng: Random) -> tuple[Picture, Question | None]:
    scene = sample_scene(rng)
    return render(scene), questions.ask(scene, kind, rng)


def _long(kind: str, rng: Random) -> tuple[Picture, Question | None]:
    wall: Wall = sample_wall(rng, ACROSS)
    return render_wall(wall), wall_questions.ask(wall, kind, rng)


def build(folder: Path, seed: int = SEED, per_kind: int = 27, long: bool = False) -> int:
    """Write the dataset folder; returns the number of rows."""
    rng, rows, number = Random(seed), [], 0
    source = (MMBENCH_MINI_LONG if long else MMBENCH_MINI).name
    draw, kinds = (_long, wall_questions.ASKED) if long else (_short, questions.KINDS)
    for _ in range(per_kind):
        for kind in kinds:
            question = None
            while question is None:
                image, question = draw(kind, rng)
            rows += _rows(number, png(image), question, source)
            number += 1
    rows.sort(key=lambda row: row["index"])
    types = {"index": Value("int64"), "image": Image()}
    schema = Features({name: types.get(name, Value("string")) for name in rows[0]}).arrow_schema
    folder.joinpath("en").mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=schema)
    target = folder / "en" / "dev-00000-of-00001.parquet"
    pq.write_table(table, target, compression="zstd")
    told = f"{'--long ' if long else ''}--seed {seed} --per-kind {per_kind}"
    folder.joinpath("README.md").write_text(CARD.format(told=told))
    return len(rows)


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="one of them alone, in this folder")
    parser.add_argument("--long", action="store_true", help="the long one, with --folder")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--per-kind", type=int, help="questions of each kind")
    args = parser.parse_args()
    wanted = [(MMBENCH_MINI, False), (MMBENCH_MINI_LONG, True)]
    for folder, long in [(args.folder, args.long)] if args.folder else wanted:
        each = args.per_kind or (12 if long else 27)
        print(f"{build(folder, args.seed, each, long)} rows in {folder}")


if __name__ == "__main__":
    main()
