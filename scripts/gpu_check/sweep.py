"""Stage 6: the cells of the default sweep on random weights of Qwen2.5-VL-7B's shape.

A prompt of 700 tokens, 529 of them an image's. Rows a second with answers of eight tokens, the
parts of a row, peak memory; and of a step whose cells hold their budget, one whose cells grow, and
a replayed one: milliseconds, and a profile. Time and memory do not depend on what weights say.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from scripts.gpu_check import older  # noqa: F401 - before the engine
from scripts.gpu_check.cells import GROWING, HOLDING, RATIOS, WHOLE, branches
from scripts.gpu_check.output import Row, Rows, main
from scripts.gpu_check.steps import Steps, summary

sys.path.append(str(Path(__file__).parents[2] / "tests" / "engine"))
from tiny_models import make_tokenizer

from harness.engine import Branch, Engine, Generation
from harness.models.loaded import LoadedModel
from harness.models.prompts import Prompt

IMAGE, START, END, VIDEO = 150, 151, 152, 153  # token ids
ANSWER = 8  # tokens of a row
TEXT: dict[str, Any] = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    "max_position_embeddings": 128000,
}  # fmt: skip
VISION: dict[str, Any] = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
    "out_hidden_size": 3584, "patch_size": 14, "window_size": 112, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
SMALL_TEXT = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300}  # fmt: skip
SMALL_VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2,
                "out_hidden_size": 64, "fullatt_block_indexes": [0]}  # fmt: skip
SIDE = 46  # patches of the image's side


def work(rows: Rows, dry: bool) -> None:
    """All rows of the stage."""
    device = torch.device("cpu" if dry else "cuda")
    began = time.perf_counter()
    loaded = build(device, dry)
    weights = sum(each.nbytes for each in loaded.model.parameters())
    rows.put("weights", gb=weights / 1e9, seconds=time.perf_counter() - began)
    side, words, ratios = (8, 20, (0.5,)) if dry else (SIDE, 169, RATIOS)
    chosen = {name: WHOLE[name] for name in ("snapkv", "tova")} if dry else WHOLE
    prompts = [prompt_of(loaded, side, words, seed) for seed in range(2 if dry else 4)]
    with rows.trying("rows"):
        rows.put("rows", **whole_rows(loaded, prompts, branches(chosen, ratios)))
    tokens = 10 if dry else 24
    for name, wanted in (("holding", HOLDING), ("growing", GROWING)):
        with rows.trying(f"{name} step"):
            cells = branches({k: v for k, v in wanted.items() if k in chosen}, ratios)
            rows.put(f"{name} step", **step(loaded, prompts[0], cells, tokens))
    if dry:
        rows.put("replayed step", "skipped", why="a CPU replays no graphs")
        return
    with rows.trying("replayed step"):
        cells = branches(GROWING, ratios)
        rows.put("replayed step", **step(loaded, prompts[0], cells, 48, graphs=True))


def build(device: torch.device, small: bool) -> LoadedModel:
    """The model, in bfloat16 on a GPU; answers never end by themselves."""
    head = 16 if small else 128
    rope = {"rope_type": "default", "rope_theta": 1e6,
            "mrope_section": [2, 3, 3] if small else [16, 24, 24]}  # fmt: skip
    assert 2 * sum(rope["mrope_section"]) == head
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, **(SMALL_TEXT if small else {}), "rope_parameters": rope,
                     "pad_token_id": None, "bos_token_id": None, "eos_token_id": None},
        vision_config=VISION | SMALL_VISION if small else VISION,
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START,
        vision_end_token_id=END,
    )  # fmt: skip
    dtype = torch.float32 if small else torch.bfloat16
    torch.manual_seed(0)
    with device:
        model = Qwen2_5_VLForConditionalGeneration._from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    loaded = LoadedModel(
        model.eval(), None, make_tokenizer(), "random weights", device, dtype, "", True
    )
    loaded.__dict__["stop_ids"] = frozenset()
    return loaded


def prompt_of(loaded: LoadedModel, side: int, words: int, seed: int) -> Prompt:
    """Some text, an image of side x side patches, a question: words tokens of text in all."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(10, IMAGE, (1, words), generator=generator)
    first = words // 4
    pictured = torch.full((1, side * side // 4), IMAGE)
    marks = [torch.tensor([[START]]), pictured, torch.tensor([[END]])]
    ids = torch.cat([text[:, :first], *marks, text[:, first:]], dim=1)
    kinds = (ids[0] == IMAGE).long()
    patch = VISION["temporal_patch_size"] * 3 * VISION["patch_size"] ** 2
    pixels = torch.randn(side * side, patch, generator=generator)
    inputs = {
        "input_ids": ids,
        "pixel_values": pixels.to(loaded.dtype),
        "image_grid_thw": torch.tensor([[1, side, side]]),
        "mm_token_type_ids": kinds[None],
    }
    device = loaded.device
    placed = {name: each.to(device) for name, each in inputs.items()}
    return Prompt(placed, kinds.to(device), 5, int(kinds.nonzero()[-1]) + 1)


def whole_rows(loaded: LoadedModel, prompts: Sequence[Prompt], cells: Sequence[Branch]) -> Row:
    """Rows as a sweep answers them; the first warms up."""
    cuda = loaded.device.type == "cuda"
    engine = Engine(loaded, None, "auto" if cuda else len(cells))
    seconds, parts = [], []
    for prompt in prompts:
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        results = engine.run(prompt, cells, Generation(ANSWER), ("A", "B", "C", "D"))
        seconds.append(time.perf_counter() - began)
        parts.append({name: each * len(cells) for name, each in results[0].timings.items()})
    return {
        "cells": len(cells),
        "prompt_tokens": results[0].prompt_tokens,
        "answer_tokens": ANSWER,
        "first_row_s": seconds[0],
        "rows_per_s": 1 / statistics.median(seconds[1:]),
        "parts_ms": {
            name: 1000 * statistics.median(each[name] for each in parts[1:]) for name in parts[0]
        },
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
    }


def step(
    loaded: LoadedModel, prompt: Prompt, cells: Sequence[Branch], tokens: int, graphs: bool = False
) -> Row:
    """A decoding step of these cells: the median of many, and three that are profiled."""
    engine = Engine(loaded, None, len(cells), "auto", graphs)
    generation, profiled = Generation(tokens), (4, 7)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with Steps(loaded.model, None, graphs) as plain:
            engine.run(prompt, cells, generation)
        with Steps(loaded.model, profiled, graphs) as seen:
            engine.run(prompt, cells, generation)
    said = [str(each.message) for each in warned if "CUDA graphs" in str(each.message)]
    times = plain.milliseconds()[2:]
    row: Row = {"cells": len(cells), "ms": statistics.median(times) if times else None}
    row.update(summary(seen, profiled[1] - profiled[0]))
    if graphs and (said or plain.replays < tokens // 2):
        row.update(verdict="failed", why=(said or [f"only {plain.replays} steps were replayed"])[0])
    return row


if __name__ == "__main__":
    sys.exit(main("sweep", work, __doc__))
