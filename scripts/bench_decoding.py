"""What decoding under a budget costs, and what budget rules store, on the embedded model.

`make bench BENCH=decoding`. Prints (1) the entries a KV head holds after each of 64 generated
tokens, for every method that holds its budget; (2) measured bytes of uniform, pyramid and adaptive
caches of one budget; (3) the time of a decoding step, hold against grow, medians of alternating
runs. No stop token ends an answer here.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import methods
from harness.embedded import TINY_VLM
from harness.engine import Branch, Engine, Generation, Protocol
from harness.models import devices, loading
from harness.models.prompts import Prompt
from scripts.bench_branching import long_prompt, prompts

HOLDING = ("h2o", "tova", "streaming_llm", "lacache", "random")
RULED = ("snapkv", "restkv", "h2o")
RATIOS = (0.5, 0.7, 0.8, 0.9, 0.95)


def holders(decode: str) -> dict[str, methods.Policy]:
    """Every method that can hold its budget, in one mode."""
    return {name: methods.build(name, decode=decode) for name in HOLDING}


class Watch:
    """Notes what each cell stores after every forward pass of a model."""

    def __init__(self, engine: Engine) -> None:
        """Watch the engine's model until `close`."""
        self.entries: list[list[float]] = []  # a pass: mean entries a layer and KV head, by cell
        self.tiles: list[tuple[int, int]] = []  # a pass: bytes of all tiles, bytes of the entries
        self._layers = [layer.index for layer in engine.layout.layers]
        self._handle = engine.model.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, _model: Any, _args: Any, kwargs: dict[str, Any], _output: Any) -> None:
        cache = kwargs["past_key_values"]
        layers = [cache.layers[index] for index in self._layers]
        if not hasattr(layers[0], "tiles"):
            return  # the prompt
        cache.evict()  # layers that wait for the end of the step
        counts = torch.stack([x.tiles.counts.view(-1, x.heads).float().mean(1) for x in layers])
        self.entries.append(counts.mean(0).tolist())
        stored = sum(x.tiles.keys.nbytes + x.tiles.values.nbytes for x in layers)
        each = layers[0].tiles.keys.shape[-1] + layers[0].tiles.values.shape[-1]
        used = sum(int(x.tiles.counts.sum()) for x in layers) * each
        self.tiles.append((stored, used * layers[0].tiles.keys.element_size()))

    def close(self) -> None:
        """Stop watching."""
        self._handle.remove()


def sizes(engine: Engine, item: Prompt, budget: int, tokens: int) -> dict[str, list[float]]:
    """Entries a layer and KV head after each token, of each holding method and one that grows."""
    found = {}
    for name, policy in {**holders("hold"), "snapkv": methods.build("snapkv")}.items():
        watch = Watch(engine)
        # The first token comes from the prompt, and nothing is evicted after the last pass.
        engine.run(item, [Branch(policy, budget=budget)], Generation(tokens + 2))
        watch.close()
        found[name] = [cells[0] for cells in watch.entries[:-1]]
        steps = ", ".join(f"{size:g}" for size in found[name])
        print(f"{name:14} budget {budget}, {len(found[name])} steps: {steps}")
    return found


def stored(engine: Engine, item: Prompt, budget: int) -> list[dict[str, object]]:
    """Bytes of the prompt entries under each budget rule, and of the tiles that hold them."""
    rows = []
    for name in RULED:
        for rule in ("uniform", "pyramid", "adaptive"):
            policy = methods.build(name, budget=rule)
            watch = Watch(engine)
            result = engine.run(item, [Branch(policy, budget=budget)], Generation(2))[0]
            watch.close()
            tiles, entries = watch.tiles[0]
            rows.append(
                {
                    "method": name,
                    "rule": rule,
                    "kept_tokens": result.kept_tokens,
                    "cache_bytes": result.cache_bytes,
                    "tile_bytes": tiles,
                }
            )
            print(
                f"{name:8} {rule:9} {result.kept_tokens:6.2f} entries a head, "
                f"{result.cache_bytes:,} bytes of {result.full_cache_bytes:,}; tiles {tiles:,} "
                f"bytes for {entries:,} with the new token"
            )
    return rows


def step_times(
    engine: Engine, item: Prompt, tokens: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Milliseconds a decoding step of five cells, hold and grow alternating in one run."""
    modes = {mode: holders(mode) for mode in ("grow", "hold")}
    length = item.inputs["input_ids"].shape[1]
    found: dict[str, dict[str, float]] = {}
    for label, names in [*((name, [name]) for name in HOLDING), ("all", list(HOLDING))]:
        spent: dict[str, list[float]] = {mode: [] for mode in modes}
        for repeat in range(repeats + 1):
            for mode, policies in modes.items():
                cells = [Branch(policies[name], ratio) for name in names for ratio in RATIOS]
                results = engine.run(item, cells, Generation(tokens))
                if repeat:  # the first of each warms up
                    total = sum(result.timings["decode"] for result in results)
                    spent[mode].append(1e3 * total / tokens)
        pairs = zip(spent["hold"], spent["grow"], strict=True)
        ratio = statistics.median(hold / grow for hold, grow in pairs)
        medians = {mode: statistics.median(times) for mode, times in spent.items()}
        found[label] = {**medians, "ratio": ratio}
        print(
            f"L = {length:5d} {label:14} {len(names) * len(RATIOS):3d} cells: hold "
            f"{medians['hold']:6.2f} ms a step, grow {medians['grow']:6.2f} ms, ratio {ratio:.2f}"
        )
    return found


def free_running(engine: Engine) -> Engine:
    """The same engine, whose answers no token ends."""
    engine.decoder.stop_ids = frozenset()
    return engine


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print, and write the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(TINY_VLM), help="folder or hub id")
    parser.add_argument("--budget", type=int, default=48, help="entries kept of the prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens generated")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    loaded = loading.load(args.model)
    devices.use_threads(loaded, "auto")
    engine = free_running(Engine(loaded, Protocol("paper")))
    device = torch.cuda.get_device_name() if loaded.device.type == "cuda" else "CPU"
    print(f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads, {loaded.dtype}")
    item = prompts(loaded, 1)[0]
    figures = {
        "device": device,
        "sizes": sizes(engine, item, args.budget, args.tokens),
        "stored": stored(engine, item, args.budget),
        "steps": [
            step_times(engine, each, args.tokens, args.repeats)
            for each in (item, long_prompt(loaded, 1024))
        ],
    }
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
