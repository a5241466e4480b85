"""Kept tokens and logits of NVIDIA's kvpress beside ours, on the same token ids and counts.

    PYTHON scripts/compare_kvpress.py dump FOLDER     # a Python that has kvpress
    python -m scripts.compare_kvpress compare FOLDER  # this project's own

kvpress needs transformers below 5.3, so each half runs where its library is; FOLDER carries the
model, the ids and what kvpress made of them. Without --model it is a small random Llama. A context
is read and evicted, then a question is read and answered greedily, all in float32. Counts are those
that kvpress kept, so a ratio that it rounds in another way decides nothing. Columns of the table:
kept tokens of the context; (layer, head) pairs whose sets are the same; kept tokens that differ, in
all of them; answer tokens that are the same; the largest difference of logits up to the first token
that is not.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM

WINDOW = 16
RATIOS = (0.5, 0.75, 0.9)
ANSWER, QUESTION = 8, 6  # tokens
GROW = {"decode": "grow"}


class Pair(NamedTuple):
    """How kvpress builds a press of a module at a ratio, and our name and parameters.

    eager: the press reads attention weights.
    """

    press: Callable[[Any, float], Any]
    method: str
    params: dict[str, Any]
    eager: bool = False


def _snapkv(presses: Any, ratio: float) -> Any:
    return presses.SnapKVPress(ratio, window_size=WINDOW, kernel_size=5)


PAIRS = {
    "SnapKV": Pair(_snapkv, "snapkv", {"window": WINDOW}),
    "TOVA": Pair(lambda p, r: p.TOVAPress(r), "tova", {"protect_last": True, **GROW}),
    "StreamingLLM": Pair(lambda p, r: p.StreamingLLMPress(r), "streaming_llm", GROW),
    "ObservedAttention": Pair(
        lambda p, r: p.ObservedAttentionPress(r),
        "h2o",
        {"average": "visible_mean", "recent": 0, **GROW},
        eager=True,
    ),
    "KeyDiff": Pair(lambda p, r: p.KeyDiffPress(r), "keydiff", {}),
    "Knorm": Pair(lambda p, r: p.KnormPress(r), "knorm", {}),
    "ExpectedAttention": Pair(lambda p, r: p.ExpectedAttentionPress(r), "expected_attention", {}),
    "LagKV": Pair(
        lambda p, r: p.LagKVPress(r, n_sink=4, lag_size=WINDOW),
        "lagkv",
        {"sinks": 4, "lag": WINDOW},
    ),
    "LagKV, cross": Pair(
        lambda p, r: p.LagKVPress(r, n_sink=4, lag_size=WINDOW, cross_scoring=True),
        "lagkv",
        {"sinks": 4, "lag": WINDOW, "cross": True},
    ),
    "ChunkKV(SnapKV)": Pair(
        lambda p, r: p.ChunkKVPress(_snapkv(p, r), chunk_length=WINDOW),
        "chunkkv",
        {"window": WINDOW, "kernel": 5, "chunk": WINDOW},
    ),
    "CriticalKV(SnapKV)": Pair(
        lambda p, r: p.CriticalKVPress(_snapkv(p, r)), "criticalkv", {"window": WINDOW}
    ),
}


def tiny_llama(seed: int) -> LlamaForCausalLM:
    """Four layers of eight query and two KV heads, with weights that tell tokens apart."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.15,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def answered(model: Any, cache: Any, question: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Greedy tokens [n] and the logits [n, V] that chose them, after a question at `first`."""
    ids, logits = question, []
    for _ in range(ANSWER):
        positions = torch.arange(first, first + ids.shape[1])[None]
        found = model(ids, past_key_values=cache, position_ids=positions, use_cache=True)
        logits.append(found.logits[0, -1])
        first, ids = first + ids.shape[1], found.logits[:, -1:].argmax(-1)
    rows = torch.stack(logits)
    return rows.argmax(-1), rows


def kept_positions(cache: Any, whole: list[Tensor]) -> Tensor:
    """Positions [layers, Hkv, n] of the keys of a cache among those of the whole prompt."""
    found = []
    for layer, keys in zip(cache.layers, whole, strict=True):
        same = (layer.keys[0][:, :, None] == keys[0][:, None]).all(-1)  # [Hkv, n, L]
        if not bool((same.sum(-1) == 1).all()):
            raise ValueError("keys of the context occur twice or not at all; use another seed.")
        found.append(same.float().argmax(-1).sort(-1).values)
    return torch.stack(found)


