"""Train harness/embedded/tiny_vlm from nothing: `python scripts/train_tiny_vlm.py`.

Tower, projector, words, letters, then all of it with a falling learning rate; every stage but the
last moves on by its accuracy. Questions come from other seeds than the benchmark's. Writes the
model in half precision, its processor, and training.json with the seed, times and accuracies.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
import transformers

from harness.embedded import TINY_VLM
from scripts.build_mmbench_mini import SEED as BENCHMARK_SEED
from scripts.tiny_vlm import attention_hints, build, language, tower
from scripts.tiny_vlm.language import Pool, Stage

WORDS = Stage(False, scenes=32, questions=10, goal=0.9, max_steps=800, rate=2e-3)
LETTERS = Stage(True, scenes=16, questions=8, goal=0.9, max_steps=700, rate=1.5e-3)
FINISH = replace(LETTERS, max_steps=600, decay=True, partial=True)


@dataclass(frozen=True)
class Plan:
    """How long each part may take; the defaults made the shipped weights."""

    tower_steps: int = 1000
    projector_steps: int = 600
    pool: int = 20_000  # scenes to draw questions from
    words: Stage = WORDS
    letters: Stage = LETTERS
    finish: Stage = FINISH


def _machine() -> str:
    """The GPU's name, or the CPU's with the number of threads in use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def train(folder: Path, seed: int, plan: Plan) -> dict[str, object]:
    """Run every stage and write the folder; returns what training.json records."""
    start = time.perf_counter()

    def log(text: str) -> None:
        print(f"[{time.perf_counter() - start:6.0f} s] {text}", flush=True)

    model = build.model(seed).to("cuda" if torch.cuda.is_available() else "cpu")
    rng = Random(seed)
    record: dict[str, object] = {"seed": seed, "benchmark_seed": BENCHMARK_SEED}
    record["tower"] = tower.train_tower(model, rng, steps=plan.tower_steps, batch=48, log=log)
    record["projector_explains"] = tower.align_projector(
        model, rng, steps=plan.projector_steps, batch=64, log=log
    )
    pool, held_out = Pool.draw(model, rng, plan.pool), Pool.draw(model, rng, 48)
    model.model.language_model.set_attn_implementation(attention_hints.NAME)
    for name in ("words", "letters", "finish"):
        record[name] = language.train(model, pool, held_out, getattr(plan, name), rng, log)
    model.model.language_model.set_attn_implementation("sdpa")
    record |= {
        "seconds": round(time.perf_counter() - start),
        "machine": _machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    model.half().save_pretrained(folder)
    build.processor().save_pretrained(folder)
    folder.joinpath("training.json").write_text(json.dumps(record, indent=1) + "\n")
    log(f"wrote {folder}")
    return record


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=TINY_VLM)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.seed == BENCHMARK_SEED:
        parser.error(f"seed {args.seed} made the benchmark; take another one")
    train(args.folder, args.seed, Plan())


if __name__ == "__main__":
    main()
