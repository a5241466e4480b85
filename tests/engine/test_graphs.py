"""Replayed decoding steps. Without a GPU, a replay is the host's step with its counting undone."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_prompt

import methods
from harness.engine import Branch, Engine, Generation
from harness.engine import graphs as graphs_module
from harness.engine.graphs import Steps

TOKENS = 48


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
    """run(capture, branches) -> results of the engine with graphs captured like that."""

    def run(capture, branches, tokens=TOKENS, stops=frozenset()):
        class Noted(Steps):
            def __init__(self, forward, cache, graphs):
                capture.caches.append(cache)
                super().__init__(forward, cache, True, capture)

        with monkeypatch.context() as patch:
            if capture is not None:
                patch.setattr("harness.engine.decode.Steps", Noted)
            engine = Engine(loaded_models["llama"])
            patch.setattr(engine.decoder, "stop_ids", stops)
            return engine.run(make_prompt("llama"), branches, Generation(tokens), ("A", "B"))

    return run


def growing():
    policies = [methods.build(name, window=5) for name in ("restkv", "snapkv")]
    return [Branch(), *(Branch(policy, ratio) for policy in policies for ratio in (0.5, 0.9))]


def answers(results):
    return [(result.token_ids, result.letter_logits) for result in results]


def test_replayed_answers_are_the_eager_ones(replayed):
    capture = Replayed()
    assert answers(replayed(capture, growing())) == answers(replayed(None, growing()))
    steps = TOKENS - 1  # the first token comes from the prompt
    assert capture.replays == 1 + steps - 1  # one to compare, and all steps but the first


def test_cells_that_stop_void_the_graph(replayed):
    free = replayed(None, growing())
    stops = frozenset(result.token_ids[6] for result in free[:3])
    capture = Replayed()
    assert answers(replayed(capture, growing(), stops=stops)) == answers(
        replayed(None, growing(), stops=stops)
    )
    assert capture.replays


@pytest.mark.parametrize(
    ("capture", "says"),
    [(Replayed(refuse=True), "cannot be captured"), (Replayed(spoil=-1), "is off by")],
)
def test_a_graph_that_fails_is_given_up_aloud(replayed, capture, says):
    with pytest.warns(UserWarning, match=says):
        results = replayed(capture, growing())
    assert answers(results) == answers(replayed(None, growing()))
    assert capture.replays <= 1


def test_cells_that_hold_and_short_answers_are_left_to_eager_steps(replayed):
    holding, short = Replayed(), Replayed()
    replayed(holding, [Branch(), Branch(methods.build("tova"), 0.5)])
    replayed(short, growing(), tokens=graphs_module._WORTH)
    assert holding.replays == short.replays == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_captured_steps_on_a_gpu(loaded_models):
    import copy

    loaded = copy.copy(loaded_models["llama"])
    loaded.model = copy.deepcopy(loaded.model).cuda()
    loaded.device = torch.device("cuda")
    prompt = make_prompt("llama")
    prompt.inputs.update({name: each.cuda() for name, each in prompt.inputs.items()})
    found = [
        Engine(loaded, cuda_graphs=graphs).run(prompt, growing(), Generation(TOKENS))
        for graphs in (False, True)
    ]
    assert answers(found[0]) == answers(found[1])
