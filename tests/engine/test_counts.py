"""What the default sweep asks of a GPU, counted on a pretend one: none of it may rise."""

from __future__ import annotations

import pytest
import torch
from counted import count
from pretend_cuda import pretending
from pretend_tensors import BLOCKING, DEVICE, KINDS, LAUNCH, QUEUED, WAIT
from tiny_models import VOCAB

from harness.engine import graphs

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there, none to pretend")

# Of 56 cells on 3 layers: launches, queued copies, blocking copies, waits. Where one falls, lower
# it here.
BOUNDS = {
    "score": (447, 9, 0, 0),
    "compact": (126, 3, 0, 1),
    "widening holding": (156, 3, 0, 0),
    "holding": (156, 1, 0, 0),
    "growing": (129, 0, 0, 0),
}
# Points of a row at which the host waits, not counting the model's.
BLOCKING_POINTS = 19


@pytest.fixture(scope="module")
def default():
    with pytest.MonkeyPatch.context() as patch:
        return count(patch, "triton")


@pytest.mark.parametrize("phase", [phase for phase in BOUNDS if phase != "growing"])
def test_nothing_rises(default, phase):
    expect_no_more(default, phase)


def expect_no_more(counted, phase):
    found = counted.most(phase)
    assert found[LAUNCH]
    bounds = dict(zip(KINDS, BOUNDS[phase], strict=True))
    assert {kind: max(n, bounds[kind]) for kind, n in found.items()} == bounds


def test_the_host_waits_no_more_often_in_a_row(default):
    points = default.blocking()
    assert sum(points.values()) <= BLOCKING_POINTS, points


def test_cells_are_those_of_the_cpu(default):
    expect_same(default)


def test_no_attention_of_the_prompt_falls_back_to_all_weights(default):
    """As SDPA does for grouped heads in float32, which no fused kernel of CUDA takes."""
    seen = {one.operation for one in default.log.events if one.operation.startswith("attention ")}
    assert seen == {"attention torch.float32, enable_gqa=False"}


def test_nothing_mixes_devices_in_plain_torch(monkeypatch):
    expect_same(count(monkeypatch, "torch", ratios=(0.7,), tokens=2))


def test_a_step_can_be_replayed_as_it_sends_nothing_and_waits_for_nothing(monkeypatch):
    replays = []

    def capture(step, device):
        steps = Steps.latest
        layers, logits = steps.cache.layers, torch.zeros(len(steps._ids), VOCAB, device=device)

        def replay():
            replays.append(len(logits))
            counted = [layer.count() for layer in layers]
            with pytest.MonkeyPatch.context() as patch:  # `send` refuses
                patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
                logits.copy_(step())
            for layer, before in zip(layers, counted, strict=True):
                layer.recount(before)

        for layer in layers:  # capturing runs the host's part only
            layer.recount(layer.count(1))
        return replay, logits

    class Steps(graphs.Steps):
        def __init__(self, *given):
            super().__init__(*given, capture=capture)

        def __call__(self, *given):
            Steps.latest = self
            return super().__call__(*given)

    for name, value in {"PATIENCE": 2, "WORTH": 3, "Steps": Steps}.items():
        monkeypatch.setattr(graphs, name, value)
    found = count(monkeypatch, "triton", ("restkv", "h2o"), (0.5,), tokens=8)
    expect_same(found)
    assert replays == [2] * 5  # two steps together, one to compare with
    expect_no_more(found, "growing")
    assert found.most("holding")[LAUNCH]


def expect_same(counted):
    for got, wanted in zip(counted.results, counted.expected, strict=True):
        assert got.token_ids == wanted.token_ids
        assert got.kept_tokens == wanted.kept_tokens
        assert got.letter_logits == pytest.approx(wanted.letter_logits, abs=1e-4)


def test_what_the_pretend_device_notes(monkeypatch):
    host = torch.arange(6)
    with pretending(monkeypatch) as log:
        copied = host.to(DEVICE)
        queued = host.pin_memory().to(DEVICE, non_blocking=True)
        total = (copied + queued).view(2, 3).sum(1)
        assert total.device == DEVICE
        assert total.tolist() == [6, 24]
        assert bool((total > 5).all())
        with pytest.raises(RuntimeError, match=r"cuda:0 and of the CPU \[\(6,\)\]"):
            copied * host
        assert (2 * copied[copied.new_tensor([1, 5])]).tolist() == [2, 10]
    assert torch.equal(host.to("cpu"), host)
    kinds = [one.kind for one in log.events]
    copies, sums, compared = [BLOCKING, QUEUED], [LAUNCH, LAUNCH, WAIT], [LAUNCH, LAUNCH, WAIT]
    assert kinds == [*copies, *sums, *compared, BLOCKING, LAUNCH, LAUNCH, WAIT]
