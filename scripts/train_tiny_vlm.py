"""Train harness/embedded/tiny_vlm from nothing: `python -m scripts.train_tiny_vlm`.

Four parts, each of which can begin from the folder that the one before it wrote (--start):
pictures (tower, projector, words, letters, a falling learning rate); texts (new words, then longer
and longer texts, with some pictures so that they are not forgotten); both (texts of all lengths
and pictures in equal shares); finish (the same, until the learning rate is down). A fifth makes
tiny_vlm_long of that: walls (pictures of up to 36 tiles, with no hints where to look, beside texts
and short pictures). Two more make tiny_lists of that: lists (said again word after word), then
scenes (pictures of up to 36 tiles, read out thing after thing, beside lists). Texts and pictures
come from other seeds than the benchmarks'. Writes the model in half precision, its processor, and
training.json with seeds, times and accuracies. Counting passages was tried and not learned.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForImageTextToText

from harness.embedded import TINY_LISTS, TINY_VLM, TINY_VLM_LONG
from scripts.build_mmbench_mini import SEED as BENCHMARK_SEED
from scripts.build_scenes_mini import SEED as SCENES_SEED
from scripts.build_text_mini import SEED as TEXT_BENCHMARK_SEED
from scripts.tiny_vlm import (
    attention_hints,
    build,
    language,
    lists,
    recall,
    scenes,
    tower,
    walls,
    wiring,
)
from scripts.tiny_vlm.language import Pool, Stage
from scripts.tiny_vlm.lists import Listing
from scripts.tiny_vlm.recall import Reading
from scripts.tiny_vlm.scenes import ReadingOut
from scripts.tiny_vlm.walls import Looking

PARTS = ("pictures", "texts", "both", "finish")
WALLS, LISTS, SCENES = "walls", "lists", "scenes"
AFTERWARDS = {  # parts of their own: what each begins from, and where it goes
    WALLS: (TINY_VLM, TINY_VLM_LONG),
    LISTS: (TINY_VLM_LONG, TINY_LISTS),
    SCENES: (TINY_LISTS, TINY_LISTS),
}
WORDS = Stage(False, scenes=32, questions=10, goal=0.9, max_steps=800, rate=2e-3)
LETTERS = Stage(True, scenes=16, questions=8, goal=0.9, max_steps=700, rate=1.5e-3)
FINISH = replace(LETTERS, max_steps=600, decay=True, partial=True)
KINDS = ("niah", "tracking", "needle", "key_value", "retrieval", "few_shot")
SHORT = Reading((128, 160), KINDS, 2500, 6, goal=0.97, max_steps=300, rate=1.5e-3, pictures=4)
LONGER = (
    SHORT,
    replace(SHORT, lengths=(128, 192, 256), max_steps=400),
    replace(SHORT, lengths=(192, 256, 384, 512), max_steps=400),
)
BOTH = replace(
    SHORT,
    lengths=(128, 256, 512, 768, 1024),
    kinds=(*KINDS, "several"),
    tokens=2200,
    max_steps=500,
    horizon=1200,
    pictures=1,
    decay=True,
    partial=True,
    most_weight=0.8,
    every=100,
    spoken=True,
)
TURNED = replace(BOTH, max_steps=700, horizon=0, rate=1.2e-3)
KEPT = replace(TURNED, lengths=(128, 256, 512, 1024, 2048), hint_weight=0.0)
FEW = Looking((1, 2, 2, 3, 3, 4), tiles=36, questions=8, max_steps=450, rate=1e-3, reading=KEPT)
MANY = replace(FEW, across=(1, 2, 3, 4, 5, 6, 6), max_steps=950, decay=True)
BRIEF = Listing((4, 16), tokens=1500, goal=0.95, max_steps=250, rate=1.5e-3)
LONG_LISTS = (
    BRIEF,
    replace(BRIEF, words=(12, 40), tokens=2000, max_steps=200),
    replace(
        BRIEF,
        words=(18, 60),
        tokens=2400,
        max_steps=300,
        hint_weight=0.0,
        partial=0.3,
        decay=True,
    ),
)
FEW_THINGS = ReadingOut((1,), (2, 10), LONG_LISTS[-1], tokens=1600, max_steps=200, rate=1.5e-3)
MANY_THINGS = replace(FEW_THINGS, things=(4, 24), partial=0.3, max_steps=250)
WIDE = replace(MANY_THINGS, across=(1, 2, 3), tokens=1900, max_steps=300, every=100)
WIDEST = replace(WIDE, across=(1, 2, 3, 4, 6, 6), tokens=2300, max_steps=300)
ALONE = replace(WIDEST, max_steps=250, guided=False, partial=0.4, decay=True)
CONTEXT = 4096  # tokens; a prompt of 36 tiles has about 2,400

Log = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How long each stage may take; the defaults made the shipped weights."""

    tower_steps: int = 1000
    projector_steps: int = 600
    pool: int = 20_000  # scenes to draw questions from while pictures are learned
    words: Stage = WORDS
    letters: Stage = LETTERS
    finish: Stage = FINISH
    kept: int = 2000  # scenes to draw questions from afterwards
    texts: tuple[Reading, ...] = field(default=LONGER)
    both: Reading = BOTH
    turned: Reading = TURNED
    walls: tuple[Looking, ...] = field(default=(FEW, MANY))
    lists: tuple[Listing, ...] = field(default=LONG_LISTS)
    scenes: tuple[ReadingOut, ...] = field(default=(FEW_THINGS, MANY_THINGS, WIDE, WIDEST, ALONE))


