"""Count and time the attention of a prompt, dense and sparse, in the layers of one model.

`make bench BENCH=prefill`. The first layers of a model read a prompt of each length once, dense, in
plain transformers; what their attention is given is kept. Then each pattern chooses its blocks and
attends to them, and dense attention does, in turns: medians of the CPU's time (of the device's
where there is one), search and attention apart, and as a ratio to dense. Counted operations are
those of the two products of attention over the blocks that are computed, 4 x block^2 x head_dim a
pair of blocks and head, beside those of all causal blocks. With --layers of a real model and --text
its patterns are real; without --pretrained the model has random weights and attends to everything
alike, which says nothing of patterns that look at attention.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM

from harness import sparse
from harness.engine.attention import listening
from harness.engine.layout import prepare
from harness.models import loading
from harness.models.devices import device_of

SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
         "num_key_value_heads": 3, "vocab_size": 49152}  # fmt: skip
Shown = tuple[Tensor, Tensor, Tensor, float]  # query, key, value, scaling of a layer
Row = dict[str, Any]


class Taken:
    """Listens to a pass and keeps what the attention of each layer is given."""

    def __init__(self) -> None:
        self.layers: list[Shown] = []

    def attend(
        self, module: Any, query: Any, key: Any, value: Any, mask: Any, scale: float
    ) -> None:
        """Keep it, and leave attention to SDPA."""
        self.layers.append((query, key, value, scale))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pretrained", help="folder, hub id or package:<name> of a text model")
    add("--text", type=Path, help="file whose text fills the prompt; random tokens without it")
    add("--lengths", nargs="+", type=int, default=[8192])
    add("--layers", type=int, default=4, help="layers, from the first on")
    add("--patterns", nargs="+", choices=sparse.names()[1:], default=list(sparse.names()[1:]))
    add("--rounds", type=int, default=3, help="of each pattern, alternating")
    args = parser.parse_args(argv)
    if min(args.lengths) < 256 or min(args.layers, args.rounds) < 1:
        parser.error("--lengths take 256 tokens or more, --layers and --rounds counts from 1.")
    return args


def shown(args: argparse.Namespace, length: int) -> list[Shown]:
    """What the attention of the first layers is given."""
    device = device_of("auto")
    if args.pretrained:
        loaded = loading.load(args.pretrained, device=device.type, dtype="auto")
        model, tokenizer = loaded.model, loaded.tokenizer
        prepare(model)
        del model.model.layers[args.layers :]
    else:
        torch.manual_seed(0)
        config = LlamaConfig(
            **SHAPE, num_hidden_layers=args.layers, max_position_embeddings=1 << 18
        )
        model, tokenizer = LlamaForCausalLM(config).to(device).eval(), None
        prepare(model)
    if args.text and tokenizer is not None:
        ids = tokenizer(args.text.read_text(encoding="utf-8"), return_tensors="pt").input_ids
        ids = ids.repeat(1, -(-length // ids.shape[1]))[:, :length]
    else:
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(3, model.config.vocab_size, (1, length), generator=draw)
    taken = Taken()
    with torch.inference_mode(), listening(taken):
        model(input_ids=ids.to(device), use_cache=False, logits_to_keep=1)
    return taken.layers


def seconds(work: Callable[[], Any], cuda: bool) -> tuple[float, Any]:
    """The time of some work on the device, and what it gives."""
    if not cuda:
        began = time.process_time()
        found = work()
        return time.process_time() - began, found
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    found = work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000, found


def measure(layers: Sequence[Shown], patterns: Sequence[str], rounds: int) -> list[Row]:
    """A row a pattern: medians over rounds of sums over layers."""
    cuda = layers[0][0].is_cuda
    built = {name: sparse.build(name) for name in patterns}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ("dense", *patterns)}
    shares: dict[str, list[float]] = {}
    for run in range(rounds + 1):  # the first warms up
        for name in times:
            search = attention = 0.0
            found = []
            for query, key, value, scaling in layers:
                if name == "dense":
                    spent, _ = seconds(lambda: dense(query, key, value, scaling), cuda)  # noqa: B023
                    attention += spent
                    continue
                pattern = built[name]
                spent, mask = seconds(lambda: pattern.blocks(query[0], key[0], scaling), cuda)  # noqa: B023
                search += spent
                spent, _ = seconds(lambda: sparse.attend(query, key, value, mask, scaling), cuda)  # noqa: B023
                attention += spent
                found.append(float(sparse.share(mask)))
            shares[name] = found
            if run:
                times[name].append((search, attention))
    whole = statistics.median(one for _, one in times["dense"])
    rows = []
    for name in patterns:
        search, attention = (statistics.median(part) for part in zip(*times[name], strict=True))
        rows.append(
            {
                "pattern": name,
                "computed": [round(one, 3) for one in shares[name]],
                "search_to_dense": round(search / whole, 3),
                "attention_to_dense": round(attention / whole, 3),
                "both_to_dense": round((search + attention) / whole, 3),
                "dense_s": round(whole, 3),
            }
        )
    return rows


def dense(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Dense causal attention, the strongest baseline that torch has here."""
    return scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=True
    )


def counted(layers: Sequence[Shown], shares: Sequence[float]) -> int:
    """Operations of attention over these shares of the causal blocks of each layer."""
    total = 0.0
    for (query, *_), share in zip(layers, shares, strict=True):
        _, heads, length, dim = query.shape
        n = -(-length // sparse.BLOCK)
        total += share * heads * (n * (n + 1) // 2) * 4 * sparse.BLOCK**2 * dim
    return round(total)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a row a length and pattern."""
    args = parse(argv)
    for length in args.lengths:
        layers = shown(args, length)
        with torch.inference_mode():
            rows = measure(layers, args.patterns, args.rounds)
        whole = counted(layers, [1.0] * len(layers))
        for row in rows:
            flops = counted(layers, row["computed"])
            facts = {"model": args.pretrained or "random weights", "length": length}
            print(json.dumps({**facts, **row, "flops": flops, "dense_flops": whole}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
