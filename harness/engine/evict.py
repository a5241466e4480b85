"""`with harness.evict(model, "restkv", ratio=0.9): model.generate(**inputs)`.

Replaces `generate` of one model object for the length of the block; the prompt's cache is compacted
once, then transformers decodes as always. It must not know prompts' messages, tasks or scoring.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

import methods
from harness.engine.attention import listening
from harness.engine.branch import Sequel, compact_layer
from harness.engine.cache import CompactLayer
from harness.engine.cells import Cell, on_top, plan, rotary_use
from harness.engine.inputs import check, check_boundary, first_part, position_ids
from harness.engine.layout import Layout, prepare
from harness.engine.passes import forward
from harness.engine.prefill import Capture
from harness.engine.rotary import Rotary, forget_lengths
from harness.engine.selfcheck import check_split
from harness.engine.settings import PROTOCOLS, Branch, NotFinite
from harness.models.precision import rerun
from harness.models.prompts import told
from harness.settings import labels
from methods.kernels import require, using

_REFUSED = (
    "past_key_values", "inputs_embeds", "assistant_model", "prompt_lookup_num_tokens",
    "assistant_early_exit", "cache_implementation", "cache_config", "custom_generate",
    "negative_prompt_ids",
)  # fmt: skip


class Evictor:
    """Listens to one generate call: captures the first `boundary` tokens, evicts, then attends."""

    def __init__(
        self, layout: Layout, cache: Cache, cell: Cell, capture: Capture, sequel: Sequel
    ) -> None:
        self.layout = layout
        self.cache = cache
        self.cell = cell
        self.capture = capture
        self.sequel = sequel
        self.told = False
        self.fresh: set[int] = set()  # layers from which this pass evicted
        self.peaks: list[Tensor] = []  # what has to be numbers for the answer to mean anything

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> Tensor | None:
        """During prefill measure and evict, afterwards attend to what is left; [1, q, H, dv]."""
        layer = self.layout.find(module)
        if layer is None:
            return self._share(module, query, scaling)
        stored = self.cache.layers[layer.index]
        if isinstance(stored, CompactLayer):
            self.fresh.discard(layer.index)
            return stored.attend(query, key, value, scaling)
        self.capture.attend(module, query, key, value, mask, scaling)
        self.capture.finish()
        (chosen,) = self.capture.selections[layer.rank].values()
        self._tell(chosen[self.cell.count].fallback)
        peak = chosen[self.cell.count].peak
        self.peaks += [] if peak is None else [peak]
        rotary = self.sequel.rotary
        sequel = replace(self.sequel, turns=rotary.now) if rotary else self.sequel
        self.cache.layers[layer.index] = compact_layer(
            stored, [chosen[self.cell.count]], [self.cell], layer, self.layout, sequel
        )
        self.fresh.add(layer.index)
        return None

    def _share(self, module: nn.Module, query: Tensor, scaling: float) -> Tensor | None:
        """Queries of a layer that shares the keys of another; in the pass that evicts from that
        one they still see all of them.
        """
        donor = self.layout.shared.get(id(module))
        if donor is None or donor.index in self.fresh:
            return None
        stored = self.cache.layers[donor.index]
        assert isinstance(stored, CompactLayer)
        return stored.share(query, scaling)

    def _tell(self, fallback: str | None) -> None:
        """Warn, once a call, that the method's own pattern did not fit."""
        if fallback and not self.told:
            self.told = True
            name = getattr(self.cell.branch.policy, "name", "the method")
            warnings.warn(f"{name} did not fit this prompt and budget: {fallback}", stacklevel=2)

    def check(self, model: PreTrainedModel) -> None:
        """NotFinite unless the prompt's logits and the scores of its tokens are numbers."""
        if self.peaks and not all(map(isfinite, torch.stack(self.peaks).tolist())):
            dtype = str(model.dtype).removeprefix("torch.")
            raise NotFinite(
                f"the prompt's logits or the scores of its tokens are not finite (NaN or infinite) "
                f"in {dtype}, so what is kept of it means nothing: {rerun(dtype)}."
            )


