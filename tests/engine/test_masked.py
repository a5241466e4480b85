"""The engine against the plain model with its attention masked, as `evictbench check` compares."""

from __future__ import annotations

import pytest
import torch
from engine_helpers import Scatter
from tiny_models import CASES, PROTOCOLS, make_prompt

import methods
from harness.engine import Branch, Engine, branch, masked, selfcheck
from harness.models.loading import load
from harness.settings.caches import HostValues
from methods import Selection
from tests.families import checks

NOISE = selfcheck.LOGITS[torch.float32]


def branches() -> list[Branch]:
    found = [Branch(), *(Branch(Scatter(seed), budget=5) for seed in range(2))]
    found += [Branch(methods.build(name), ratio=0.5) for name in ("restkv", "h2o", "tova")]
    for merge in ("none", "pivot"):
        policy = methods.build("snapkv", budget="adaptive", window=2, merge=merge)
        found.append(Branch(policy, ratio=0.7))
    return [*found, Branch(methods.build("h2o", decode="hold"), budget=5)]


@pytest.mark.parametrize(("kind", "protocol"), CASES)
def test_the_engine_agrees_with_the_masked_model(loaded_models, kind, protocol):
    engine = Engine(loaded_models[kind], PROTOCOLS[protocol])
    found = masked.compare(engine, make_prompt(kind, seed=23), branches())
    assert len(found.differences) == found.batch == 9
    assert max(found.differences) < NOISE


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_kept_and_what_is_said_are_told_apart(loaded_models, protocol, monkeypatch):
    """Every cell keeps the entries beside those that its policy chose."""
    original = branch._chosen

    def beside(filled, rank, cell, heads, length):
        chosen = original(filled, rank, cell, heads, length)
        return Selection((chosen.positions - 1).clamp_min(0), chosen.window, counts=chosen.counts)

    monkeypatch.setattr(branch, "_chosen", beside)
    engine = Engine(loaded_models["llava"], PROTOCOLS[protocol])
    found = masked.compare(engine, make_prompt("llava", seed=23), branches()).differences
    assert min(found[1:]) > NOISE


def test_cells_that_move_positions_are_left_out(loaded_models):
    cells = [Branch(Scatter(1), budget=5), Branch(Scatter(1, positions="cache"), budget=5)]
    found = masked.compare(Engine(loaded_models["llama"]), make_prompt("llama", seed=3), cells)
    assert [one is None for one in found.differences] == [False, True]


def test_cells_that_fetch_do_not_decode_together_with_the_others(loaded_models):
    cells = [Branch(), Branch(cache=HostValues(0.5, 4)), Branch(Scatter(1), budget=5)]
    engine = Engine(loaded_models["llama"])
    assert masked.compare(engine, make_prompt("llama", seed=3), cells).batch == 2


@pytest.mark.parametrize("name", ["Gemma 3n (text)", "Qwen3-Next"])
def test_layers_that_share_keys_and_states_that_change(name, tmp_path):
    """Each cell has its own states; a layer that uses another's keys hides what that one hides."""
    loaded = load(str(checks.saved(name, tmp_path)), device="cpu", dtype="float32")
    prompt = loaded.prompt(checks.messages([]))
    found = masked.compare(Engine(loaded), prompt, branches())
    assert max(found.differences) < NOISE