def machine() -> str:
    """The GPU's name, or the CPU's with the number of threads in use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def pictures(model: nn.Module, rng: Random, plan: Plan, log: Log) -> dict[str, Any]:
    """Part 1; returns accuracies by stage and kind."""
    record: dict[str, Any] = {
        "tower": tower.train_tower(model, rng, steps=plan.tower_steps, batch=48, log=log),
        "projector_explains": tower.align_projector(
            model, rng, steps=plan.projector_steps, batch=64, log=log
        ),
    }
    pool, held_out = Pool.draw(model, rng, plan.pool), Pool.draw(model, rng, 48)
    for name in ("words", "letters", "finish"):
        record[name] = language.train(model, pool, held_out, getattr(plan, name), rng, log)
    return record


def read(
    model: nn.Module, rng: Random, plan: Plan, stages: tuple[Reading, ...], log: Log, save
) -> dict[str, Any]:
    """Parts 2 to 4; returns accuracies by the longest texts of a stage, and kind."""
    pool, held_out = Pool.draw(model, rng, plan.kept), Pool.draw(model, rng, 48)
    record = {}
    for stage in stages:
        known = recall.train(model, pool, held_out, stage, rng, log, save)
        record[f"{max(stage.lengths)} tokens"] = known
    return record


def look(model: nn.Module, rng: Random, plan: Plan, log: Log, save) -> dict[str, Any]:
    """Part 5; returns accuracies by the most tiles of a stage, and kind."""
    pool, held_out = Pool.draw(model, rng, plan.kept), Pool.draw(model, rng, 48)
    record = {}
    for stage in plan.walls:
        known = walls.train(model, pool, held_out, stage, rng, log, save)
        record[f"{max(stage.across) ** 2} tiles"] = known
    return record


def recite(model: nn.Module, rng: Random, plan: Plan, log: Log, save) -> dict[str, Any]:
    """Part 6; returns shares of right words and answers by a stage's longest lists, and kind."""
    return {
        f"{stage.words[1]} words": lists.train(model, stage, rng, log, save) for stage in plan.lists
    }


