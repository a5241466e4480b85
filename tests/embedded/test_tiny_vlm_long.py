"""The embedded model of long pictures: its record, and that it finds one thing among many."""

import io
import json

import pandas as pd
import pytest
from PIL import Image
from safetensors import safe_open

from harness.embedded import MMBENCH_MINI_LONG, TINY_VLM, TINY_VLM_LONG
from harness.embedded.questions import Question, prompt
from harness.scoring.bridge import Bridge
from harness.settings.config import ModelConfig, ProtocolConfig
from harness.settings.grid import FULL, Cell
from scripts.build_mmbench_mini import ROTATION
from scripts.build_mmbench_mini import SEED as BENCHMARK_SEED

EASY = ("color", "digit", "largest_color", "background")


@pytest.fixture(scope="module")
def bridge():
    model = ModelConfig("tiny_vlm_long", str(TINY_VLM_LONG), tile=128)
    return Bridge(model, ProtocolConfig("replay"), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def frame():
    data = pd.read_parquet(MMBENCH_MINI_LONG / "en" / "dev-00000-of-00001.parquet")
    return data[data["index"] < ROTATION]


def asked(bridge, row):
    """The full cache's answer to a row."""
    options = tuple(row[x] for x in "ABCD" if not pd.isna(row[x]))
    hint = None if pd.isna(row["hint"]) else row["hint"]
    text = prompt(Question("", "", "", row["question"], options, "", hint, ()))
    image = Image.open(io.BytesIO(row["image"]["bytes"]))
    content = [{"type": "image", "url": image}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    return bridge.answer(messages, [Cell(FULL, FULL)], {"max_new_tokens": 1}, "ABCD")[0]


def test_it_finds_one_thing_among_many(bridge, frame):
    right = []
    for kind in EASY:
        for _, row in frame[frame["comment"] == kind].head(3).iterrows():
            found = asked(bridge, row)
            assert found.image_tokens == 2304
            right.append(found.text == row["answer"])
    assert sum(right) >= 10


def test_it_goes_on_from_the_small_one():
    record = json.loads((TINY_VLM_LONG / "training.json").read_text())
    before = json.loads((TINY_VLM / "training.json").read_text())
    assert record["parts"].items() >= before["parts"].items()
    assert record["seed"] != record["benchmark_seed"] == BENCHMARK_SEED
    places = [folder / "model.safetensors" for folder in (TINY_VLM, TINY_VLM_LONG)]
    with safe_open(places[0], "pt") as one, safe_open(places[1], "pt") as other:
        tower = [name for name in one.keys() if "vision_tower" in name]  # noqa: SIM118
        assert tower
        assert all((one.get_tensor(n) == other.get_tensor(n)).all() for n in tower)
