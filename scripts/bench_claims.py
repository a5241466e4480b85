"""Measure what the paper's speed and memory claims are about, end to end, on one model.

`make bench BENCH=claims`. For each prompt length, with the full cache, and with SnapKV and ReST-KV
at 1,024 kept entries, each after a dense and after a sparse prefill (--prefills): time to the first
token, time of a further token, peak memory of the device (medians of alternating runs); and for
ReST-KV and H2O the counted operations of scoring one layer. Rows go to
results/claims/<device>.jsonl, replacing those of the same model, length and method; the claims
ledger of every report reads them. Eviction is that of harness.evict: each layer is compacted as
soon as it has read the prompt, as published. The full cache, from which nothing is evicted, goes
through the same attention: transformers' own cache would copy all of it at every token. No step is
replayed as a CUDA graph, of any method.

Models of published size have random weights (--model mistral_7b, in bfloat16 on a GPU), which time
and memory do not depend on but for a sparse prefill: what that computes follows from real attention
to real text, so give it --pretrained, a folder or hub id, and --text, a file. Without a GPU
operations are counted on a small model's shape, and nothing is timed unless --times asks for it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
)

import harness
import methods
from harness import sparse
from harness.models.devices import device_of
from harness.records.atomic import replacing
from methods import LayerView, kernels

FOLDER = Path("results/claims")
METHODS = ("full", "snapkv", "restkv")
COUNTED = ("restkv", "h2o")
SHAPES: dict[str, dict[str, int]] = {
    "mistral_7b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                   "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768},
    "small": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
              "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 512},
}  # fmt: skip
Row = dict[str, Any]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=list(SHAPES), default="mistral_7b" if gpu else "small")
    add("--pretrained", help="folder or hub id of a text model, in place of random weights")
    add("--lengths", nargs="+", type=int, default=[8192, 32768, 131072] if gpu else [1024, 4096])
    add("--budget", type=int, default=1024, help="kept entries a layer and KV head")
    add("--prefills", nargs="+", choices=sparse.names(), default=["dense", "flexprefill"])
    add("--text", type=Path, help="file whose text fills prompts; random tokens without it")
    add("--tokens", type=int, default=16, help="generated tokens after the first")
    add("--runs", type=int, default=3, help="of each method, alternating")
    add("--times", action="store_true", help="time a model on the CPU as well")
    add("--out", type=Path, help="file of the rows, results/claims/<device>.jsonl by default")
    args = parser.parse_args(argv)
    if min(args.lengths) < 64:
        parser.error("--lengths: give prompts of 64 tokens or more.")
    if min(args.tokens, args.runs, args.budget) < 1:
        parser.error("--tokens, --runs and --budget are counts from 1.")
    if args.text and not args.pretrained:
        parser.error("--text is for the tokenizer of --pretrained.")
    return args


def load(args: argparse.Namespace, device: torch.device) -> tuple[str, PreTrainedModel]:
    """The model with its name."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if args.pretrained:
        model = AutoModelForCausalLM.from_pretrained(
            args.pretrained, dtype=dtype, use_safetensors=True, attn_implementation="sdpa"
        )
        return args.pretrained, model.to(device).eval()
    config = MistralConfig(
        **SHAPES[args.model], sliding_window=None, rope_theta=1e6, max_position_embeddings=1 << 18,
        eos_token_id=None, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return f"{args.model} with random weights", model.eval()


def named(method: str, prefill: str) -> str:
    """What a row calls a method after a prefill, such as restkv+flexprefill."""
    return method if prefill == sparse.DENSE else f"{method}+{prefill}"


def answer(model: PreTrainedModel, ids: torch.Tensor, name: str, budget: int, new: int) -> None:
    """Generate exactly `new` tokens greedily."""
    method, _, prefill = name.partition("+")
    how = {"budget": budget, "protocol": "paper", "prefill": prefill or sparse.DENSE}
    with harness.evict(model, method, **how):
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
            max_new_tokens=new, min_new_tokens=new,
        )  # fmt: skip


def timed(model: PreTrainedModel, ids: torch.Tensor, name: str, budget: int, new: int) -> Row:
    """Milliseconds of one answer and the device's peak memory meanwhile."""
    cuda = ids.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    answer(model, ids, name, budget, new)
    if cuda:
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() if cuda else None
    return {"ms": 1000 * (time.perf_counter() - began), "peak": peak}


