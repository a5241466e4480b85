"""A row answered on the pretend device, with what each part of it asks of a GPU."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakSet

import pretend_cuda
import pytest
import tiny_models
import torch
from pretend_tensors import BLOCKING, DEVICE, KINDS, WAIT, Log, Pretended

import methods
from harness.engine import Branch, BranchResult, Engine, Generation
from harness.engine import branch as branch_module
from harness.engine import sharing as sharing_module
from harness.engine.cache import CompactLayer
from harness.engine.capture import Capture
from harness.engine.decode import Decoder

KIND = "qwen"
LETTERS = ("A", "B")
RATIOS = (0.5, 0.7, 0.8, 0.9, 0.95)
_REST = {
    "restkv": {},
    "restkv_mean": {"temporal": "mean"},
    "restkv_nospatial": {"spatial": "none"},
    "restkv_neither": {"temporal": "mean", "spatial": "none"},
    "restkv_relative": {"relative_scale": 0.06},
}
_OTHERS = {
    "random": {},
    "streaming_llm": {},
    "snapkv": {"window": 6},
    "h2o": {},
    "tova": {},
    "lacache": {"start": 2},  # half the layers, as published: one entry a step
}
DEFAULT = (*_OTHERS, *_REST)  # the methods of the default sweep


@dataclass
class Counted:
    """Results on the pretend device and on the CPU, and what the former asked for."""

    results: list[BranchResult]
    expected: list[BranchResult]
    log: Log

    def most(self, phase: str) -> dict[str, int]:
        """The most of each kind in a phase, or in any one of the steps of this name."""
        found: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        for one in self.log.events:
            if phase in (one.phase, one.phase.rpartition(" ")[0]):
                found[one.kind][one.phase] += 1
        return {kind: max(each.values(), default=0) for kind, each in found.items()}

    def blocking(self) -> Counter[str]:
        """Lines of this project, without those of the model, at which the host waits in a row."""
        events = [one for one in self.log.events if one.kind in (WAIT, BLOCKING)]
        return Counter(one.where for one in events if " < " not in one.where)


def branches(names: Sequence[str], ratios: Sequence[float]) -> list[Branch]:
    """The full cache, and every method at every ratio."""
    policies = [
        methods.build("restkv", window=6, **_REST[name])
        if name in _REST
        else methods.build(name, **_OTHERS[name])
        for name in names
    ]
    return [Branch(), *(Branch(policy, ratio) for policy in policies for ratio in ratios)]


def count(
    monkeypatch: pytest.MonkeyPatch,
    kernels: str,
    names: Sequence[str] = DEFAULT,
    ratios: Sequence[float] = RATIOS,
    tokens: int = 4,
    layers: int = 3,
) -> Counted:
    """Answer two rows of different lengths and note what the second asks of the device.

    The first, of one token, pays what is paid once. Phases: prefill, score, compact, and steps with
    their number, "holding 2" where a policy evicts and "growing 3" elsewhere; "widening" before it
    where a batch is new or tiles are added.
    """
    model = _model(layers)
    loaded = tiny_models.wrap(model)
    cells = branches(names, ratios)
    prompts = [_shorter(tiny_models.make_prompt(KIND, seed), seed) for seed in (1, 0)]
    wanted = Generation(tokens)
    expected = Engine(loaded, kernels="torch").run(prompts[1], cells, wanted, LETTERS)
    loaded = copy.copy(loaded)
    loaded.device = DEVICE
    with monkeypatch.context() as patch, pretend_cuda.pretending(monkeypatch) as log:
        pretend_cuda.place(model)
        if kernels == "triton":
            pretend_cuda.stand_in_for_kernels(patch)
        _name_phases(patch, log)
        for name in ("run", "prefilled"):  # inference mode hides what operations are made of
            patch.setattr(Engine, name, getattr(Engine, name).__wrapped__)
        engine = Engine(loaded, kernels=kernels)
        for prompt in prompts:
            on_device = {name: Pretended(x) for name, x in prompt.inputs.items()}
            prompt.inputs, prompt.modality = on_device, Pretended(prompt.modality)
            log.events.clear()
            how = wanted if prompt is prompts[1] else Generation(1)
            results = engine.run(prompt, cells, how, LETTERS)
    return Counted(results, expected, log)


def _model(layers: int) -> torch.nn.Module:
    model = tiny_models.BUILDERS[KIND]()
    del model.model.language_model.layers[layers:]
    model.config.get_text_config().num_hidden_layers = layers
    return model


def _shorter(prompt, tokens: int):
    """The prompt without so many of its last tokens."""
    if tokens:
        for name in ("input_ids", "mm_token_type_ids"):
            prompt.inputs[name] = prompt.inputs[name][:, :-tokens]
        prompt.modality = prompt.modality[:-tokens]
    return prompt


def _name_phases(patch: pytest.MonkeyPatch, log: Log) -> None:
    def named(owner, name: str, phase: str) -> None:
        original = getattr(owner, name)

        def run(*args, **options):
            with log.during(phase):
                return original(*args, **options)

        patch.setattr(owner, name, run)

    named(sharing_module, "prefill", "prefill")
    named(Capture, "_select", "score")
    named(branch_module, "build", "compact")
    original, numbers, met = Decoder._step, itertools.count(1), WeakSet()

    def step(self, cache, ids, positions):
        layer = next(each for each in cache.layers if isinstance(each, CompactLayer))
        kind = "holding" if layer.holders else "growing"
        if cache not in met or _widens(layer, ids.shape[1]):
            kind = f"widening {kind}"
        met.add(cache)
        with log.during(f"{kind} {next(numbers)}"):
            return original(self, cache, ids, positions)

    patch.setattr(Decoder, "_step", step)


def _widens(layer: CompactLayer, new: int) -> bool:
    """Whether some sequence needs a tile for so many more tokens."""
    tiles = layer.tiles
    return bool((tiles.counts + new > (tiles.table >= 0).sum(1) * tiles.size).any())
