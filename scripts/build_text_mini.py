"""Write harness/embedded's ruler_mini, longbench_mini, needle_mini and lists_mini from a seed.

Small twins of RULER, LongBench and needle-in-a-haystack in the embedded model's vocabulary, in
their schemas, and lists whose answers are long. The same seed and library versions give the same
bytes. Lengths are tokens of the embedded tokenizer and count the chat template and the answer.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, List, Value

from harness.embedded import HOME, lists, texts
from harness.embedded.texts import Query, Text

SEED = 20_260_902
LENGTHS = (128, 256, 512, 768, 1024)
DEPTHS = tuple(range(0, 101, 10))
ROWS = 32  # of each ruler_mini task and length
LONGBENCH_ROWS = 40  # of each longbench_mini task
NEEDLES = 4  # of each depth and length
LISTS = 10  # of each kind of answer and number of words

Row = dict[str, object]
_STRING, _INT = Value("string"), Value("int64")
RULER = {
    "index": _INT,
    "input": _STRING,
    "context_end": _INT,  # characters of `input` up to the end of the long context
    "outputs": List(_STRING),
    "answer_prefix": _STRING,
    "length": _INT,  # tokens of the prompt and the answer
    "max_length": _INT,
}
NEEDLE = RULER | {"depth": _INT}  # percent of the context's noise that lies before the needle
LIST = RULER | {"words": _INT}  # of the list, and of the answer
LONGBENCH = {
    "input": _STRING,
    "context": _STRING,
    "answers": List(_STRING),
    "length": _INT,  # words of the context, the question and the answer
    "dataset": _STRING,
    "language": _STRING,
    "all_classes": List(_STRING),
    "_id": _STRING,
}
CARD = """---
license: apache-2.0
configs:
{configs}
---
{about}, made by `scripts/build_text_mini.py --seed {seed}`. No third-party content.
"""
CONFIG = """- config_name: {name}
  data_files:
  - split: test
    path: {name}/test-*"""
ABOUT = {
    "ruler_mini": "Needles and variable tracking in RULER's schema, 128 to 1,024 tokens",
    "longbench_mini": "Four tasks in LongBench's schema, 256 to 1,024 tokens",
    "needle_mini": "A word hidden in noise at each depth of 128 to 1,024 tokens",
    "lists_mini": "Lists of 20 to 60 words in noise, to be said again, in RULER's schema",
}


def _ruler_row(text: Text, query: Query, index: int, length: int) -> Row:
    return {
        "index": index,
        "input": text.before + query.after,
        "context_end": len(text.before),
        "outputs": list(query.outputs),
        "answer_prefix": query.prefix,
        "length": text.tokens(query),
        "max_length": length,
    }


def _keys(length: int) -> int:
    """Keys of a multi-key text: as many as fit at 128 tokens, 16 from 512 on."""
    return min(16, length // 32)


def _ruler(draw: Callable[[Random, int, float], Text], rng: Random, rows: int) -> list[Row]:
    """Rows of one task; the queried needle's depth runs evenly from 0 to 1 at each length."""
    out: list[Row] = []
    for length in LENGTHS:
        for index in range(rows):
            text = draw(rng, length, index / (rows - 1))
            out.append(_ruler_row(text, text.queries[0], len(out), length))
    return out


RULER_TASKS: dict[str, Callable[[Random, int, float], Text]] = {
    "niah_single": lambda rng, length, depth: texts.niah(rng, length, depth=depth),
    "niah_multikey": lambda rng, length, depth: texts.niah(
        rng, length, keys=_keys(length), depth=depth
    ),
    "niah_multivalue": lambda rng, length, _: texts.niah(rng, length, values=texts.VALUES_EACH),
    "vt": lambda rng, length, _: texts.tracking(rng, length),
}


def _needles(rng: Random) -> list[Row]:
    out: list[Row] = []
    for length in LENGTHS:
        for depth in DEPTHS:
            for _ in range(NEEDLES):
                text = texts.needle(rng, length, depth=depth / 100)
                row = _ruler_row(text, text.queries[0], len(out), length)
                out.append(row | {"depth": depth})
    return out


def _lists(kind: str, rng: Random) -> list[Row]:
    """Rows of one kind of answer, the sizes in turn; depths lie evenly from 0 to 1 at each size.

    Any first few rows have all sizes, and lists at the beginning, in the middle and at the end.
    """
    out: list[Row] = []
    for index in range(LISTS):
        for words, length in lists.LENGTHS.items():
            text = lists.draw(rng, words, length, 7 * index % LISTS / (LISTS - 1))
            query = text.queries[list(lists.ASKED).index(kind)]
            out.append(_ruler_row(text, query, len(out), length) | {"words": words})
    return out


LONGBENCH_TASKS: dict[str, Callable[[Random, int], Text]] = {
    "passage_retrieval": lambda rng, length: texts.retrieval(rng, length, min(9, length // 64)),
    "passage_count": lambda rng, length: texts.count(rng, length, 4, rng.randint(1, 4)),
    "few_shot": lambda rng, length: texts.few_shot(rng, length),
    "key_value": lambda rng, length: texts.key_value(rng, length, _keys(length)),
}


def _longbench(name: str, rng: Random, rows: int) -> list[Row]:
    out: list[Row] = []
    for index in range(rows):
        text = LONGBENCH_TASKS[name](rng, LENGTHS[1:][index % (len(LENGTHS) - 1)])
        query = rng.choice(text.queries)
        paragraph = "Paragraph " if name == "passage_retrieval" else ""
        answer = paragraph + " ".join(query.outputs)
        out.append(
            {
                "input": query.input if query.key else "",
                "context": text.context,
                "answers": [answer],
                "length": len(f"{text.context} {query.input} {answer}".split()),
                "dataset": name,
                "language": "en",
                "all_classes": list(text.classes) or None,
                "_id": hashlib.sha256(f"{name} {index}".encode()).hexdigest()[:24],
            }
        )
    return out


def _write(folder: Path, seed: int, schema: dict, tables: dict[str, list[Row]]) -> None:
    for name, rows in tables.items():
        folder.joinpath(name).mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(rows, schema=Features(schema).arrow_schema)
        pq.write_table(table, folder / name / "test-00000-of-00001.parquet", compression="zstd")
    configs = "\n".join(CONFIG.format(name=name) for name in tables)
    card = CARD.format(configs=configs, about=ABOUT[folder.name], seed=seed)
    folder.joinpath("README.md").write_text(card)


def build(home: Path, seed: int = SEED) -> dict[str, int]:
    """Write the four dataset folders into `home`; returns the number of rows of each."""
    ruler = {
        name: _ruler(draw, Random(f"{seed} {name}"), ROWS) for name, draw in RULER_TASKS.items()
    }
    longbench = {
        name: _longbench(name, Random(f"{seed} {name}"), LONGBENCH_ROWS) for name in LONGBENCH_TASKS
    }
    needle = {"needle": _needles(Random(f"{seed} needle"))}
    listed = {kind: _lists(kind, Random(f"{seed} lists {kind}")) for kind in lists.ASKED}
    parts = {
        "ruler_mini": (RULER, ruler),
        "longbench_mini": (LONGBENCH, longbench),
        "needle_mini": (NEEDLE, needle),
        "lists_mini": (LIST, listed),
    }
    for name, (schema, tables) in parts.items():
        _write(home / name, seed, schema, tables)
    return {name: sum(map(len, tables.values())) for name, (_, tables) in parts.items()}


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=HOME, help="where the four folders go")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    for name, rows in build(args.home, args.seed).items():
        print(f"{rows} rows in {args.home / name}")


if __name__ == "__main__":
    main()
