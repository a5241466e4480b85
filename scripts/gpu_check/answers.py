"""Stage 3: a tiny Qwen2.5-VL answers alike on the CPU, in plain torch on the GPU and with kernels,
with CUDA graphs and without; and how often a decoding step waits for the device.

In float32. What is kept and the letters' logits must agree, and nineteen in twenty answers of many
tokens: where two logits are all but equal, one bit decides.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from scripts.gpu_check import older  # noqa: F401 - before the engine
from scripts.gpu_check.cells import GROWING, HOLDING, WHOLE, branches, stored
from scripts.gpu_check.output import Row, Rows, main
from scripts.gpu_check.steps import Steps

sys.path.append(str(Path(__file__).parents[2] / "tests" / "engine"))
from tiny_models import BUILDERS, make_prompt, wrap

from harness.engine import Branch, BranchResult, Engine, Generation
from harness.models.loaded import LoadedModel
from harness.models.prompts import Prompt

TOKENS = 48  # enough for a graph to be worth it
TINY = {"window": 6, "span": 1, "start": 2}  # of methods, for a prompt of 40 tokens
_LOGITS = 1e-3  # of the largest
_ALIKE = 0.95  # of the answers


class Tiny:
    """The model and its prompt on one device."""

    def __init__(self, device: torch.device) -> None:
        loaded = wrap(BUILDERS["qwen"]())
        self.loaded: LoadedModel = copy.copy(loaded)
        self.loaded.model = loaded.model.to(device)
        self.loaded.device = device
        prompt = make_prompt("qwen")
        inputs = {name: each.to(device) for name, each in prompt.inputs.items()}
        self.prompt = Prompt(inputs, prompt.modality.to(device), prompt.suffix, prompt.context)

    def run(
        self, cells: Sequence[Branch], kernels: str, tokens: int, graphs: bool = False
    ) -> list[BranchResult]:
        """The answers of all cells, as one batch."""
        engine = Engine(self.loaded, None, len(cells), kernels, graphs)
        return engine.run(self.prompt, cells, Generation(tokens), ("A", "B", "C", "D"))


def work(rows: Rows, dry: bool) -> None:
    """All rows of the stage."""
    torch.backends.cudnn.allow_tf32 = False  # the image's patches go through a convolution
    device = torch.device("cpu" if dry else "cuda")
    chosen = {name: WHOLE[name] for name in ("restkv", "tova")} if dry else WHOLE
    cells = branches(chosen, (0.5,) if dry else (0.5, 0.7, 0.8, 0.9, 0.95), **TINY)
    tokens = 2 if dry else TOKENS
    tiny, there = Tiny(device), Tiny(torch.device("cpu"))
    for what, own in (("", cells), ("stored otherwise: ", stored(TINY["window"]))):
        reference = there.run(own, "torch", tokens)
        for kernels in ("torch", "triton"):
            name = f"{what}{kernels} against the CPU"
            with rows.trying(name):
                found = tiny.run(own, kernels, tokens)
                rows.put(name, **compared(found, reference))
    if dry:
        rows.put("graphs against eager", "skipped", why="a CPU replays no graphs")
        rows.put("waits of a step", "skipped", why="a CPU waits for nothing")
        return
    with rows.trying("graphs against eager"):
        rows.put("graphs against eager", **graphs(tiny))
    for name, wanted in (("growing", GROWING), ("holding", HOLDING)):
        with rows.trying(f"waits of a {name} step"):
            own = branches(wanted, (0.5, 0.9), **TINY)
            rows.put(f"waits of a {name} step", **waits(tiny, own))


def compared(found: Sequence[BranchResult], wanted: Sequence[BranchResult]) -> Row:
    """How many cells agree, and how far the letters' logits are off."""
    pairs = list(zip(found, wanted, strict=True))
    kept = sum(a.kept_tokens == b.kept_tokens for a, b in pairs)
    alike = sum(a.token_ids == b.token_ids for a, b in pairs)
    off = max(_off(a, b) for a, b in pairs)
    fine = kept == len(pairs) and off <= _LOGITS and alike >= _ALIKE * len(pairs)
    why = "" if fine else f"{alike} of {len(pairs)} answers agree, logits are off by {off:.1e}"
    return {"verdict": "ok" if fine else "failed", "cells": len(pairs), "same_answers": alike,
            "same_kept": kept, "logits_off": off, "why": why}  # fmt: skip


def _off(found: BranchResult, wanted: BranchResult) -> float:
    a, b = (torch.tensor(list(each.letter_logits.values())) for each in (found, wanted))
    return float((a - b).abs().max() / b.abs().max())


def graphs(tiny: Tiny) -> Row:
    """Growing cells with replayed steps against the same without."""
    cells = branches(GROWING, **TINY)
    wanted = tiny.run(cells, "triton", TOKENS)
    with warnings.catch_warnings(record=True) as said, Steps(tiny.loaded.model) as steps:
        warnings.simplefilter("always")
        found = tiny.run(cells, "triton", TOKENS, graphs=True)
    row = {**compared(found, wanted), "replays": steps.replays}
    given_up = [str(each.message) for each in said if "CUDA graphs" in str(each.message)]
    if not steps.replays or given_up:
        row.update(verdict="failed", why=(given_up or ["no step was replayed"])[0])
    return row


def waits(tiny: Tiny, cells: Sequence[Branch]) -> Row:
    """Synchronising calls of one more step, and where they come from."""
    counts = []
    for tokens in (12, 4):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                tiny.run(cells, "triton", tokens)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts.append(Counter(_place(each) for each in said if "synchroniz" in str(each.message)))
    more = {place: (n - counts[1][place]) / 8 for place, n in counts[0].items()}
    places = {place: n for place, n in more.items() if n}
    return {"waits": sum(more.values()), "row": sum(counts[1].values()), "places": places}


def _place(said: warnings.WarningMessage) -> str:
    return "/".join(Path(said.filename).parts[-2:]) + f":{said.lineno}"


if __name__ == "__main__":
    sys.exit(main("answers", work, __doc__))