@torch.no_grad()
def dump(folder: Path, model_name: str | None, length: int, seed: int) -> None:
    """Run every press, and write the model's name, ids, kept positions, answers and logits."""
    presses = importlib.import_module("kvpress")
    folder.mkdir(parents=True, exist_ok=True)
    if model_name is None:
        tiny_llama(seed).save_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(model_name or folder / "model").float().eval()
    generator = torch.Generator().manual_seed(seed)
    size = (1, length + QUESTION)
    ids = torch.randint(model.config.vocab_size, size, generator=generator)
    context, question = ids[:, :length], ids[:, length:]
    tensors = {"ids": ids}
    for name, pair in PAIRS.items():
        model.set_attn_implementation("eager" if pair.eager else "sdpa")
        plain = DynamicCache()
        model(context, past_key_values=plain)  # bit for bit what the press gathers from
        whole = [layer.keys for layer in plain.layers]
        for ratio in RATIOS:
            cache = DynamicCache()
            with pair.press(presses, ratio)(model):
                model(context, past_key_values=cache)
            key = f"{name}|{ratio}"
            tensors[f"{key}|kept"] = kept_positions(cache, whole)
            tokens, logits = answered(model, cache, question, length)
            tensors[f"{key}|tokens"], tensors[f"{key}|logits"] = tokens, logits
    save_file(tensors, folder / "kvpress.safetensors")
    about = {"model": model_name, "length": length, "kvpress": version("kvpress")}
    (folder / "about.json").write_text(json.dumps(about))
    print(f"{len(PAIRS)} presses at {len(RATIOS)} ratios are in {folder}.")


@torch.no_grad()
def compare(folder: Path) -> None:
    """Print the table."""
    about = json.loads((folder / "about.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(about["model"] or folder / "model").float().eval()
    theirs = load_file(folder / "kvpress.safetensors")
    print(f"kvpress {about['kvpress']}, {about['model'] or 'small random Llama'}, float32\n")
    print("| kvpress | evictbench | kept | same sets | differing tokens | same answer | logits |")
    print("|---|---|---|---|---|---|---|")
    for name, pair in PAIRS.items():
        for ratio in RATIOS:
            key = f"{name}|{ratio}"
            parts = {part: theirs[f"{key}|{part}"] for part in ("kept", "tokens", "logits")}
            print(_row(model, name, pair, theirs["ids"], about["length"], parts))


def _row(
    model: Any, name: str, pair: Pair, ids: Tensor, length: int, theirs: dict[str, Tensor]
) -> str:
    import harness

    kept = theirs["kept"]
    noted = Noted(pair)
    budget = {"budget": kept.shape[-1], "protocol": "context", "context": length}
    wanted = {"max_new_tokens": ANSWER, "do_sample": False, "eos_token_id": None}
    with harness.evict(model, noted.policy, **budget):
        answer = model.generate(
            input_ids=ids, output_logits=True, return_dict_in_generate=True, **wanted
        )
    ours = torch.stack(noted.kept)
    same = int((ours == kept).all(-1).sum())
    missing = sum(
        len(set(one) - set(two))
        for one, two in zip(ours.flatten(0, 1).tolist(), kept.flatten(0, 1).tolist(), strict=True)
    )
    logits, tokens = torch.cat(answer.logits), answer.sequences[0, ids.shape[1] :]
    equal = int((tokens == theirs["tokens"]).cumprod(0).sum())
    until = min(equal + 1, ANSWER)
    gap = float((logits[:until] - theirs["logits"][:until]).abs().max())
    sets = kept.shape[0] * kept.shape[1]
    return (
        f"| {name} | `{pair.method}` | {kept.shape[-1]} of {length} | {same} of {sets} | {missing} "
        f"of {kept.numel()} | {equal} of {ANSWER} | {gap:.0e} |"
    )


class Noted:
    """A policy of ours, and the positions [Hkv, n] that it keeps of each layer."""

    def __init__(self, pair: Pair) -> None:
        import methods

        kind, self.kept = type(methods.build(pair.method)), list[Tensor]()
        kept = self.kept

        def select_many(policy: Any, view: Any, budgets: Any) -> Any:
            chosen = kind.select_many(policy, view, budgets)
            kept.append(chosen[0].positions[0])
            return chosen

        noting = type("Noting", (kind,), {"select_many": select_many})
        self.policy = noting(**pair.params)


def main() -> None:
    """Read the command line and run one half."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("half", choices=("dump", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", help="name or folder of a text model (dump)")
    parser.add_argument("--length", type=int, default=260, help="tokens of the context (dump)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and ids (dump)")
    given = parser.parse_args()
    if given.half == "dump":
        dump(given.folder, given.model, given.length, given.seed)
    else:
        compare(given.folder)


if __name__ == "__main__":
    main()
