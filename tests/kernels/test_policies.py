"""Every method with its kernels against the same method in plain torch."""

from __future__ import annotations

import pytest
import torch

import methods
from methods import kernels
from tests.kernels.oracles import DEVICE
from tests.methods.matrix import VARIANTS
from tests.methods.views import random_view

BUDGETS = [17, 60]
slow = pytest.mark.slow
# Their kernels are compared at more sizes one by one; the interpreter takes 15 seconds for each.
REPEATED = {"restkv_relative", "restkv_official", "restkv_before", "restkv_wide"}
ONCE = [pytest.param(name, marks=slow) if name in REPEATED else name for name in VARIANTS]


def layer(seed, dtype=torch.float32, **changes):
    view = random_view(97, group=3, dim=20, seed=seed, sharpness=1.5, dtype=dtype, **changes)
    tensors = (view.keys, view.values, view.queries)
    return [each.to(DEVICE) for each in tensors], view, view.output_weight.to(DEVICE)


def view_of(tensors, like, weight, suffix=0, mask=None):
    """A fresh view, whose measurements nobody has made."""
    place = {"layer": like.layer, "num_layers": like.num_layers, "suffix": suffix, "mask": mask}
    return methods.LayerView(*tensors, like.scaling, weight, **place, rotation=like.rotation)


def scores(policy, view, choice):
    with kernels.using(choice):
        return torch.stack([policy.score(view, budget) for budget in BUDGETS])


def expect_equal(policy, make, rtol=1e-4):
    got, wanted = (scores(policy, make(), choice) for choice in ("triton", "torch"))
    assert torch.equal(got.isinf(), wanted.isinf())
    finite = wanted.isfinite()
    size = wanted[finite].abs().max() if finite.any() else 1.0
    torch.testing.assert_close(got[finite], wanted[finite], rtol=rtol, atol=float(rtol * size))


@pytest.mark.parametrize("variant", ONCE)
def test_scores_are_those_of_plain_torch(variant):
    name, params = VARIANTS[variant]
    tensors, like, weight = layer(seed=len(variant))
    expect_equal(methods.build(name, **params), lambda: view_of(tensors, like, weight))


@pytest.mark.parametrize("name", ["restkv", "snapkv", "criticalkv"])
def test_a_window_that_ends_with_the_question(name):
    policy = methods.build(name, window=9, window_anchor="question")
    tensors, like, weight = layer(seed=5)
    expect_equal(policy, lambda: view_of(tensors, like, weight, suffix=6))


@pytest.mark.parametrize(
    "name",
    [
        "restkv",
        "h2o",
        "tova",
        pytest.param("snapkv", marks=slow),
        pytest.param("criticalkv", marks=slow),
    ],
)
def test_images_that_look_ahead(name):
    position = torch.arange(97, device=DEVICE)
    image = (position >= 20) & (position < 50)
    mask = (position <= position[:, None]) | (image & image[:, None])
    tensors, like, weight = layer(seed=6)
    make = lambda: view_of(tensors, like, weight, mask=mask[None, None])  # noqa: E731
    expect_equal(methods.build(name), make)


@pytest.mark.parametrize("name", ["restkv", "snapkv", "h2o", "tova"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_nearly_the_same(name, dtype):
    tensors, like, weight = layer(seed=7, dtype=dtype)
    policy = methods.build(name, **({"window": 8} if name in ("restkv", "snapkv") else {}))
    kept = {}
    for choice in ("triton", "torch"):
        with kernels.using(choice):
            kept[choice] = policy.keep(view_of(tensors, like, weight), 40)
    same = (kept["triton"][..., None] == kept["torch"][..., None, :]).any(-1).float().mean()
    assert float(same) > 0.97
