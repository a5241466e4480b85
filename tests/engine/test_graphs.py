"""Replayed decoding steps. Without a GPU, a replay is the host's step with its counting undone."""

from __future__ import annotations

import re

import pytest
import torch
from tiny_models import make_prompt

import methods
from harness.engine import Branch, Engine, Generation, graphs
from harness.engine.graphs import Steps

PATIENCE, WORTH, TOKENS = 4, 6, 16
STEPS = TOKENS - 1  # the first token comes from the prompt
REPLAYS = STEPS - PATIENCE  # of which the first repeats an eager step


class Replayed:
    """What a captured graph does: the device's part of a step, and nothing of the host's."""

    def __init__(self, spoil=0, refuse=False):
        self.replays = 0
        self.spoil = spoil
        self.refuse = refuse
        self.caches = []

    def __call__(self, step, device):
        if self.refuse:
            raise RuntimeError("operation not permitted when stream is capturing")
        layers = self.caches[-1].layers
        result = torch.empty(())

        def replay():
            counted = [layer.count() for layer in layers]
            logits = step()
            for layer, before in zip(layers, counted, strict=True):
                layer.recount(before)
            self.replays += 1
            result.resize_(logits.shape).copy_(logits)
            if self.replays == 1 and self.spoil:
                result.mul_(self.spoil)

        # Capturing counts on the host and runs nothing on the device.
        for layer in layers:
            layer.recount(layer.count(1))
        return replay, result


@pytest.fixture
def replayed(monkeypatch, loaded_models):
    """run(capture, branches) -> results of the engine with graphs captured like that.

    run.told: what the engine says of them.
    """

    def run(capture, branches, tokens=TOKENS, stops=frozenset()):
        class Noted(Steps):
            def __init__(self, forward, cache, replays, made):
                capture.caches.append(cache)
                super().__init__(forward, cache, replays, made, capture)

        with monkeypatch.context() as patch:
            patch.setattr(graphs, "PATIENCE", PATIENCE)
            patch.setattr(graphs, "WORTH", WORTH)
            if capture is not None:
                patch.setattr(graphs, "Steps", Noted)
            engine = Engine(loaded_models["llama"])
            engine.decoder.replays = capture is not None
            patch.setattr(engine.decoder, "stop_ids", stops)
            results = engine.run(make_prompt("llama"), branches, Generation(tokens), ("A", "B"))
            run.told = engine.told()
            return results

    return run


def growing():
    policies = [methods.build(name, window=5) for name in ("restkv", "snapkv")]
    return [Branch(), *(Branch(policy, ratio) for policy in policies for ratio in (0.5, 0.9))]


def answers(results):
    return [(result.token_ids, result.letter_logits) for result in results]


def holding():
    return [Branch(methods.build(name), ratio) for name in ("tova", "h2o") for ratio in (0.5, 0.9)]


def mixed():
    return [cell for pair in zip(growing(), [*holding(), Branch()], strict=True) for cell in pair]


def test_replayed_answers_are_the_eager_ones(replayed):
    capture = Replayed()
    assert answers(replayed(capture, growing())) == answers(replayed(None, growing()))
    assert capture.replays == REPLAYS


def test_cells_that_hold_leave_the_others_to_a_graph(replayed):
    capture = Replayed()
    expect_close(replayed(capture, mixed()), replayed(None, mixed()))
    assert capture.replays == REPLAYS
    assert replayed.told == ()


def expect_close(found, wanted):
    """Batches of other sizes round otherwise."""
    for one, other in zip(found, wanted, strict=True):
        assert one.token_ids == other.token_ids
        assert one.letter_logits == pytest.approx(other.letter_logits, abs=1e-4)
        assert one.nonfinite_tokens == other.nonfinite_tokens == 0


@pytest.mark.parametrize("cells", [growing, mixed])
def test_cells_that_stop_void_the_graph(replayed, cells):
    free = replayed(None, cells())
    stops = frozenset(result.token_ids[PATIENCE + 3] for result in free[:3])
    capture = Replayed()
    stopped = replayed(capture, cells(), stops=stops)
    expect_close(stopped, replayed(None, cells(), stops=stops))
    assert len({len(result.token_ids) for result in stopped}) > 1
    assert 0 < capture.replays < REPLAYS


@pytest.mark.parametrize(
    ("capture", "says"),
    [(Replayed(refuse=True), "cannot be captured"), (Replayed(spoil=-1), "is off by .* 5 cells")],
)
def test_a_graph_that_fails_is_given_up_aloud(replayed, capture, says):
    with pytest.warns(UserWarning, match=says):
        results = replayed(capture, growing())
    assert len(replayed.told) == 1
    assert re.search(says, replayed.told[0])
    assert answers(results) == answers(replayed(None, growing()))
    assert capture.replays <= 1


def test_what_does_not_pay_is_left_to_eager_steps(replayed):
    alone, short = Replayed(), Replayed()
    replayed(alone, holding())
    replayed(short, growing(), tokens=PATIENCE + WORTH + 1)
    assert alone.replays == short.replays == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_captured_steps_on_a_gpu(loaded_models):
    import copy

    loaded = copy.copy(loaded_models["llama"])
    loaded.model = copy.deepcopy(loaded.model).cuda()
    loaded.device = torch.device("cuda")
    prompt = make_prompt("llama")
    prompt.inputs.update({name: each.cuda() for name, each in prompt.inputs.items()})
    found = [
        Engine(loaded, cuda_graphs=replays).run(prompt, growing(), Generation(64))
        for replays in (False, True)
    ]
    assert answers(found[0]) == answers(found[1])
