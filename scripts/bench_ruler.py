"""Time and peak memory of drawing RULER's tasks at a length, each in a process of its own.

    python -m scripts.bench_ruler --length 131072 --samples 500

The tokenizer is a byte-level BPE of 8,192 entries in transformers' own fast tokenizer class,
trained in a few seconds on the sources of Python's standard library, so that nothing is downloaded;
it needs more tokens a word than a model's. Give --tokenizer to use that of a local model.
Columns: seconds of wall and of processor time; peak memory of the process, and how much of it the
drawing added; the size of the file; the shortest and the mean sample as a fraction of the length.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from harness.process import cache as kept
from harness.scoring import generators
from harness.scoring.ruler.tasks import TASKS

LINE = "{:<22}{:>9}{:>9}{:>10}{:>8}{:>8}{:>8}{:>8}"


def byte_level(vocabulary: int = 8192, files: int = 120) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the first files of the standard library."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:files]
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in paths]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def measure(tokenizer: str, cache: str, task: str, length: int, samples: int) -> str:
    """Draw one task into a cache of its own and read the lengths back; a line of the table."""
    Path(cache).mkdir()
    Path(cache, "sources").symlink_to(kept.folder() / "sources")
    os.environ["EVICTBENCH_CACHE"] = cache
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    options = {"generator": "ruler", "task": task, "length": length, "samples": samples}
    before, start = _peak(), (time.perf_counter(), time.process_time())
    path = generators.prepare("ruler", options, loaded, "bench", 42, progress=False)
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    peak, size = _peak(), next((path / "data").glob("*.parquet")).stat().st_size / 2**20
    lengths = pq.read_table(path / "data", columns=["length"])["length"].to_pylist()
    shares = (min(lengths) / length, sum(lengths) / len(lengths) / length)
    figures = [f"{v:.1f}" for v in (wall, cpu, peak, peak - before, size)]
    return LINE.format(task, *figures, *(f"{share:.3f}" for share in shares))


def _peak() -> float:
    """The most memory this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _tasks(wanted: list[str]) -> Iterator[str]:
    for name in wanted or [f"ruler_{name}" for name in TASKS]:
        missing = generators.needs_hub({"generator": "ruler", "task": name, "length": 4096})
        if missing:
            print(f"{name:<22}needs {missing}, a download, and is left out")
        else:
            yield name


def main() -> None:
    """Parse the command line, measure task by task and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--length", type=int, default=131_072, help="tokens of a sample")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--tokenizer", help="folder of a model; default: trained here")
    parser.add_argument("--tasks", nargs="*", default=[], help="such as ruler_vt; default: all")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.tokenizer or f"{scratch}/tokenizer"
        if not args.tokenizer:
            byte_level().save_pretrained(folder)
        print(f"RULER at {args.length:,} tokens, {args.samples} samples a task")
        print(LINE.format("task", "seconds", "cpu s", "peak MiB", "added", "file", "least", "mean"))
        context = multiprocessing.get_context("spawn")
        for task in _tasks(args.tasks):
            job = (folder, f"{scratch}/{task}", task, args.length, args.samples)
            with ProcessPoolExecutor(1, context) as pool:
                print(pool.submit(measure, *job).result(), flush=True)


if __name__ == "__main__":
    main()
