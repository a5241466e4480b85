"""`with harness.evict(model, "restkv", ratio=0.9): model.generate(**inputs)`.

Replaces `generate` of one model object for the length of the block; the prompt's cache is compacted
once, then transformers decodes as always. It must not know prompts' messages, tasks or scoring.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import methods
from harness.engine.attention import listening
from harness.engine.branch import Sequel
from harness.engine.capture import Capture
from harness.engine.cells import on_top, plan, rotary_use
from harness.engine.evictor import Evictor
from harness.engine.inputs import check, check_boundary, first_part, position_ids
from harness.engine.layout import Layout, prepare
from harness.engine.passes import forward
from harness.engine.rotary import Rotary, forget_lengths
from harness.engine.selfcheck import check_split
from harness.engine.settings import PROTOCOLS, Branch
from harness.engine.sparsity import Sparsity, check_rows
from harness.models.prompts import told
from harness.settings import caches, labels
from harness.settings.grid import FULL
from harness.sparse import DENSE, Pattern, build
from methods.kernels import require, using

_REFUSED = (
    "past_key_values", "inputs_embeds", "assistant_model", "prompt_lookup_num_tokens",
    "assistant_early_exit", "cache_implementation", "cache_config", "custom_generate",
    "negative_prompt_ids",
)  # fmt: skip


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
    prefill: str | Pattern = DENSE,
    kernels: str = "auto",
    **params: object,
) -> Iterator[PreTrainedModel]:
    """Compress the prompt's cache in every `model.generate` call inside the block.

    method: a name with its parameters, a label of conf/method such as restkv_nospatial, or a
    policy. ratio: fraction of the prompt's entries evicted; budget: entries kept instead. protocol:
    `replay` (evict after all prompt tokens but the last), `context` (after the last image, or the
    first `context` tokens of the prompt) or `paper` (after the whole prompt). rule: the method's
    parameter `budget` (uniform, pyramid, adaptive, global or layers), whose name is taken here.
    prefill: dense, or how the prompt attends sparsely: a name of `harness.sparse.names` with its
    published parameters, or a pattern of `harness.sparse.build`. kernels: auto, triton or torch,
    see methods.kernels.using. cache="quantized", "pq_keys" or "host_values", with cache_bits and
    so on as of `harness.settings.caches`, says how what is kept is stored; method="full" evicts
    nothing and needs no ratio. One prompt at a time, no beams. ValueError, one sentence, for what
    does not fit, for a plain call of the model, which would keep everything, and where the scores
    that decide what is kept are not finite. The logits of new tokens, and what is done with a NaN
    among them, are generate's affair.
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
    params, cache = caches.parted(params)
    if not isinstance(method, str) and params:
        raise ValueError(
            f"{', '.join(params)} cannot change a built policy; give the method's name."
        )
    policy = methods.build(method, **params) if isinstance(method, str) else method
    _check_policy(policy, protocol)
    require(kernels, model.device)
    pattern = build(prefill) if isinstance(prefill, str) else prefill
    check_rows(pattern, [policy])
    if policy.name == FULL and budget is None:
        ratio = ratio or 0.0
    branch = Branch(policy, ratio, budget, cache)
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
                how = (layout, branch, protocol, context, pattern)
                return _generate(model, generate, *how, inputs, kwargs)
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


def _check_policy(policy: methods.Policy, protocol: str) -> None:
    if policy.params.get("window_anchor") == "question":
        raise ValueError(
            "window_anchor=question needs to know where the question ends, which generate is not "
            "told; use window_anchor=end."
        )
    if policy.recites is not None:
        raise ValueError(
            f"{policy.name} has the model repeat the context, for which generate knows no words; "
            f"run it as method={policy.name}, or choose another method."
        )
    if policy.waits and protocol == "paper":
        raise ValueError(
            f"budget={policy.params['budget']} chooses when every layer has read the prompt, and "
            "under protocol=paper generate reads its last token and answers in one go; use "
            "protocol=replay or context."
        )


def _generate(
    model: PreTrainedModel,
    generate: Callable[..., Any],
    layout: Layout,
    branch: Branch,
    protocol: str,
    context: int | None,
    pattern: Pattern | None,
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
    sparse = Sparsity(layout, pattern) if pattern else None
    marked = boundary if context is not None else _pictured(kinds[:boundary])
    check_rows(pattern, [branch.policy], behind=0 if marked is None else boundary - marked)
    seen = kinds[:boundary]
    capture = Capture(layout, requests, seen, rotary=rotary, sparse=sparse, context=marked)
    tail = kinds.shape[0] - boundary
    sequel = Sequel(kinds[:boundary], tail, on_top(protocol, tail), rotary)
    evictor = Evictor(layout, cache, cell, capture, sequel)
    following = rotary.following() if rotary else nullcontext()
    positions = position_ids(model, tensors, kinds)
    forget_lengths(model)
    check_split(model, layout, tensors, positions, kinds, boundary, generate)
    forget_lengths(model)
    with torch.no_grad(), listening(evictor), capture.hearing(), following:
        kwargs["position_ids"] = positions
        if boundary < ids.shape[1]:
            part = first_part(tensors, boundary)
            logits = forward(model, layout, cache, kwargs["position_ids"][..., :boundary], **part)
            evictor.settle()
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
    pictured = _pictured(kinds)
    if pictured is None or pictured == kinds.shape[0]:
        raise ValueError(
            "protocol=context needs an image before the question and this prompt has none; give "
            "context=TOKENS, or use protocol=replay."
        )
    return pictured


def _pictured(kinds: Tensor) -> int | None:
    """Tokens up to the end of the last image, for a modality [L]; None without one."""
    images = kinds.nonzero()
    return int(images[-1]) + 1 if len(images) else None


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
