"""Numbers in few bits: steps and zeros of groups, and codes packed into bytes.

Asymmetric, as in KIVI (arXiv 2402.02750): a number is zero + code * step. It must not know caches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Coded(NamedTuple):
    """Numbers [..., n] in few bits.

    codes: uint8 [..., ceil(n * bits / 8)]. step, zero: in half precision, broadcastable to the
    groups of [..., n].
    """

    codes: Tensor
    step: Tensor
    zero: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all three."""
        return self.codes.nbytes + self.step.nbytes + self.zero.nbytes


def half_of(dtype: torch.dtype) -> torch.dtype:
    """What steps and zeros of numbers of this dtype are stored in."""
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float16


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [..., n] below 2**bits as bytes [..., ceil(n * bits / 8)], the first lowest."""
    if bits == 8:
        return codes
    if 8 % bits:  # codes lie across bytes: one bit after the other
        return pack(_bits(codes)[..., :bits].flatten(-2), 1)
    each = 8 // bits
    rest = -codes.shape[-1] % each
    padded = torch.nn.functional.pad(codes, (0, rest)).unflatten(-1, (-1, each))
    packed = padded[..., 0].clone()
    for i in range(1, each):
        packed |= padded[..., i] << bits * i
    return packed


def _bits(codes: Tensor) -> Tensor:
    """Numbers uint8 [...] as their bits [..., 8], the lowest first."""
    return unpack(codes[..., None], 1, 8)


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """The first n codes [..., n] of each row of bytes."""
    if bits == 8:
        return packed
    if 8 % bits:
        alone = unpack(packed, 1, n * bits).unflatten(-1, (n, bits))
        return pack(alone, 1)[..., 0]
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    codes = (packed[..., None] >> shifts) & (2**bits - 1)
    return codes.flatten(-2)[..., :n]


def grid(low: Tensor, high: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Step and zero in `dtype`, so that zero <= low and zero + (2**bits - 1) * step >= high.

    They are rounded outwards, so that no number lies off the grid and none is further than half a
    stored step from it. low, high: float32 or float64.
    """
    zero = _rounded(low, dtype, -torch.inf)
    step = _rounded((high - zero.to(high.dtype)) / (2**bits - 1), dtype, torch.inf)
    return step, zero


def _rounded(numbers: Tensor, dtype: torch.dtype, towards: float) -> Tensor:
    """Numbers in `dtype`, none on the other side of itself than `towards`."""
    near = numbers.to(dtype)
    back = near.to(numbers.dtype)
    missed = back > numbers if towards < 0 else back < numbers
    return torch.where(missed, torch.nextafter(near, torch.full_like(near, towards)), near)


def encode(numbers: Tensor, step: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Codes uint8 of numbers (float32 or float64) on their grids, the nearest ones."""
    step, zero = step.to(numbers.dtype), zero.to(numbers.dtype)
    steps = (numbers - zero) / torch.where(step > 0, step, 1)
    return steps.round_().clamp_(0, 2**bits - 1).to(torch.uint8)


def decode(codes: Tensor, step: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers of codes, computed in float32, in `dtype`."""
    return torch.addcmul(zero.float(), codes.float(), step.float()).to(dtype)


def by_channel(keys: Tensor, present: Tensor, bits: int) -> Coded:
    """Keys [P, n, d] of P groups of entries, one grid a channel; bool present [P, n].

    Absent entries do not count.
    """
    numbers = _computed(keys)
    low = numbers.masked_fill(~present[..., None], torch.inf).amin(1, keepdim=True)
    high = numbers.masked_fill(~present[..., None], -torch.inf).amax(1, keepdim=True)
    step, zero = _held(keys, *grid(low, high, bits, half_of(keys.dtype)))
    return Coded(pack(encode(numbers, step, zero, bits), bits), step, zero)


def from_channels(coded: Coded, bits: int, dim: int, dtype: torch.dtype) -> Tensor:
    """Keys [P, n, dim] that `by_channel` coded."""
    return decode(unpack(coded.codes, bits, dim), coded.step, coded.zero, dtype)


def by_token(values: Tensor, group: int, bits: int) -> Coded:
    """Values [..., dv], one grid for every `group` neighbouring channels of an entry."""
    numbers, dim = _computed(values), values.shape[-1]
    grouped = _grouped(numbers, group)
    low, high = grouped.amin(-1), grouped.amax(-1)
    step, zero = _held(values, *grid(low, high, bits, half_of(values.dtype)))
    codes = encode(grouped, step[..., None], zero[..., None], bits).flatten(-2)[..., :dim]
    return Coded(pack(codes, bits), step, zero)


def from_tokens(coded: Coded, bits: int, dim: int, group: int, dtype: torch.dtype) -> Tensor:
    """Values [..., dim] that `by_token` coded."""
    codes = _grouped(unpack(coded.codes, bits, dim), group)
    found = decode(codes, coded.step[..., None], coded.zero[..., None], dtype)
    return found.flatten(-2)[..., :dim]


def _held(numbers: Tensor, step: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """Step and zero; ValueError where numbers of a wider dtype are larger than theirs holds."""
    if step.dtype != numbers.dtype:  # else each is as large as a number is
        infinite = (step.isinf() | zero.isinf()).any()
        if bool(infinite & numbers.isfinite().all()):
            raise ValueError(
                "cache=quantized stores steps in float16, and keys or values are larger than that "
                "holds; give dtype=bfloat16, or cache=full_precision."
            )
    return step, zero


def _grouped(numbers: Tensor, group: int) -> Tensor:
    """Numbers [..., n] as [..., groups, group]; the last one repeats the last number."""
    dim = numbers.shape[-1]
    own = min(group, dim)
    rest = -dim % own
    if rest:
        last = numbers[..., -1:].expand(*numbers.shape[:-1], rest)
        numbers = torch.cat([numbers, last], -1)
    return numbers.unflatten(-1, (-1, own))


def _computed(numbers: Tensor) -> Tensor:
    return numbers if numbers.dtype == torch.float64 else numbers.float()