@contextmanager
def evict(
    model: PreTrainedModel,
    method: str | methods.Policy,
    *,
    ratio: float | None = None,
    budget: int | None = None,
    protocol: str = "replay",
    context: int | None = None,
    rule: str | None = None,
    kernels: str = "auto",
    **params: object,
) -> Iterator[PreTrainedModel]:
    """Compress the prompt's cache in every `model.generate` call inside the block.

    method: a name with its parameters, a label of conf/method such as restkv_nospatial, or a
    policy. ratio: fraction of the prompt's entries
    evicted; budget: entries kept instead. protocol: `replay` (evict after all prompt tokens but
    the last), `context` (after the last image, or the first `context` tokens of the prompt) or
    `paper` (after the whole prompt). rule: the method's parameter `budget` (uniform, pyramid or
    adaptive), whose name is taken here. kernels: auto, triton or torch, see methods.kernels.using.
    One prompt at a time, no beams. ValueError, one sentence, for what does not fit, for a plain
    call of the model, which would keep everything, and where the scores that decide what is kept
    are not finite. The logits of new tokens, and what is done with a NaN among them, are generate's
    affair.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r} is unknown; choose one of {', '.join(PROTOCOLS)}.")
    if context is not None and (protocol != "context" or context < 1):
        raise ValueError(
            f"context={context} is how many tokens are read before the eviction under "
            "protocol=context; give both, or leave context out."
        )
    if isinstance(method, str):
        method, preset = labels.resolve(method)
        params = {**preset, **params}
    if rule is not None:
        params["budget"] = rule
    if not isinstance(method, str) and params:
        raise ValueError(
            f"{', '.join(params)} cannot change a built policy; give the method's name."
        )
    policy = methods.build(method, **params) if isinstance(method, str) else method
    if policy.params.get("window_anchor") == "question":
        raise ValueError(
            "window_anchor=question needs to know where the question ends, which generate is not "
            "told; use window_anchor=end."
        )
    require(kernels, model.device)
    branch = Branch(policy, ratio, budget)
    if "generate" in vars(model):
        raise ValueError(
            f"generate of this {type(model).__name__} is already replaced; leave the other "
            "harness.evict block first."
        )
    before = model.config._attn_implementation
    layout = prepare(model)
    generate = model.generate

    running = False

    def compressed(inputs: Tensor | None = None, **kwargs: Any) -> Any:
        nonlocal running
        running = True
        try:
            with using(kernels):
                return _generate(model, generate, layout, branch, protocol, context, inputs, kwargs)
        finally:
            running = False

    def refuse(*given: object) -> None:
        if not running:
            raise ValueError(
                "a plain call of the model inside harness.evict would keep everything; call "
                "generate, or leave the block."
            )

    hook = model.register_forward_pre_hook(refuse)
    model.generate = compressed
    try:
        yield model
    finally:
        hook.remove()
        del model.generate  # the class's own comes back
        model.set_attn_implementation(before)


def _generate(
    model: PreTrainedModel,
    generate: Callable[..., Any],
    layout: Layout,
    branch: Branch,
    protocol: str,
    context: int | None,
    inputs: Tensor | None,
    kwargs: dict[str, Any],
) -> Any:
    _refuse(model, kwargs)
    if inputs is not None:
        kwargs["input_ids"] = inputs
    tensors = {name: v for name, v in kwargs.items() if isinstance(v, Tensor)}
    if "input_ids" not in tensors:
        raise ValueError("generate was given no input_ids; give one prompt of shape [1, length].")
    check(tensors)
    ids = tensors["input_ids"]
    kinds = told(model, ids[0], tensors.get("mm_token_type_ids"))
    boundary = _boundary(protocol, kinds, context)
    check_boundary(kinds, boundary)
    assert branch.policy is not None  # built by `evict`
    cache = DynamicCache(config=model.config)
    (cell,) = plan([branch], boundary)
    requests = [(branch.policy, [cell.count])]
    rotary = Rotary(model, layout, use) if (use := rotary_use([branch.policy])) else None
    capture = Capture(layout, requests, kinds[:boundary], rotary=rotary)
    tail = kinds.shape[0] - boundary
    sequel = Sequel(kinds[:boundary], tail, on_top(protocol, tail), rotary)
    evictor = Evictor(layout, cache, cell, capture, sequel)
    following = rotary.following() if rotary else nullcontext()
    positions = position_ids(model, tensors, kinds)
    forget_lengths(model)
    check_split(model, layout, tensors, positions, kinds, boundary, generate)
    forget_lengths(model)
    with torch.no_grad(), listening(evictor), following:
        kwargs["position_ids"] = positions
        if boundary < ids.shape[1]:
            part = first_part(tensors, boundary)
            logits = forward(model, layout, cache, kwargs["position_ids"][..., :boundary], **part)
            evictor.peaks.append(logits.amax())
            evictor.check(model)
            kept = ("input_ids", "attention_mask", "position_ids")
            kwargs = {name: v for name, v in kwargs.items() if name not in tensors or name in kept}
        answer = generate(**_own_cache(model, kwargs), past_key_values=cache)
        evictor.check(model)
        return answer


def _own_cache(model: PreTrainedModel, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of generate without a kind of cache that the model's settings name."""
    settings = kwargs.get("generation_config") or model.generation_config
    if getattr(settings, "cache_implementation", None) is None:
        return kwargs
    settings = copy.copy(settings)
    settings.cache_implementation = None
    return {**kwargs, "generation_config": settings}


def _boundary(protocol: str, kinds: Tensor, context: int | None) -> int:
    """Tokens in the cache at eviction, for the modality [L] of a prompt."""
    if context is not None:
        if context >= kinds.shape[0]:
            raise ValueError(
                f"context={context} leaves nothing of a prompt of {kinds.shape[0]} tokens to read "
                "after the eviction; give fewer."
            )
        return context
    if protocol == "paper":
        return kinds.shape[0]
    if protocol == "replay":
        return kinds.shape[0] - 1
    images = kinds.nonzero()
    if not len(images) or int(images[-1]) + 1 == kinds.shape[0]:
        raise ValueError(
            "protocol=context needs an image before the question and this prompt has none; give "
            "context=TOKENS, or use protocol=replay."
        )
    return int(images[-1]) + 1


def _refuse(model: PreTrainedModel, kwargs: dict[str, Any]) -> None:
    for name in _REFUSED:
        if kwargs.get(name) is not None:
            raise ValueError(f"{name} does not work inside harness.evict; leave it out.")
    settings = kwargs.get("generation_config") or model.generation_config
    uncached = kwargs.get("use_cache", getattr(settings, "use_cache", True)) is False
    if uncached or kwargs.get("prefill_chunk_size") is not None:
        name = "use_cache=False" if uncached else "prefill_chunk_size"
        raise ValueError(f"{name} does not work inside harness.evict; leave it out.")
    for name in ("num_beams", "num_return_sequences", "guidance_scale"):
        value = kwargs.get(name) or getattr(settings, name, None)
        if value not in (None, 1):
            raise ValueError(f"{name}={value!r} does not work inside harness.evict; give 1.")
