"""Numbers in few bits: what comes back, and how it is packed."""

from __future__ import annotations

import numpy as np
import pytest
import stored_oracle as oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.engine.quantize import (
    by_channel,
    by_token,
    from_channels,
    from_tokens,
    half_of,
    pack,
    unpack,
)
from tests.methods import golden_data

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BITS = [8, 4, 2]
#: Of a step: how far a number may lie from what comes back, for it is divided in float32.
HALF_A_STEP = 0.5 + 2e-5
NEAR = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.float16: {"rtol": 2e-3, "atol": 1e-6},
}


def drawn(seed, shape, dtype, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    spread = 10.0 ** torch.randint(-4, 2, shape[-1:], generator=generator)
    return (torch.randn(shape, generator=generator) * spread + offset * spread).to(dtype)


def exact(coded, codes):
    """Numbers of codes in float64, and how far apart neighbours are."""
    step, zero = coded.step.double(), coded.zero.double()
    return zero, step, codes.double()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(1, 1, 1), (3, 1, 7), (2, 5, 3), (1, 40, 13), (4, 8, 16)]),
    st.sampled_from(DTYPES),
    st.sampled_from(BITS),
    st.sampled_from([0.0, 1.0, -300.0]),
)
def test_a_key_comes_back_within_half_a_step(seed, shape, dtype, bits, offset):
    keys = drawn(seed, shape, dtype, offset)
    count = 1 + seed % shape[1]
    present = (torch.arange(shape[1]) < count).expand(shape[:2])
    coded = by_channel(keys.masked_fill(~present[..., None], 0), present, bits)
    assert coded.codes.shape == (*shape[:2], -(-shape[2] * bits // 8))
    assert coded.codes.dtype == torch.uint8
    assert coded.step.dtype == coded.zero.dtype == half_of(dtype)
    zero, step, codes = exact(coded, unpack(coded.codes, bits, shape[2]))
    off = (zero + codes * step - keys.double()).abs()[:, :count]
    assert (off <= HALF_A_STEP * step).all()
    own = keys[:, :count].double()
    widest = (own.amax(1) - own.amin(1)) / (2**bits - 1)
    large = own.abs().amax(1) * torch.finfo(half_of(dtype)).eps + 1e-7
    assert (step[:, 0] <= 1.01 * widest + large).all()  # and steps are no larger than they need be
    back = from_channels(coded, bits, shape[2], dtype)
    assert back.dtype == dtype
    if dtype != torch.bfloat16:  # which numpy has not
        own = [oracle.keys_back(each[:count].float().numpy(), bits) for each in keys]
        wanted = torch.from_numpy(np.stack(own)).to(dtype)
        torch.testing.assert_close(back[:, :count], wanted, **NEAR[dtype])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(1, 1), (3, 7), (5, 2, 33), (2, 64), (40, 16)]),
    st.sampled_from([1, 3, 8, 32]),
    st.sampled_from(DTYPES),
    st.sampled_from(BITS),
)
def test_a_value_comes_back_within_half_a_step(seed, shape, group, dtype, bits):
    values = drawn(seed, shape, dtype)
    coded = by_token(values, group, bits)
    dim, own = shape[-1], min(group, shape[-1])
    assert coded.codes.shape == (*shape[:-1], -(-dim * bits // 8))
    assert coded.step.shape == (*shape[:-1], -(-dim // own))
    of = torch.arange(dim) // own
    zero, step, codes = exact(coded, unpack(coded.codes, bits, dim))
    off = (zero[..., of] + codes * step[..., of] - values.double()).abs()
    assert (off <= HALF_A_STEP * step[..., of]).all()
    back = from_tokens(coded, bits, dim, group, dtype)
    assert back.shape == values.shape
    if dtype != torch.bfloat16:
        rows = values.float().reshape(-1, dim).numpy()
        wanted = torch.from_numpy(oracle.values_back(rows, bits, own)).view(shape).to(dtype)
        torch.testing.assert_close(back, wanted, **NEAR[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_equal_numbers_and_those_on_the_grid_come_back_as_they_were(bits, dtype):
    levels = 2**bits
    steps = torch.arange(levels, dtype=torch.float32)[torch.randperm(levels)]
    keys = torch.stack([steps * 0.5 - 3, torch.full((levels,), -0.75), torch.zeros(levels)], -1)
    keys = keys[None].to(dtype)
    coded = by_channel(keys, torch.ones(1, levels, dtype=torch.bool), bits)
    assert torch.equal(from_channels(coded, bits, 3, dtype), keys)
    values = keys[0].T.contiguous()
    assert torch.equal(
        from_tokens(by_token(values, levels, bits), bits, levels, levels, dtype), values
    )


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("n", [1, 3, 4, 7, 16, 129])
def test_bytes_are_those_of_numpy(bits, n):
    codes = torch.randint(0, 2**bits, (2, 3, n), dtype=torch.uint8)
    ones = np.unpackbits(codes.numpy()[..., None], axis=-1, bitorder="little")[..., :bits]
    wanted = np.packbits(ones.reshape(2, 3, -1), axis=-1, bitorder="little")
    packed = pack(codes, bits)
    assert np.array_equal(packed.numpy(), wanted)
    assert torch.equal(unpack(packed, bits, n), codes)


def test_numbers_that_float16_cannot_hold_are_refused_and_no_numbers_stay_none():
    large = torch.tensor([[[1e7], [2.0]]])
    every = torch.ones(1, 2, dtype=torch.bool)
    for code in (lambda x: by_channel(x, every, 4), lambda x: by_token(x, 8, 4)):
        with pytest.raises(ValueError, match=r"^cache=quantized stores steps in float16.*\.$"):
            code(large)
        with pytest.raises(ValueError, match="give dtype=bfloat16"):
            code(-large)
    assert (
        not from_channels(by_channel(large.bfloat16(), every, 4), 4, 1, torch.bfloat16)
        .isinf()
        .any()
    )
    broken = torch.tensor([[[torch.nan], [2.0]]])
    assert from_channels(by_channel(broken, every, 4), 4, 1, torch.float32).isnan().all()


KIVI = golden_data.cases("kivi")


@pytest.mark.parametrize("case", KIVI, ids=[case["id"] for case in KIVI])
def test_grids_are_those_of_the_authors(case):
    """Their float16 arithmetic rounds a step to the nearest, and codes by it; ours rounds it up."""
    params = case["params"]
    bits, group, length = (params[name] for name in ("bits", "group_size", "length"))
    keys = params["what"] == "keys"
    stored = golden_data.inputs(case["inputs"])["k" if keys else "v"][:, :, :length].half()
    dim = stored.shape[-1]
    codes, scale, least = (
        golden_data.output("kivi", case, name) for name in ("codes", "scale", "mn")
    )
    if keys:
        cut = stored.view(-1, group, dim)
        coded = by_channel(cut, torch.ones(cut.shape[:2], dtype=torch.bool), bits)
        theirs = codes.view(-1, group, dim), scale.view(-1, 1, dim), least.view(-1, 1, dim)
        back = coded.zero.double() + unpack(coded.codes, bits, dim).double() * coded.step.double()
    else:
        cut = stored.view(-1, dim // group, group)
        coded = by_token(stored.view(-1, dim), group, bits)
        theirs = codes.view(cut.shape), scale.view(*cut.shape[:2], 1), least.view(*cut.shape[:2], 1)
        coded = coded._replace(step=coded.step[..., None], zero=coded.zero[..., None])
        own = unpack(coded.codes, bits, dim).view(cut.shape)
        back = coded.zero.double() + own.double() * coded.step.double()
    assert torch.equal(coded.zero, theirs[2])
    bits_of = (coded.step.view(torch.int16) - theirs[1].view(torch.int16)).abs()
    assert bits_of.max() <= 1  # neighbours in float16
    assert (coded.step >= theirs[1]).double().mean() > 0.4
    found = unpack(coded.codes, bits, dim).view(cut.shape)
    off = (found.int() - theirs[0].int()).abs()
    assert off.max() <= 1
    assert (off > 0).double().mean() <= {8: 0.1, 4: 0.01, 2: 0.002}[bits]
    restored = theirs[2].double() + theirs[0].double() * theirs[1].double()
    worst, wanted = ((each - cut.double()).abs().max() for each in (back, restored))
    assert worst <= 1.02 * wanted
