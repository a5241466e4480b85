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
from pathlib import Path
from random import Random

import torch
import transformers

from harness.embedded import TINY_VLM
from scripts.build_mmbench_mini import SEED as BENCHMARK_SEED
from scripts.tiny_vlm import attention_hints, build, language, tower
from scripts.tiny_vlm.language import Pool, Stage

WORDS = Stage(full=False, scenes=32, questions=10, goal=0.95, max_steps=1500, learning_rate=2e-3)
LETTERS = Stage(full=True, scenes=16, questions=8, goal=0.90, max_steps=1500, learning_rate=2e-3)
FINISH = Stage(
    full=True, scenes=16, questions=8, goal=1.0, max_steps=800, learning_rate=1.5e-3, decay=True
)


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()


def train(folder: Path, seed: int, pool_size: int) -> dict[str, object]:
    """Run every stage and write the folder; returns what training.json records."""
    start = time.perf_counter()

    def log(text: str) -> None:
        print(f"[{time.perf_counter() - start:6.0f} s] {text}", flush=True)

    model = build.model(seed).to("cuda" if torch.cuda.is_available() else "cpu")
    rng = Random(seed)
    record: dict[str, object] = {"seed": seed, "benchmark_seed": BENCHMARK_SEED}
    record["tower"] = tower.train_tower(model, rng, steps=1000, batch=48, log=log)
    record["projector_explains"] = tower.align_projector(model, rng, steps=600, batch=64, log=log)
    pool, held_out = Pool.draw(model, rng, pool_size), Pool.draw(model, rng, 48)
    model.model.language_model.set_attn_implementation(attention_hints.NAME)
    for name, stage in (("words", WORDS), ("letters", LETTERS), ("finish", FINISH)):
        record[name] = language.train(model, pool, held_out, stage, rng, log)
    model.model.language_model.set_attn_implementation("sdpa")
    record |= {
        "seconds": round(time.perf_counter() - start),
        "machine": f"{_device()} ({platform.machine()}, {torch.get_num_threads()} threads)",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    model.half().save_pretrained(folder)
    build.processor().save_pretrained(folder)
    folder.joinpath("training.json").write_text(json.dumps(record, indent=1) + "\n")
    log(f"wrote {folder}")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=TINY_VLM)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pool", type=int, default=20_000, help="scenes to draw questions from")
    args = parser.parse_args()
    if args.seed == BENCHMARK_SEED:
        parser.error(f"seed {args.seed} made the benchmark; take another one")
    train(args.folder, args.seed, args.pool)


if __name__ == "__main__":
    main()
