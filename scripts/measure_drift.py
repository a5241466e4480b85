"""How far attention drifts, against what ReST-KV's window needs: `python -m scripts.measure_drift`.

ReST-KV (arXiv 2605.08840) widens and moves its window by one step for each 2,000 tokens that the
mean position of the most attended entries moves within the last 32 queries. This asks the prompts
of a run, such as task=mmbench_mini_long, and prints a line of JSON for each length of prompt: the
median, the 99th percentile and the largest drift over layers and KV heads, in tokens, and the share
of heads whose window would act at each scale.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness.engine import Branch, Engine, Generation
from harness.models.prompts import Prompt
from harness.run import collect
from harness.scoring.rows import ready
from harness.settings.grid import DENSE
from methods.restkv import RestKV
from methods.smoothing import drift
from methods.view import LayerView
from scripts.bench_workers import rows_of, settings

SCALES = (2000, 1000, 500, 200, 50)
_noted: list[Tensor] = []


@dataclass(frozen=True, kw_only=True)
class Noting(RestKV):
    """ReST-KV that notes each layer's drifts, float64 [KV heads]; its scale lets it always look."""

    relative_scale: float | None = 1e-4

    def windows(self, view: LayerView, past: Sequence[int]) -> tuple[Tensor, Tensor]:
        """As ReST-KV's."""
        parts = view.observed_parts(self.window, self.window_anchor)
        moved = drift(parts, past).unflatten(2, (view.kv_heads, -1)).mean(-1)
        _noted.append(moved[0, 0].abs())
        return super().windows(view, past)


def described(length: int, moved: Tensor) -> dict[str, object]:
    """A line about prompts of a length: `moved` float64 [heads of all of them], in tokens."""
    acts = {str(scale): round((moved >= scale).double().mean().item(), 4) for scale in SCALES}
    return {
        "tokens": length,
        "heads": len(moved),
        "median": round(moved.median().item(), 1),
        "p99": round(moved.quantile(0.99).item(), 1),
        "largest": round(moved.max().item(), 1),
        "acts_at_scale": acts,
    }


def drifts(engine: Engine, prompt: Prompt, ratio: float) -> Tensor:
    """Drift of each layer and KV head of a prompt in tokens, float64 [heads]."""
    _noted.clear()
    engine.run(prompt, [Branch(Noting(), ratio)], Generation(max_new_tokens=1))
    return torch.cat(_noted)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", help="Hydra overrides of the run")
    parser.add_argument("--prompts", type=int, default=12, help="spread evenly over the rows")
    parser.add_argument("--ratio", type=float, default=0.9, help="share that is evicted")
    args = parser.parse_args(argv)
    config = settings(["limit=null", "protocol=replay", *args.settings])
    found: dict[int, list[Tensor]] = {}
    with tempfile.TemporaryDirectory(prefix="evictbench-") as folder:
        rows, context = rows_of(config, Path(folder))
        bridge = collect.load_engine(config, Path(folder) / collect.LOG, context)
        engine = bridge.engines["replay", DENSE]
        for row in rows[:: max(1, len(rows) // args.prompts)][: args.prompts]:
            prompt = ready(bridge, row).prompt
            length = round(len(prompt.modality), -2)
            found.setdefault(length, []).append(drifts(engine, prompt, args.ratio))
    for length, moved in sorted(found.items()):
        print(json.dumps({"model": config.model.name, **described(length, torch.cat(moved))}))


if __name__ == "__main__":
    main()
