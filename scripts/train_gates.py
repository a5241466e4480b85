"""Train retention gates for a model that stays as it is: `python -m scripts.train_gates`.

Each entry i of the cache fades: the attention logits of token t are multiplied by
beta_i ** (t - i), where a gate makes beta_i of the hidden state that enters the layer (TRIM-KV,
arXiv 2512.03324; DBTrimKV, arXiv 2605.09649). The gates learn to change the model's own predictions
little (forward KL; --next adds the cross-entropy of the next token) while what is left of all
entries fits into a share of the cache (a hinge).
Prompts are those of a run's settings, such as model=smollm2_135m task=longbench; without any, new
drawings for the embedded model, from another seed than the benchmark's. Writes gates.safetensors
for method=trimkv, and training.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from harness.engine.inputs import position_ids
from harness.engine.layout import Layout, prepare
from harness.models.loaded import LoadedModel
from harness.models.prompts import Prompt
from harness.run import collect
from harness.scoring.rows import ready
from scripts.bench_workers import rows_of, settings
from scripts.build_mmbench_mini import SEED as BENCHMARK_SEED
from scripts.build_mmbench_mini import build
from scripts.train_tiny_vlm import machine

NAME = "evictbench_gated"
FILE = "gates.safetensors"


@dataclass(frozen=True)
class Plan:
    """How long, and how much may be left. keep: share of a prompt's entries, of all layers."""

    steps: int = 400
    batch: int = 8
    keep: float = 0.1
    width: int = 64
    rate: float = 2e-3
    start: float = 6.0  # bias: the log odds of beta before training
    hinge: float = 1.0
    next: float = 0.0
    held_out: int = 32


PLAN = Plan()


class Gate(nn.Module):
    """log beta of each KV head, float32 [B, Hkv, L], from hidden states [B, L, C]."""

    def __init__(self, hidden: int, width: int, heads: int, start: float) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(hidden, width), nn.Linear(width, heads, bias=False)
        for linear in (self.linear1, self.linear2):
            nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(self.linear1.bias)
        self.bias = nn.Parameter(torch.full((heads,), start))

    def forward(self, hidden: Tensor) -> Tensor:
        """As above."""
        found = self.linear2(F.silu(self.linear1(hidden.float()))) + self.bias
        return F.logsigmoid(found).transpose(1, 2)


@dataclass
class Fading:
    """What gates do to a pass: log beta of the layer that runs, and what is left so far.

    left: [B, L], of all entries that each token may see, over all layers and KV heads.
    """

    gates: nn.ModuleList
    ranks: dict[int, int]  # by id of the attention module
    beta: Tensor | None = None
    left: list[Tensor] = field(default_factory=list)

    def note(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Before a layer: what its gate says of the hidden states."""
        hidden = named["hidden_states"] if "hidden_states" in named else given[0]
        self.beta = self.gates[self.ranks[id(module)]](hidden)

    def factors(self, length: int) -> Tensor:
        """beta_i ** (t - i) where i <= t, else 0: [B, Hkv, t, i]."""
        assert self.beta is not None
        age = torch.arange(length, device=self.beta.device)
        age = age[:, None] - age[None]
        found = (self.beta[:, :, None] * age.clamp_min(0)).exp() * (age >= 0)
        self.left.append(found.sum((1, 3)))
        return found


_fading: list[Fading] = []


def gated(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention whose logits fade; signature of transformers' attention functions."""
    length, groups = query.shape[2], query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    logits = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    logits = logits.float() * _fading[-1].factors(length).repeat_interleave(groups, 1)
    hidden = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    weights = logits.masked_fill(hidden, -torch.inf).softmax(-1).to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, gated)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def fading(model: nn.Module, layout: Layout, gates: nn.ModuleList) -> Iterator[Fading]:
    """Let the caches of these layers fade until the block ends."""
    found = Fading(gates, {id(layer.module): layer.rank for layer in layout.layers})
    text = model.get_decoder()
    usual = text.config._attn_implementation
    hooks = [
        layer.module.register_forward_pre_hook(found.note, with_kwargs=True)
        for layer in layout.layers
    ]
    text.set_attn_implementation(NAME)
    _fading.append(found)
    try:
        yield found
    finally:
        _fading.pop()
        text.set_attn_implementation(usual)
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Losses:
    """Of one prompt: KL in nats a token, cross-entropy of the next token, and the hinge."""

    kl: Tensor
    next: Tensor
    hinge: Tensor

    def total(self, plan: Plan) -> Tensor:
        """What training lowers."""
        return self.kl + plan.next * self.next + plan.hinge * self.hinge