def measure(model: PreTrainedModel, length: int, args: argparse.Namespace) -> dict[str, Row]:
    """Figures of every method at one length; runs of the methods alternate."""
    device = next(model.parameters()).device
    ids = prompt(model, length, args).to(device)
    names = [named(method, prefill) for prefill in args.prefills for method in METHODS]
    firsts: dict[str, list[Row]] = {name: [] for name in names}
    wholes: dict[str, list[Row]] = {name: [] for name in names}
    for run in range(args.runs + 1):
        for name in names:
            first = timed(model, ids, name, args.budget, 1)
            whole = timed(model, ids, name, args.budget, 1 + args.tokens)
            if run:  # the first warms up
                firsts[name].append(first)
                wholes[name].append(whole)
    return {name: _figures(firsts[name], wholes[name], args.tokens) for name in names}


def prompt(model: PreTrainedModel, length: int, args: argparse.Namespace) -> torch.Tensor:
    """Token ids [1, length]: of the text, again and again, or random ones."""
    if args.text:
        tokenizer = AutoTokenizer.from_pretrained(args.pretrained)
        ids = tokenizer(args.text.read_text(encoding="utf-8"), return_tensors="pt").input_ids
        return ids.repeat(1, -(-length // ids.shape[1]))[:, :length]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, model.config.vocab_size, (1, length), generator=generator)


def _figures(firsts: list[Row], wholes: list[Row], tokens: int) -> Row:
    pairs = zip(firsts, wholes, strict=True)
    peaks = [row["peak"] for row in wholes]
    return {
        "ttft_ms": statistics.median(row["ms"] for row in firsts),
        "decode_ms": statistics.median((w["ms"] - f["ms"]) / tokens for f, w in pairs),
        "peak_bytes": None if None in peaks else statistics.median(peaks),
    }


def operations(method: str, length: int, config: PretrainedConfig, budget: int) -> int:
    """Floating-point operations of products when a method scores one layer, counted in torch."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    policy = methods.build(method)
    queries = length if policy.window is None else policy.window
    draw = torch.Generator().manual_seed(0)
    view = LayerView(
        keys=torch.randn(1, kv_heads, length, dim, generator=draw),
        values=torch.randn(1, kv_heads, length, dim, generator=draw),
        queries=torch.randn(1, heads, queries, dim, generator=draw),
        scaling=dim**-0.5,
        output_weight=torch.randn(config.hidden_size, heads * dim, generator=draw),
    )
    with kernels.using("torch"), FlopCounterMode(display=False) as counter:
        policy.select_many(view, [min(budget, length // 2)])
    return int(counter.get_total_flops())


def write(rows: Sequence[Row], path: Path) -> None:
    """Put rows into the file in place of those of the same model, length and method."""
    key = ("device", "model", "length", "budget", "method")
    held: dict[tuple[object, ...], Row] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            held[tuple(row[name] for name in key)] = row
    held |= {tuple(row[name] for name in key): row for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in held.values()), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    args = parse(argv)
    device = device_of("auto")
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else f"cpu {platform.machine()}"
    path = args.out or FOLDER / f"{'-'.join(name.lower().split())}.jsonl"
    called, model = load(args, device)
    facts = {"device": name, "torch": torch.__version__, "cores": os.cpu_count()}
    for length in args.lengths:
        found: dict[str, Row] = {}
        if cuda or args.times:
            with torch.inference_mode():
                found = measure(model, length, args)
        for method in COUNTED:
            # Scoring is counted at up to 4,096 tokens: H2O's twin looks at every pair of tokens.
            if length <= 4096 or method == "restkv":
                flops = operations(method, length, model.config, args.budget)
                found.setdefault(method, {})["score_flops"] = flops
        rows = [
            {**facts, "model": called, "length": length, "method": method, "budget": args.budget}
            | {key: _rounded(value) for key, value in figures.items()}
            for method, figures in found.items()
        ]
        write(rows, path)
        for row in rows:
            print(json.dumps(row), flush=True)
    if not cuda and not args.times:
        print("Nothing was timed: there is no CUDA device here.")
    print(f"rows are in {path}")
    return 0


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
