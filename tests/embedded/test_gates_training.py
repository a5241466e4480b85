"""Training of retention gates: its attention against the formula, and its loss goes down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import methods
from harness.embedded import TINY_VLM
from harness.engine.layout import prepare
from harness.models import loading
from methods.gates import load
from scripts import train_gates
from scripts.train_gates import Gate, Plan, fading, losses


@pytest.fixture(scope="module")
def loaded():
    return loading.load(str(TINY_VLM), device="cpu")


@pytest.fixture(scope="module")
def prompts(loaded):
    from random import Random

    from harness.drawing.render import render
    from harness.drawing.world import sample_scene
    from harness.embedded.questions import ask, prompt

    rng, made = Random(3), []
    while len(made) < 12:
        scene = sample_scene(rng)
        question = ask(scene, "color", rng)
        parts = [
            {"type": "image", "url": render(scene)},
            {"type": "text", "text": prompt(question)},
        ]
        made.append(loaded.prompt([{"role": "user", "content": parts}]))
    return made


def gates_of(model: nn.Module, start: float) -> nn.ModuleList:
    text = model.config.get_text_config()
    return nn.ModuleList(
        Gate(text.hidden_size, 8, text.num_key_value_heads, start) for _ in prepare(model).layers
    )


def test_entries_that_never_fade_change_nothing(loaded, prompts):
    model, gates = loaded.model, gates_of(loaded.model, 40.0)
    found = losses(model, prepare(model), gates, prompts[0], keep=0.1)
    assert found.kl.item() == pytest.approx(0, abs=1e-5)
    length = len(prompts[0].modality)
    seen = torch.arange(1, length + 1)
    wanted = ((seen - 0.1 * length).clamp_min(0) / (seen - 0.1 * length).clamp_min(1 / 12)).mean()
    assert found.hinge.item() == pytest.approx(wanted.item(), abs=1e-4)


def test_logits_fade_as_the_formula_says():
    """One layer, element by element in float64."""
    torch.manual_seed(2)
    query, key, value = torch.randn(1, 4, 7, 8), torch.randn(1, 2, 7, 8), torch.randn(1, 2, 7, 8)
    fading = train_gates.Fading(nn.ModuleList(), {})
    fading.beta = -torch.rand(1, 2, 7)
    train_gates._fading.append(fading)
    try:
        found, _ = train_gates.gated(nn.Identity(), query, key, value, None)
    finally:
        train_gates._fading.pop()
    for head in range(4):
        for t in range(7):
            logits = torch.stack(
                [
                    (query[0, head, t].double() @ key[0, head // 2, i].double())
                    / 8**0.5
                    * fading.beta[0, head // 2, i].double().exp() ** (t - i)
                    for i in range(t + 1)
                ]
            )
            wanted = logits.softmax(0) @ value[0, head // 2, : t + 1].double()
            torch.testing.assert_close(found[0, t, head].double(), wanted, rtol=1e-5, atol=1e-5)
    left = sum(fading.beta[0].double().exp()[:, i] ** (6 - i) for i in range(7)).sum()
    assert fading.left[0][0, -1].item() == pytest.approx(left.item(), rel=1e-5)


def test_the_model_is_as_before_when_the_block_ends(loaded, prompts):
    model = loaded.model
    usual = model.get_decoder().config._attn_implementation
    with fading(model, prepare(model), gates_of(model, 2.0)):
        assert model.get_decoder().config._attn_implementation == train_gates.NAME
    assert model.get_decoder().config._attn_implementation == usual
    assert not any(layer.module._forward_pre_hooks for layer in prepare(model).layers)


def test_training_lowers_what_it_says_and_a_policy_reads_the_gates(
    loaded, prompts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    quick = Plan(batch=2, held_out=4, width=8, rate=2e-2)
    drawn = (loaded, prompts, {"weights": "known"})
    monkeypatch.setattr(train_gates, "prompts_of", lambda *asked: drawn)
    monkeypatch.setattr(train_gates, "PLAN", quick)
    train_gates.main(["--folder", str(tmp_path), "--steps", "12"])
    record = json.loads((tmp_path / "training.json").read_text())
    before, after = (r["kl"] + r["hinge"] for r in (record["before"], record["after"]))
    assert after < 0.9 * before
    assert len(load(str(tmp_path))) == len(prepare(loaded.model).layers)
    assert methods.build("trimkv", gates=str(tmp_path)).params["budget"] == "uniform"
