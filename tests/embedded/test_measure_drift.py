"""The measured drift against a plain sum over the model's own attention."""

import json

import pytest
import torch

from harness.embedded import TINY_VLM
from harness.scoring.bridge import Bridge
from harness.settings.config import ModelConfig, ProtocolConfig
from harness.settings.grid import DENSE
from scripts.measure_drift import described, drifts, main


def test_drift_is_how_far_the_most_attended_entries_move():
    bridge = Bridge(
        ModelConfig("tiny", str(TINY_VLM)), ProtocolConfig("replay"), device="cpu", dtype="float32"
    )
    words = " ".join(["the red star is left of the cat ."] * 20)
    said = [{"role": "user", "content": f"{words} What is the word?"}]
    prompt = bridge.prompt(said, {"max_new_tokens": 1})
    length = len(prompt.modality) - 1  # the last token is read after the eviction
    found = drifts(bridge.engines["replay", DENSE], prompt, 0.5)
    model = bridge.loaded.model
    model.get_decoder().set_attn_implementation("eager")
    with torch.no_grad():
        layers = model(**prompt.inputs, output_attentions=True).attentions
    kept = length - round(length * 0.5) - 32  # before the window, which stays
    wanted = []
    for layer in layers:
        tops = layer[0, :, -33:-1].double().topk(kept, dim=-1).indices.double().mean(-1)  # [H, 32]
        moved = tops[:, :16].mean(1) - tops[:, 16:].mean(1)
        wanted += moved.unflatten(0, (2, -1)).mean(1).abs().tolist()
    assert found.tolist() == pytest.approx(wanted, abs=0.2)
    assert found.max() > 3


def test_the_share_of_heads_is_by_scale():
    line = described(300, torch.tensor([0.0, 60.0, 300.0, 2000.0], dtype=torch.float64))
    assert line["acts_at_scale"] == {
        "2000": 0.25,
        "1000": 0.25,
        "500": 0.25,
        "200": 0.5,
        "50": 0.75,
    }
    assert (line["median"], line["largest"]) == (60.0, 2000.0)


def test_the_command_prints_a_line_for_each_length(capsys):
    main(["task=ruler_mini", "limit=2", "--prompts", "2"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[:1] == "{"]
    assert lines
    assert sum(line["heads"] for line in lines) == 2 * 12