def losses(
    model: nn.Module, layout: Layout, gates: nn.ModuleList, prompt: Prompt, keep: float
) -> Losses:
    """Of the tokens behind the prompt's context, as the answer depends on those."""
    positions = position_ids(model, prompt.inputs, prompt.modality)
    given = {**prompt.inputs, "position_ids": positions, "use_cache": False}
    first = min(prompt.context or 0, prompt.modality.shape[0] - 2)
    with torch.no_grad():
        wanted = model(**given).logits[0, first:].float().log_softmax(-1)
    with fading(model, layout, gates) as faded:
        found = model(**given).logits[0, first:].float().log_softmax(-1)
    kl = (wanted.exp() * (wanted - found)).sum(-1).mean()
    ids = prompt.inputs["input_ids"][0, first + 1 :]
    ahead = F.nll_loss(found[:-1], ids)
    left = torch.stack(faded.left).sum(0)[0]
    every = sum(gate.bias.shape[0] for gate in gates)
    seen = torch.arange(1, len(left) + 1, device=left.device)
    room = max(1.0, keep * len(left)) * every
    hinge = ((left - room).clamp_min(0) / (seen * every - room).clamp_min(1)).mean()
    return Losses(kl, ahead, hinge)


def train(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    plan: Plan,
    seed: int,
    log: Callable[[str], None],
) -> tuple[nn.ModuleList, dict[str, Any]]:
    """Gates for the model's compressible layers, and what was measured on held-out prompts."""
    torch.manual_seed(seed)
    rng = Random(seed)
    model, layout = loaded.model.eval().requires_grad_(False), prepare(loaded.model)
    text = model.config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    made = (Gate(text.hidden_size, plan.width, heads, plan.start) for _ in layout.layers)
    gates = nn.ModuleList(made).to(loaded.device)
    held, rest = prompts[: plan.held_out], prompts[plan.held_out :]
    optimizer = torch.optim.AdamW(gates.parameters(), lr=plan.rate, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, plan.rate, plan.steps, pct_start=0.03, anneal_strategy="cos"
    )
    before, began = measured(model, layout, gates, held, plan), time.perf_counter()
    log(f"before {before}")
    for step in range(1, plan.steps + 1):
        for prompt in rng.choices(rest, k=plan.batch):
            found = losses(model, layout, gates, prompt, plan.keep)
            (found.total(plan) / plan.batch).backward()
        nn.utils.clip_grad_norm_(gates.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0 or step == plan.steps:
            seconds = time.perf_counter() - began
            log(f"step {step} {seconds:.0f} s {measured(model, layout, gates, held, plan)}")
    after = measured(model, layout, gates, held, plan)
    return gates, {"before": before, "after": after, "seconds": round(time.perf_counter() - began)}


@torch.no_grad()
def measured(
    model: nn.Module, layout: Layout, gates: nn.ModuleList, prompts: Sequence[Prompt], plan: Plan
) -> dict[str, float]:
    """Mean losses over prompts."""
    found = [losses(model, layout, gates, prompt, plan.keep) for prompt in prompts]
    names = ("kl", "next", "hinge")
    return {
        name: round(sum(getattr(f, name).item() for f in found) / len(found), 4) for name in names
    }


def prompts_of(
    typed: Sequence[str], seed: int, folder: Path
) -> tuple[LoadedModel, list[Prompt], dict]:
    """The model of a run's settings and the prompts of its tasks."""
    if not typed:
        data = folder / "drawn"
        build(data, seed, per_kind=27)
        typed = [f"tasks.mmbench_mini.overrides.dataset_path={data}"]
    config = settings(["limit=null", "protocol=replay", *typed])
    rows, context = rows_of(config, folder)
    bridge = collect.load_engine(config, folder / collect.LOG, context)
    return bridge.loaded, [ready(bridge, row).prompt for row in rows], dict(context)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", help="Hydra overrides of the prompts' run")
    parser.add_argument("--folder", type=Path, required=True, help="where the gates go")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=PLAN.steps)
    parser.add_argument("--keep", type=float, default=PLAN.keep, help="share of all entries")
    parser.add_argument("--next", type=float, default=PLAN.next, help="weight of the next token")
    args = parser.parse_args(argv)
    if args.seed == BENCHMARK_SEED:
        parser.error(f"seed {args.seed} made the benchmark; take another one")
    plan = replace(PLAN, steps=args.steps, keep=args.keep, next=args.next)
    log = partial(print, flush=True)
    with tempfile.TemporaryDirectory(prefix="evictbench-") as scratch:
        loaded, prompts, context = prompts_of(args.settings, args.seed, Path(scratch))
        Random(args.seed).shuffle(prompts)
        log(f"{len(prompts)} prompts of {loaded.name}, {plan.held_out} of them held out")
        gates, record = train(loaded, prompts, plan, args.seed, log)
    args.folder.mkdir(parents=True, exist_ok=True)
    named = {
        f"layers.{rank}.self_attn.retention_gate.{name}": tensor.detach().cpu().contiguous()
        for rank, gate in enumerate(gates)
        for name, tensor in gate.state_dict().items()
    }
    save_file(named, args.folder / FILE)
    about = {
        "command": f"python -m scripts.train_gates --seed {args.seed} --steps {args.steps} "
        f"--keep {args.keep} --next {args.next} {' '.join(args.settings)}".strip(),
        "model": Path(loaded.name).name,
        "weights": context["weights"],
        "plan": asdict(plan),
        "machine": machine(),
        "torch": torch.__version__,
    }
    text = json.dumps(about | record, indent=1)
    args.folder.joinpath("training.json").write_text(text + "\n")
    log(f"wrote {args.folder}")


if __name__ == "__main__":
    main()
