"""Time prompts that begin alike, read once or each from its start, in one run.

`make bench BENCH=prefixes`. Two cases: the rotations of a question about one picture of many tokens
(protocol replay), and many questions about one text (protocol context). Both sides alternate, must
give equal answers, and are printed as medians with their ratios.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from random import Random

import torch

from harness.drawing.render import render
from harness.drawing.world import sample_scene
from harness.embedded import TINY_VLM
from harness.engine import Branch, BranchResult, Engine, Generation, Protocol
from harness.models import loading
from harness.models.loaded import LoadedModel
from harness.models.prompts import Prompt
from scripts.bench_branching import branches

WORDS = ("red", "blue", "green", "yellow")


def rotations(loaded: LoadedModel, pictures: int) -> list[Prompt]:
    """One question about some pictures, its four options in every rotation."""
    rng, found = Random(3), []
    images = [{"type": "image", "url": render(sample_scene(rng))} for _ in range(pictures)]
    for turn in range(len(WORDS)):
        options = WORDS[turn:] + WORDS[:turn]
        listed = "\n".join(
            f"{letter}. {word}" for letter, word in zip("ABCD", options, strict=True)
        )
        text = f"What is the color of the circle?\n{listed}\nAnswer with the option's letter."
        content = [*images, {"type": "text", "text": text}]
        found.append(loaded.prompt([{"role": "user", "content": content}]))
    return found


def questions(loaded: LoadedModel, tokens: int, count: int, each: int) -> list[Prompt]:
    """Questions of `each` tokens about one text of `tokens`, drawn at random."""
    generator = torch.Generator().manual_seed(3)
    rows = loaded.model.get_input_embeddings().weight.shape[0]
    found = []
    text = torch.randint(10, rows // 2, (1, tokens), generator=generator)
    for _ in range(count):
        own = torch.randint(10, rows // 2, (1, each), generator=generator)
        ids = torch.cat([text, own], dim=1).to(loaded.device)
        found.append(Prompt({"input_ids": ids}, torch.zeros_like(ids[0]), 1, tokens))
    return found


def answers(
    engine: Engine, prompts: Sequence[Prompt], cells: Sequence[Branch], new: int
) -> tuple[float, float, list[BranchResult]]:
    """Seconds of all prompts, of them those of prefills, and the answers."""
    started = time.perf_counter()
    rows = [engine.run(each, cells, Generation(new)) for each in prompts]
    spent = time.perf_counter() - started
    found = [one for row in rows for one in row]
    return spent, sum(one.timings["prefill"] for one in found), found


def one_by_one(
    engine: Engine, prompts: Sequence[Prompt], cells: Sequence[Branch], new: int
) -> float:
    """Seconds of all prompts with a prefill for each cell."""
    started = time.perf_counter()
    for prompt in prompts:
        for cell in cells:
            engine.run(prompt, [cell], Generation(new))
    return time.perf_counter() - started


def compared(
    loaded: LoadedModel,
    protocol: Protocol,
    prompts: Sequence[Prompt],
    cells: Sequence[Branch],
    new: int = 1,
    rounds: int = 3,
    apart: bool = False,
) -> dict[str, float]:
    """Medians over rounds, in which both sides alternate; SystemExit where an answer differs.

    apart: also time a prefill for each cell.
    """
    times = []
    alone = Engine(loaded, protocol, share_prefixes=False)
    for engine in (alone, Engine(loaded, protocol)):
        engine.run(prompts[0], cells, Generation(new))  # not counted: what is made once a process
    for _ in range(rounds):
        shared, filled, found = answers(Engine(loaded, protocol), prompts, cells, new)
        whole, every, wanted = answers(alone, prompts, cells, new)
        if [one.token_ids for one in found] != [one.token_ids for one in wanted]:
            raise SystemExit("an answer differs from that without sharing")
        ratios = [whole / shared, filled / every * len(prompts)]
        ratios += [one_by_one(alone, prompts, cells, new) / shared] if apart else []
        times.append([shared, *ratios])
    names = ("seconds", "times_faster", "prefills_of_one_prompt", "times_faster_than_one_by_one")
    medians = map(statistics.median, zip(*times, strict=True))
    sizes = {"prompts": len(prompts), "tokens": len(prompts[0].modality), "cells": len(cells)}
    return {**sizes, **dict(zip(names, medians, strict=False))}


def main() -> None:
    """Parse the command line, measure and print a line of JSON a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(TINY_VLM), help="folder or hub id")
    parser.add_argument("--pictures", type=int, default=16, help="of a question, 0: leave them out")
    parser.add_argument("--tokens", type=int, default=2_000, help="of the text")
    parser.add_argument("--questions", type=int, default=10, help="about the text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--apart", action="store_true", help="also time a prefill for each cell")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loaded = loading.load(args.model)
    where = {"model": loaded.name, "device": str(loaded.device), "processor": platform.processor()}
    print(json.dumps({**where, "torch": torch.__version__, "threads": torch.get_num_threads()}))
    how = {"rounds": args.rounds, "apart": args.apart}
    if args.pictures:
        turned = rotations(loaded, args.pictures)
        found = compared(loaded, Protocol("replay"), turned, branches(), **how)
        print(json.dumps({"case": "rotations", **found}), flush=True)
    asked = questions(loaded, args.tokens, args.questions, 20)
    found = compared(loaded, Protocol("context"), asked, branches(), **how)
    print(json.dumps({"case": "questions", **found}), flush=True)


if __name__ == "__main__":
    main()
