"""Make Q-Filters for a model: `python -m scripts.make_filters --folder filters`.

The queries of prompts, rotated as attention sees them, give each KV head a filter
(`methods.filters_of`, arXiv 2503.02812). Prompts are those of a run's settings, such as
model=smollm2_135m task=longbench; without any, new drawings for the embedded model, from another
seed than the benchmark's. Writes filters.safetensors for method=qfilters, and filters.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.engine import Branch, Engine, Generation, Protocol
from harness.models.loaded import LoadedModel
from harness.models.prompts import Prompt
from methods import LayerView, Policy, filters_of
from methods.qfilters import TENSOR
from scripts.build_mmbench_mini import SEED as BENCHMARK_SEED
from scripts.train_gates import prompts_of

FILE = "filters.safetensors"


@dataclass(frozen=True, kw_only=True)
class Recorder(Policy):
    """Takes some queries of each layer, at random, on its way.

    rows: of each prompt. held: by layer, parts [H, n, d], and how many KV heads there are.
    """

    name: ClassVar[str] = "recorder"
    window: None = field(default=None, init=False)
    rows: int
    generator: torch.Generator = field(compare=False)
    held: dict[int, list[Tensor]] = field(default_factory=dict, compare=False)
    heads: dict[int, int] = field(default_factory=dict, compare=False)

    def measure(self, view: LayerView) -> Tensor:
        """Scores of 0: what is kept does not matter."""
        order = torch.randperm(view.length, generator=self.generator)[: self.rows]
        own = view.queries[0].index_select(1, order.to(view.queries.device))
        self.held.setdefault(view.layer, []).append(own.float().cpu())
        self.heads[view.layer] = view.kv_heads
        return view.keys.new_zeros(view.keys.shape[:3], dtype=torch.float32)


def make(loaded: LoadedModel, prompts: Sequence[Prompt], samples: int, seed: int) -> Tensor:
    """Filters [layers, Hkv, d] from about so many queries of each query head, over all prompts."""
    generator = torch.Generator().manual_seed(seed)
    recorder = Recorder(rows=-(-samples // len(prompts)), generator=generator)
    engine = Engine(loaded, Protocol("paper"), share_prefixes=False)
    for prompt in prompts:
        engine.prefilled(prompt, [Branch(recorder, budget=1)], Generation(1))
    made = [
        filters_of(torch.cat(parts, 1), recorder.heads[layer])
        for layer, parts in sorted(recorder.held.items())
    ]
    return torch.stack(made)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, make and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", help="Hydra overrides of the prompts' run")
    parser.add_argument("--folder", type=Path, required=True, help="where the filters go")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=64, help="at most so many, at random")
    parser.add_argument("--samples", type=int, default=3000, help="queries of each query head")
    args = parser.parse_args(argv)
    if args.seed == BENCHMARK_SEED:
        parser.error(f"seed {args.seed} made the benchmark; take another one")
    with tempfile.TemporaryDirectory(prefix="evictbench-") as scratch:
        loaded, prompts, context = prompts_of(args.settings, args.seed, Path(scratch))
        Random(args.seed).shuffle(prompts)
        chosen = prompts[: args.prompts]
        print(f"{len(chosen)} prompts of {loaded.name}", flush=True)
        filters = make(loaded, chosen, args.samples, args.seed)
    args.folder.mkdir(parents=True, exist_ok=True)
    save_file({TENSOR: filters.contiguous()}, args.folder / FILE)
    about = {
        "command": f"python -m scripts.make_filters --seed {args.seed} --prompts {args.prompts} "
        f"--samples {args.samples} {' '.join(args.settings)}".strip(),
        "model": loaded.name,
        "weights": context["weights"],
        "torch": torch.__version__,
    }
    args.folder.joinpath("filters.json").write_text(json.dumps(about, indent=1) + "\n")
    print(f"wrote {args.folder}", flush=True)


if __name__ == "__main__":
    main()
