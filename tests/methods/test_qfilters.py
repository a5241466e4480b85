"""Q-Filters: the formula in float64, and files of filters that are none."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import methods
from tests.methods.views import random_view


@pytest.fixture
def filters(tmp_path: Path) -> str:
    file = tmp_path / "filters.safetensors"
    drawn = torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(5))
    save_file({"q_filters": drawn, "other": torch.ones(1)}, file)
    return str(file)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recent", [0, 5])
def test_scores_are_products_whatever_the_queries_ask(filters, dtype, recent):
    view = random_view(dtype=dtype)
    asked = dataclasses.replace(view, queries=view.queries[:, :, :0])
    policy = methods.build("qfilters", filters=filters, recent=recent)
    assert policy.window == 0
    drawn = torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(5)).double()
    wanted = -torch.einsum("hld,hd->hl", view.keys[0].double(), drawn[view.layer])
    found = policy.score(asked, 12)[0]
    assert torch.allclose(found[:, : 41 - recent].double(), wanted[:, : 41 - recent], atol=1e-5)
    assert found[:, 41 - recent :].isposinf().all()
    best = wanted.masked_fill(torch.arange(41) >= 41 - recent, math.inf).topk(12).indices
    assert torch.equal(policy.keep(asked, 12)[0], best.sort(-1).values)
    for budget in (1, 2, 41):
        assert policy.keep(view, budget).shape == (1, 2, budget)


def test_a_filter_is_where_most_queries_do_not_point():
    generator = torch.Generator().manual_seed(3)
    lean = torch.tensor([[3.0, 0, 0, 0], [0, -3.0, 0, 0], [0, 0, 2.0, 2.0], [0, 0, 2.0, 2.0]])
    queries = torch.randn(4, 500, 4, generator=generator) * 0.3 + lean[:, None]
    found = methods.filters_of(queries, 2)
    half = 0.5 * torch.tensor([[-1.0, 1.0, 0, 0], [0, 0, -math.sqrt(2), -math.sqrt(2)]])
    assert torch.allclose(found, half, atol=0.02)
    assert torch.allclose(methods.filters_of(queries.flip(1) * 7, 2), found, atol=1e-5)
    assert torch.allclose(methods.filters_of(-queries, 2), -found, atol=1e-5)
    even = torch.tensor([[[2.0, 0], [1, 0], [-1, 0], [-1, 0]]])
    for turned in (even, even.flip(1)):
        assert torch.allclose(methods.filters_of(turned, 1), torch.tensor([[-1.0, 0]]))
        assert torch.allclose(methods.filters_of(-turned, 1), torch.tensor([[1.0, 0]]))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"filters": torch.ones(4, 2, 8)}, "holds no single tensor q_filters"),
        ({"q_filters": torch.ones(2, 8)}, "holds no single tensor q_filters"),
        ({"q_filters": torch.full((4, 2, 8), math.nan)}, "holds no single tensor q_filters"),
    ],
)
def test_what_is_no_filters_is_refused_in_a_sentence(tmp_path, tensors, said):
    save_file(tensors, tmp_path / "f.safetensors")
    for place in (tmp_path, tmp_path / "f.safetensors"):
        with pytest.raises(ValueError, match=said) as error:
            methods.build("qfilters", filters=str(place))
        assert "\n" not in str(error.value)


def test_places_without_filters_are_refused_in_a_sentence(tmp_path):
    (tmp_path / "text.safetensors").write_text("not tensors")
    for place, said in (("absent", "is no safetensors file"), ("text.safetensors", "cannot be")):
        with pytest.raises(ValueError, match=said) as error:
            methods.build("qfilters", filters=str(tmp_path / place))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="give the safetensors file"):
        methods.build("qfilters")


def test_filters_and_views_must_fit(filters):
    policy = methods.build("qfilters", filters=filters)
    for view in (random_view(num_layers=3), random_view(dim=6), random_view(kv_heads=3)):
        with pytest.raises(ValueError, match="are for 4 layers of 2 KV heads of size 8, this"):
            policy.keep(view, 4)
    for rule in ("adaptive", "global", "layers"):
        with pytest.raises(ValueError, match="qfilters: budget="):
            methods.build("qfilters", filters=filters, budget=rule)


def test_the_digest_of_the_filters_is_part_of_the_parameters(filters, tmp_path):
    policy = methods.build("qfilters", filters=filters)
    assert "@sha256:" in str(policy.params["filters"])
    save_file({"q_filters": torch.ones(4, 2, 8)}, filters)
    with pytest.raises(ValueError, match="has changed since it was chosen"):
        policy.keep(random_view(), 4)
