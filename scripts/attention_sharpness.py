"""How sharp attention is where methods look: `python -m scripts.attention_sharpness task=...`.

For the last queries of each prompt of a run, over all layers and query heads: the entropy of the
attention in nats, the entropy as a share of that of even attention, and the mass on the ten entries
that get most. A stand-in whose attention is much sharper than a real model's makes methods look
better than they are. Prints one line of JSON; several tasks are averaged over their prompts.
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.engine.inputs import position_ids
from harness.models.prompts import Prompt
from harness.run import collect
from harness.scoring.rows import ready
from scripts.bench_workers import rows_of, settings

WINDOW, TOP = 32, 10


def sharpness(weights: Tensor, top: int = TOP) -> tuple[float, float, float]:
    """Entropy in nats, its share of the most that is possible, and the mass of the `top` entries.

    weights: attention [heads, queries, keys] of the last queries of a prompt, rows sum to 1. Means
    over heads and queries. A query that sees one entry has no share and counts as 0.
    """
    found = weights.double()
    entropy = -torch.special.xlogy(found, found).sum(-1)
    queries, keys = found.shape[1:]
    seen = torch.arange(keys - queries + 1, keys + 1, dtype=torch.float64)
    share = entropy / seen.log().clamp_min(math.ulp(1.0))
    mass = found.topk(min(top, keys), dim=-1).values.sum(-1)
    return entropy.mean().item(), share.mean().item(), mass.mean().item()


@torch.no_grad()
def of_prompt(model: nn.Module, prompt: Prompt, window: int = WINDOW) -> tuple[float, float, float]:
    """`sharpness` of the last `window` queries, the mean over the layers."""
    positions = position_ids(model, prompt.inputs, prompt.modality)
    given = {**prompt.inputs, "position_ids": positions, "use_cache": False}
    layers = model(**given, output_attentions=True).attentions
    found = [sharpness(layer[0, :, -window:]) for layer in layers if layer is not None]
    entropy, share, mass = (statistics.fmean(column) for column in zip(*found, strict=True))
    return entropy, share, mass


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", help="Hydra overrides of the run")
    parser.add_argument("--prompts", type=int, default=24, help="spread evenly over the rows")
    args = parser.parse_args(argv)
    config = settings(["limit=null", "protocol=replay", *args.settings])
    with tempfile.TemporaryDirectory(prefix="evictbench-") as folder:
        rows, context = rows_of(config, Path(folder))
        bridge = collect.load_engine(config, Path(folder) / collect.LOG, context)
        step = max(1, len(rows) // args.prompts)
        prompts = [ready(bridge, row).prompt for row in rows[::step][: args.prompts]]
        model = bridge.loaded.model.eval()
        model.get_decoder().set_attn_implementation("eager")
        found = [of_prompt(model, prompt) for prompt in prompts]
    entropy, share, mass = (statistics.fmean(column) for column in zip(*found, strict=True))
    result = {
        "model": config.model.name,
        "settings": args.settings,
        "prompts": len(prompts),
        "tokens": round(statistics.fmean(len(prompt.modality) for prompt in prompts)),
        "entropy": round(entropy, 3),
        "share_of_even": round(share, 3),
        f"top_{TOP}": round(mass, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