def read_out(model: nn.Module, rng: Random, plan: Plan, log: Log, save) -> dict[str, Any]:
    """Part 7; returns shares of right words and answers by stage, and size of the picture."""
    record = {}
    for number, stage in enumerate(plan.scenes, 1):
        name = f"{number}: {stage.things[1]} things on {max(stage.across) ** 2} tiles"
        record[name] = scenes.train(model, stage, rng, log, save)
    return record


def run(part: str, start: Path | None, folder: Path, seed: int, plan: Plan) -> dict[str, Any]:
    """Run one part and write the folder; returns what training.json records of it."""
    began = time.perf_counter()

    def log(text: str) -> None:
        print(f"[{time.perf_counter() - began:6.0f} s] {text}", flush=True)

    rng, generator = Random(seed), torch.Generator().manual_seed(seed)
    history: dict[str, Any] = {}
    if part == "pictures":
        model = build.model(seed)
    else:
        assert start is not None
        model = AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32)
        history = json.loads((start / "training.json").read_text())["parts"]
    if part == "texts":
        wiring.extend(model, generator)
        wiring.wire(model, generator)
    elif part == "both":
        wiring.hush(model)
    elif part == "finish":
        wiring.turn(model, generator)
    elif part == WALLS:
        model.config.text_config.max_position_embeddings = CONTEXT
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.model.language_model.set_attn_implementation(attention_hints.NAME)

    def save() -> None:
        model.save_pretrained(folder)

    if part == "pictures":
        record = pictures(model, rng, plan, log)
    elif part in AFTERWARDS:
        learn = {WALLS: look, LISTS: recite, SCENES: read_out}[part]
        record = learn(model, rng, plan, log, save)
    else:
        stages = {"texts": plan.texts, "both": (plan.both,), "finish": (plan.turned,)}[part]
        record = read(model, rng, plan, stages, log, save)
    model.model.language_model.set_attn_implementation("sdpa")
    record = {
        "seconds": round(time.perf_counter() - began),
        "cpu_seconds": round(time.process_time()),
        "machine": machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    } | record
    model.half().save_pretrained(folder)
    build.processor(model.config.text_config.max_position_embeddings).save_pretrained(folder)
    parts = history | {part: record}
    after = ""
    if part in AFTERWARDS:
        after = f" --part {part} --start harness/embedded/{AFTERWARDS[part][0].name}"
    whole = {
        "command": f"python -m scripts.train_tiny_vlm --seed {seed}{after}",
        "seed": seed,
        "benchmark_seed": BENCHMARK_SEED,
        "text_benchmark_seed": TEXT_BENCHMARK_SEED,
        "scenes_seed": SCENES_SEED,
        "seconds": sum(each["seconds"] for each in parts.values()),
        "parts": parts,
    }
    folder.joinpath("training.json").write_text(json.dumps(whole, indent=1) + "\n")
    log(f"wrote {folder}")
    return record


def train(folder: Path, seed: int, plan: Plan, parts=PARTS, start: Path | None = None) -> None:
    """Run the parts one after another, each from what the one before it wrote."""
    for part in parts:
        run(part, start, folder, seed, plan)
        start = folder


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=TINY_VLM)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", choices=("all", *PARTS, *AFTERWARDS), default="all")
    parser.add_argument("--start", type=Path, help="folder of the part before (not for pictures)")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    args = parser.parse_args()
    if args.seed in (BENCHMARK_SEED, TEXT_BENCHMARK_SEED, SCENES_SEED):
        parser.error(f"seed {args.seed} made a benchmark; take another one")
    if args.part in (*PARTS[1:], *AFTERWARDS) and args.start is None:
        parser.error(f"part {args.part} begins from the part before it; give its folder as --start")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.part in AFTERWARDS and args.folder == TINY_VLM:
        args.folder = AFTERWARDS[args.part][1]
    parts = PARTS if args.part == "all" else (args.part,)
    train(args.folder, args.seed, Plan(), parts, args.start)


if __name__ == "__main__":
    main()
