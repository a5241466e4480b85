"""Time the branching engine against one evaluation a cell, in one run, on the embedded model.

`make bench`. Prints (1) branching against separate prefills at 31 cells on real questions, after
checking that both give the same answers; (2) time a sample against prompt length; (3) against the
number of cells. Medians of repeated samples; both sides of a ratio alternate within one run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import torch

import methods
from harness.drawing.render import render
from harness.drawing.world import sample_scene
from harness.embedded import TINY_VLM
from harness.embedded.questions import KINDS, ask, prompt
from harness.engine import Branch, BranchResult, Engine, Generation
from harness.models import loading
from harness.models.loaded import LoadedModel
from harness.models.prompts import Prompt

RATIOS = (0.5, 0.7, 0.8, 0.9, 0.95)
POLICIES = ("random", "snapkv", "h2o", "tova", "lacache", "restkv")
GENERATION = Generation(max_new_tokens=8)
LETTERS = "ABCD"


def branches(names: Sequence[str] = POLICIES, ratios: Sequence[float] = RATIOS) -> list[Branch]:
    """The full cache and one cell for each method and ratio."""
    policies = [methods.build(name) for name in names]
    return [Branch(), *(Branch(policy, ratio) for policy in policies for ratio in ratios)]


def prompts(loaded: LoadedModel, count: int, seed: int = 7) -> list[Prompt]:
    """Questions about random scenes, as the benchmark asks them."""
    rng, out, kinds = Random(seed), [], list(KINDS)
    while len(out) < count:
        scene = sample_scene(rng)
        question = ask(scene, kinds[len(out) % len(kinds)], rng)
        if question is not None:
            image = {"type": "image", "url": render(scene)}
            content = [image, {"type": "text", "text": prompt(question)}]
            out.append(loaded.prompt([{"role": "user", "content": content}]))
    return out


def long_prompt(loaded: LoadedModel, length: int) -> Prompt:
    """A real prompt whose question is preceded by filler sentences up to about `length` tokens."""
    rng = Random(length)
    scene = sample_scene(rng)
    image = {"type": "image", "url": render(scene)}
    filler = "The image shows some shapes. "
    text = filler * max(0, (length - 120) // 6) + prompt(ask(scene, "color", rng))
    return loaded.prompt([{"role": "user", "content": [image, {"type": "text", "text": text}]}])


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall-clock seconds of a call, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def one_by_one(engine: Engine, item: Prompt, cells: Sequence[Branch]) -> list[BranchResult]:
    """Each cell by itself: a prefill, a compaction and a decode of its own."""
    return [engine.run(item, [cell], GENERATION, LETTERS)[0] for cell in cells]


def compare(engine: Engine, items: Sequence[Prompt], cells: Sequence[Branch]) -> dict[str, object]:
    """Branching against one by one; raises SystemExit where an answer differs."""
    together, apart, worst = [], [], 0.0
    for item in items:
        start = time.perf_counter()
        first = engine.run(item, cells, GENERATION, LETTERS)
        middle = time.perf_counter()
        second = one_by_one(engine, item, cells)
        together.append(middle - start)
        apart.append(time.perf_counter() - middle)
        for cell, (a, b) in enumerate(zip(first, second, strict=True)):
            if a.text != b.text:
                raise SystemExit(f"cell {cell}: {a.text!r} in the batch, {b.text!r} alone")
            gaps = (abs(a.letter_logits[x] - b.letter_logits[x]) for x in LETTERS)
            worst = max(worst, *gaps)
    ratios = [b / a for a, b in zip(together, apart, strict=True)]
    return {
        "cells": len(cells),
        "samples": len(items),
        "branching_ms": 1e3 * statistics.median(together),
        "one_by_one_ms": 1e3 * statistics.median(apart),
        "speedup_median": statistics.median(ratios),
        "speedup_total": sum(apart) / sum(together),
        "same_answers": len(items) * len(cells),
        "largest_logit_gap": worst,
    }


def head_line(head: dict[str, object]) -> str:
    """The comparison in one sentence."""
    return (
        f"{head['cells']} cells x {head['samples']} questions: branching "
        f"{head['branching_ms']:.1f} ms a question, one by one {head['one_by_one_ms']:.1f} ms: "
        f"{head['speedup_median']:.1f} x faster (median; {head['speedup_total']:.1f} x in total), "
        f"{head['same_answers']} answers the same, logits within {head['largest_logit_gap']:.1e}"
    )


def against_length(engine: Engine, cells: Sequence[Branch], repeats: int) -> list[dict[str, float]]:
    """All cells, and the full cache alone, on prompts of growing length."""
    rows = []
    for length in (128, 256, 512, 1024):
        item = long_prompt(engine.loaded, length)
        spent = seconds(lambda item=item: engine.run(item, cells, GENERATION), repeats)
        alone = seconds(lambda item=item: engine.run(item, cells[:1], GENERATION), repeats)
        tokens = item.inputs["input_ids"].shape[1]
        rows.append({"tokens": tokens, "ms": 1e3 * spent, "full_cache_alone_ms": 1e3 * alone})
        print(
            f"L = {tokens:5d}: {1e3 * spent:7.1f} ms for {len(cells)} cells, "
            f"{spent / alone:.1f} x the full cache alone"
        )
    return rows


def against_cells(engine: Engine, cells: Sequence[Branch], repeats: int) -> list[dict[str, float]]:
    """One question with growing numbers of cells."""
    item, rows = prompts(engine.loaded, 1)[0], []
    for count in (1, 2, 6, 11, 16, 31):
        spent = seconds(lambda count=count: engine.run(item, cells[:count], GENERATION), repeats)
        rows.append({"cells": count, "ms": 1e3 * spent})
        print(f"{count:3d} cells: {1e3 * spent:7.1f} ms, {1e3 * spent / count:6.2f} ms a cell")
    return rows


def main() -> None:
    """Parse the command line, measure, print, and write the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(TINY_VLM), help="folder or hub id")
    parser.add_argument("--samples", type=int, default=36)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    loaded = loading.load(args.model)
    engine, cells = Engine(loaded), branches()
    engine.run(prompts(loaded, 1)[0], cells, GENERATION, LETTERS)  # warm up
    device = torch.cuda.get_device_name() if loaded.device.type == "cuda" else "CPU"
    print(f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads, {loaded.dtype}")
    head = compare(engine, prompts(loaded, args.samples), cells)
    print(head_line(head))
    figures = {
        "device": device,
        "head": head,
        "lengths": against_length(engine, cells, args.repeats),
        "cells": against_cells(engine, cells, args.repeats),
    }
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
