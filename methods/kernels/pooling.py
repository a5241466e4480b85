"""Scores pooled over neighbouring tokens. Must not know where the scores come from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .launch import by_triton, capability, jit, launch, tl, triton
from .upload import send, upload


def pool(scores: Tensor, windows: Sequence[int], kind: str, kernel: int) -> Tensor:
    """Pool the scores of the first L - window tokens, for each window; float32 [windows, ..., L].

    scores [..., L]. avg counts zeros beyond the ends, max ignores them, edge is an average that
    repeats the end values. kernel: an odd number of tokens. What lies inside a window is not
    meaningful in the result.
    """
    if by_triton(scores[..., None]):
        lines = scores.reshape(1, -1, scores.shape[-1])
        pooled = _by_triton(lines, windows, kind, kernel // 2)
        return pooled.view(len(windows), *scores.shape)
    half = kernel // 2
    source, outside = _neighbours(scores.shape[-1], tuple(windows), half, scores.device)
    padded = scores[..., source]  # [..., windows, L + 2 * half]
    if kind != "edge":
        padded = padded.masked_fill(outside, -torch.inf if kind == "max" else 0.0)
    taps = padded.unfold(-1, kernel, 1)
    return (taps.amax(-1) if kind == "max" else taps.mean(-1)).movedim(-2, 0)


def pool_adaptive(
    scores: Tensor, windows: Sequence[int], kernels: Tensor, shifts: Tensor
) -> Tensor:
    """Average over a window of its own width and shift for each head; float32 [windows, B, H, L].

    scores [B, H, L]; kernels (odd) and shifts, in tokens, [windows, B, H]. A positive shift
    averages over higher positions. End values are repeated.
    """
    if by_triton(scores[..., None]):
        return _by_triton(scores, windows, "adaptive", 0, kernels, shifts)
    length = scores.shape[-1]
    half = kernels // 2
    reach = int((half + shifts.abs()).max())
    source, _ = _neighbours(length, tuple(windows), reach, scores.device)
    padded = scores[..., source].movedim(-2, 0)  # [windows, B, H, L + 2 * reach]
    offsets = torch.arange(-reach, reach + 1, device=scores.device)
    inside = (offsets - shifts[..., None]).abs() <= half[..., None]
    weights = inside / kernels[..., None].float()  # [windows, B, H, 2 * reach + 1]
    # One pass a tap: unfolding instead would need the widest window for every token at once.
    pooled = padded[..., :length] * weights[..., :1]
    for tap in range(1, 2 * reach + 1):
        pooled.addcmul_(padded[..., tap : tap + length], weights[..., tap : tap + 1])
    return pooled


@lru_cache(maxsize=64)
def _neighbours(
    length: int, windows: tuple[int, ...], half: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Positions -half..L + half - 1 moved into the candidate range, and where that changed them."""
    position = torch.arange(-half, length + half)
    last = torch.tensor([length - window - 1 for window in windows])[:, None]
    source = position.clamp(min=0).minimum(last)
    return send(source, device), send(source != position, device)


def _config(capability: int) -> dict[str, int]:
    """Launch parameters: small tiles, since a layer's scores are few."""
    return {"BLOCK": 1024, "num_warps": 4}


def _by_triton(
    scores: Tensor,
    windows: Sequence[int],
    kind: str,
    half: int,
    kernels: Tensor | None = None,
    shifts: Tensor | None = None,
) -> Tensor:
    """scores [B, H, L]; half: of a fixed window. Every token of every plan in one launch."""
    batch, heads, length = scores.shape
    plans = len(windows)
    config = _config(capability(scores.device))
    pooled = torch.empty(plans, batch, heads, length, dtype=torch.float32, device=scores.device)
    launch(
        _pool_kernel,
        (triton.cdiv(length, config["BLOCK"]), batch * heads, plans),
        scores,
        upload(windows, scores.device),
        kernels,
        shifts,
        pooled,
        length,
        heads,
        half,
        *scores.stride(),
        *((0, 0, 0) if kernels is None else kernels.stride()),
        *((0, 0, 0) if shifts is None else shifts.stride()),
        KIND=kind,
        **config,
    )
    return pooled


@jit
def _pool_kernel(
    scores,
    windows,
    kernels,
    shifts,
    pooled,
    length,
    heads,
    half,
    s_batch,
    s_head,
    s_key,
    k_plan,
    k_batch,
    k_head,
    h_plan,
    h_batch,
    h_head,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One tile of tokens of one head and plan; the taps come from the cache, one after another."""
    plan = tl.program_id(2)
    batch = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    last = length - tl.load(windows + plan) - 1
    line = scores + batch.to(tl.int64) * s_batch + head.to(tl.int64) * s_head
    shift = 0
    width = 2 * half + 1
    if KIND == "adaptive":
        at = plan * k_plan + batch * k_batch + head * k_head
        width = tl.load(kernels + at).to(tl.int32)
        at = plan * h_plan + batch * h_batch + head * h_head
        shift = tl.load(shifts + at).to(tl.int32)
    first = shift - width // 2
    total = tl.full([BLOCK], float("-inf") if KIND == "max" else 0.0, tl.float32)
    for tap in range(first, first + width):
        source = token + tap
        if KIND == "max":
            inside = (source >= 0) & (source <= last)
            value = tl.load(line + source * s_key, mask=inside, other=float("-inf"))
            total = tl.maximum(total, value.to(tl.float32))
        elif KIND == "avg":
            inside = (source >= 0) & (source <= last)
            total += tl.load(line + source * s_key, mask=inside, other=0.0).to(tl.float32)
        else:
            source = tl.maximum(tl.minimum(source, last), 0)
            total += tl.load(line + source * s_key).to(tl.float32)
    if KIND != "max":
        total = total / width
    total = tl.where(token <= last, total, 0.0)  # a window has no score of its own
    out = plan.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(pooled + out * length + token, total, mask=token < length)
