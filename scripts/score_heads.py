"""Measure how important each attention head is: `python -m scripts.score_heads --folder heads`.

A model answers prompts whose context holds the answer (HeadKV, arXiv 2410.19258). A query head
scores what it pays, while the answer is written, to the tokens of the context that say it, where
they are among as many most attended tokens, over their number; prompts that are answered wrong
count for nothing. --form retrieval is the score that it builds on (arXiv 2404.15574): how often the
most attended token is one of them and the next that is written. The model stays as it is.

Prompts are those of a run's settings, such as model=smollm2_135m task=ruler_offline; without any,
new texts with words hidden in them for the embedded model, from another seed than the benchmark's.
Writes importance.safetensors for method=headkv, and measured.json.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import ClassVar, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.engine import Branch, Engine, Generation, Protocol
from harness.models.loaded import LoadedModel
from harness.models.prompts import Prompt
from harness.run import collect, sweep
from harness.run.validate import validate
from methods import Held, LayerView, Policy, Step
from methods.importance import TENSOR
from scripts.bench_workers import settings
from scripts.build_text_mini import SEED as BENCHMARK_SEED
from scripts.build_text_mini import build

FILE = "importance.safetensors"
FORMS = ("reasoning", "retrieval")
ALL = 2**31 - 1  # a budget that no prompt outgrows


class Row(NamedTuple):
    """The most attended tokens of a query that led to a token: shares and places [H, k]."""

    paid: Tensor
    places: Tensor


@dataclass(frozen=True, kw_only=True)
class Recorder(Policy):
    """Evicts nothing, and notes the `top` most attended tokens at each step, by layer."""

    name: ClassVar[str] = "recorder"
    decode: str = field(default="hold", init=False)
    top: int
    rows: dict[int, list[Row]] = field(default_factory=dict, compare=False)

    @property
    def observes(self) -> bool:
        """That is what it is for."""
        return True

    def measure(self, view: LayerView) -> Tensor:
        """Scores of 0: everything is kept."""
        return view.keys.new_zeros(view.keys.shape[:3], dtype=torch.float32)

    def evictions(self, held: Held, grown: int, seen: int, num_layers: int) -> int:
        """None."""
        return 0

    def carry(self, step: Step) -> None:
        """Note the newest query's attention."""
        assert step.attention is not None
        paid, order = step.attention[0, :, -1].topk(min(self.top, step.attention.shape[-1]))
        places = step.positions[0].repeat_interleave(len(paid) // step.positions.shape[1], 0)
        row = Row(paid.cpu(), places.gather(-1, order).cpu())
        self.rows.setdefault(int(step.layer), []).append(row)


class Asked(NamedTuple):
    """A prompt, the answer that it wants, and what tells the score of an answer's text."""

    prompt: Prompt
    wanted: str
    generation: Generation
    score: Callable[[str], float | None]


def measure(loaded: LoadedModel, asked: Sequence[Asked], form: str) -> tuple[Tensor, int]:
    """Mean scores [layers, H] over the prompts that were answered right, and how many were.

    ValueError where none was.
    """
    engine = Engine(loaded, Protocol("replay"), share_prefixes=False)
    found = [own for one in asked if (own := scored(engine, one, form)) is not None]
    if not found or not bool(torch.stack(found).any()):
        raise ValueError(
            f"{loaded.name} found the answer in none of {len(asked)} prompts, so its heads cannot "
            "be told apart; give easier prompts, whose context holds the answer as it is written."
        )
    return torch.stack(found).mean(0), len(found)


def scored(engine: Engine, one: Asked, form: str) -> Tensor | None:
    """Scores [layers, H] of one prompt; None where it is answered wrong or holds no answer."""
    needle = needle_of(engine.loaded, one.prompt, one.wanted)
    if not needle:
        return None
    recorder = Recorder(top=len(needle))
    most = one.generation.max_new_tokens
    longer = replace(one.generation, max_new_tokens=most + 1)  # of a last token there is no row
    (answer,) = engine.run(one.prompt, [Branch(recorder, budget=ALL)], longer)
    said = [token for token in answer.token_ids if token not in engine.loaded.stop_ids][:most]
    if (one.score(engine.loaded.decode(said)) or 0.0) <= 0.5:
        return None
    ids = one.prompt.inputs["input_ids"][0].cpu()
    layers = sorted(recorder.rows.items())
    return torch.stack([collected(rows, said, ids, needle, form) for _, rows in layers])


def collected(
    rows: Sequence[Row], said: Sequence[int], ids: Tensor, needle: Sequence[int], form: str
) -> Tensor:
    """Scores [H] of a layer whose rows led to the tokens `said`, in a prompt of ids [L]."""
    total, there = torch.zeros(len(rows[0].paid)), torch.tensor(needle)
    for row, token in zip(rows, said, strict=False):  # a stop token has a row as well
        if form == "reasoning":
            total += (row.paid * torch.isin(row.places, there)).sum(-1)
        else:
            best = row.places[:, 0]
            total += torch.isin(best, there) & (ids[best.clamp_max(len(ids) - 1)] == token)
    return total / len(needle)


def needle_of(loaded: LoadedModel, prompt: Prompt, wanted: str) -> list[int]:
    """Tokens of the context that say the answer, or else each of its words."""
    ids = prompt.inputs["input_ids"][0, : prompt.context or 0].tolist()
    text, ends, pieces = "", [], _Pieces(loaded)
    for token in ids:
        text += pieces(token)
        ends.append(len(text))
    for parts in (_listed(wanted), re.findall(r"\w+", " ".join(_listed(wanted)))):
        spans = [span for part in dict.fromkeys(parts) for span in _spans(part, text)]
        if spans and all(re.search(_whole(part), text) for part in parts):
            starts = [0, *ends[:-1]]
            return [
                place
                for place, (start, end) in enumerate(zip(starts, ends, strict=True))
                if any(start < last and end > first for first, last in spans)
            ]
    return []


class _Pieces:
    """What a token adds to a text that it follows."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.tokenizer = loaded.tokenizer
        self.before = self.tokenizer.encode("a", add_special_tokens=False)[-1:]
        self.known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        if token not in self.known:
            alone = self.tokenizer.decode(self.before)
            self.known[token] = self.tokenizer.decode([*self.before, token])[len(alone) :]
        return self.known[token]


def _listed(wanted: str) -> list[str]:
    """The parts of an answer, which may be written as a list."""
    try:
        told = ast.literal_eval(wanted)
    except (SyntaxError, ValueError):
        told = wanted
    parts = told if isinstance(told, list) else [wanted]
    return [str(part).strip() for part in parts if str(part).strip()]


def _whole(part: str) -> str:
    return rf"(?<!\w){re.escape(part)}(?!\w)"


def _spans(part: str, text: str) -> Iterator[tuple[int, int]]:
    return (found.span() for found in re.finditer(_whole(part), text))


def asked_of(
    typed: Sequence[str], args: argparse.Namespace, folder: Path
) -> tuple[LoadedModel, list[Asked], dict[str, object]]:
    """The model of a run's settings, and prompts of its tasks, at random."""
    if not typed:
        build(folder / "drawn", args.seed)
        data = folder / "drawn" / "ruler_mini"
        typed = ["task=ruler_mini", f"tasks.ruler_mini.overrides.dataset_path={data}"]
    config = settings(["limit=null", "protocol=replay", *typed])
    config = replace(config, run=replace(config.run, dir=str(folder)))
    job = validate(config)
    job.folder.mkdir(parents=True, exist_ok=True)
    tasks = sweep.benchmarks(job, job.folder / collect.LOG)
    context = dict(tasks[0].context)
    bridge = collect.load_engine(config, folder / collect.LOG, context)
    rows = [(own.benchmark, place) for own in tasks for place in range(len(own.benchmark.rows))]
    Random(args.seed).shuffle(rows)
    found = []
    for benchmark, place in rows[: args.prompts]:
        generation = Generation.from_kwargs(benchmark.generation)
        shorter = replace(generation, max_new_tokens=min(args.tokens, generation.max_new_tokens))
        prompt = bridge.prompt(benchmark.messages(place), benchmark.generation)
        score = partial(benchmark.score, benchmark.rows[place])
        found.append(Asked(prompt, benchmark.questions[place].answer, shorter, score))
    return bridge.loaded, found, context


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", help="Hydra overrides of the prompts' run")
    parser.add_argument("--folder", type=Path, required=True, help="where the scores go")
    parser.add_argument("--form", choices=FORMS, default="reasoning", help="what is counted")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=200, help="at most so many, at random")
    parser.add_argument("--tokens", type=int, default=64, help="at most so many of an answer")
    args = parser.parse_args(argv)
    if args.seed == BENCHMARK_SEED:
        parser.error(f"seed {args.seed} made the benchmark; take another one")
    with tempfile.TemporaryDirectory(prefix="evictbench-") as scratch:
        loaded, asked, context = asked_of(args.settings, args, Path(scratch))
        print(f"{len(asked)} prompts of {loaded.name}", flush=True)
        try:
            scores, right = measure(loaded, asked, args.form)
        except ValueError as error:
            parser.error(str(error))
    args.folder.mkdir(parents=True, exist_ok=True)
    save_file({TENSOR: scores.contiguous()}, args.folder / FILE)
    about = {
        "command": f"python -m scripts.score_heads --form {args.form} --seed {args.seed} "
        f"--prompts {args.prompts} --tokens {args.tokens} {' '.join(args.settings)}".strip(),
        "model": Path(loaded.name).name,
        "weights": context["weights"],
        "prompts": len(asked),
        "answered": right,
        "torch": torch.__version__,
    }
    args.folder.joinpath("measured.json").write_text(json.dumps(about, indent=1) + "\n")
    print(f"{right} answered right; wrote {args.folder}", flush=True)


if __name__ == "__main__":
    main()
