"""HeadKV: budgets of heads against plain arithmetic, and the files they are read from."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from safetensors.torch import save_file

import methods
from methods.budgets import weighted
from methods.importance import load
from tests.methods.matrix import heads
from tests.methods.views import batched, random_view

LAYERS, KV, GROUP, LENGTH = 4, 2, 2, 41


def drawn(seed: int = 3) -> torch.Tensor:
    return torch.randn(LAYERS, KV * GROUP, generator=torch.Generator().manual_seed(seed)).exp()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("heads") / "importance.safetensors"
    save_file({"head_scores": drawn()}, file)
    return str(file)


def views(length: int = LENGTH, **more) -> list[methods.LayerView]:
    return [random_view(length, layer=n, seed=n, sharpness=2.0, **more) for n in range(LAYERS)]


def shared_out(shares: list[Fraction], count: int, room: int, beta: str) -> list[Fraction]:
    """What each head is to keep, no whole number: filled up one head after the other, exactly."""
    pool = math.floor(count / Fraction(beta))
    fixed: dict[int, int] = {}
    while True:
        rest = [head for head in range(len(shares)) if head not in fixed]
        left = count * len(shares) - room * len(fixed) - (count - pool) * len(rest)
        weight = sum(shares[head] for head in rest)
        sizes = {
            head: count
            - pool
            + left * (shares[head] / weight if weight else Fraction(1, len(rest)))
            for head in rest
        }
        over = [head for head, size in sizes.items() if size > room]
        if not over:
            return [Fraction(fixed.get(head, sizes.get(head, 0))) for head in range(len(shares))]
        fixed |= dict.fromkeys(over, room)


@pytest.mark.parametrize("beta", ["1", "1.005", "1.1", "1.5", "10", "1000000"])
@pytest.mark.parametrize(("count", "room"), [(0, 9), (1, 1), (1, 400), (9, 10), (110, 400)])
def test_budgets_follow_the_formula_and_keep_the_total(beta, count, room):
    for seed, zeros in ((0, 0), (1, 3), (2, 11)):
        scores = (
            torch.randn(12, generator=torch.Generator().manual_seed(seed)).mul(2).exp().double()
        )
        scores[:zeros] = 0.0
        shares = tuple((scores / scores.sum()).tolist())
        found = weighted(shares, count, room, float(beta))
        wanted = shared_out([Fraction(share) for share in shares], count, room, beta)
        assert sum(found) == 12 * count
        assert all(0 <= own <= room for own in found)
        assert all(abs(own - size) < 1 + 1e-6 for own, size in zip(found, wanted, strict=True))
        # Of what is rounded up, no fraction is smaller than one that is rounded down.
        parts = [float(size) - own for own, size in zip(found, wanted, strict=True)]
        assert max(parts) - min(parts) < 1 + 1e-6


@pytest.mark.parametrize("more", [{}, {"protect": "boundary"}, {"protect": "text"}])
@pytest.mark.parametrize("budget", [1, 2, 3, 12, 17, 30, LENGTH, 90])
def test_layers_together_keep_the_total_and_each_head_its_best(place, budget, more):
    policy = methods.build("headkv", importance=place, **more)
    snapkv = methods.build("snapkv", window=8, pool="max", kernel=7, **more)
    kinds = torch.ones(1, LENGTH, dtype=torch.long)
    kinds[:, -6:] = kinds[:, :3] = 0
    kept = total = 0
    for view in views():
        view = replace(view, modality=kinds)
        (chosen,), (usual,) = policy.select_many(view, [budget]), snapkv.select_many(view, [budget])
        assert chosen.window == usual.window
        assert chosen.fallback == usual.fallback
        scores = policy.score(view, budget)[0]
        assert torch.equal(scores, snapkv.score(view, budget)[0])
        for own, row in zip(heads(chosen)[0], scores, strict=True):
            assert own == sorted(
                row.sort(descending=True, stable=True).indices[: len(own)].tolist()
            )
        kept += sum(map(len, heads(chosen)[0]))
        total += sum(map(len, heads(usual)[0]))
        assert all(heads(chosen)[0])
    assert kept == total


def test_heads_keep_in_the_order_of_the_importance_of_their_query_heads(place):
    policy = methods.build("headkv", importance=place, beta=1.2)
    shares = (drawn().double() / drawn().sum()).view(LAYERS, KV, GROUP).sum(-1).flatten()
    counts = [
        own for view in views() for own in map(len, heads(*policy.select_many(view, [14]))[0])
    ]
    wanted = shared_out([Fraction(share) for share in shares.tolist()], 6, LENGTH - 8, "1.2")
    assert all(abs(own - 8 - size) < 1 for own, size in zip(counts, wanted, strict=True))
    assert len({*counts}) > 4
    flat = methods.build("headkv", importance=place, temp=0.01)
    even = {len(own) for view in views() for own in heads(*flat.select_many(view, [14]))[0]}
    assert even <= {13, 14, 15}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_budgets_and_prompts_together_keep_what_each_keeps_alone(place, dtype):
    policy = methods.build("headkv", importance=place)
    one, two = (random_view(seed=seed, dtype=dtype) for seed in (0, 1))
    both = batched(one, two)
    together = policy.select_many(both, [3, 14, 20])
    for chosen, budget in zip(together, [3, 14, 20], strict=True):
        for row, view in enumerate((one, two)):
            assert heads(chosen)[row] == heads(*policy.select_many(view, [budget]))[0]


def test_the_authors_json_is_read_as_means(place, tmp_path):
    scores = drawn()
    told = {
        f"{layer}-{head}": [2 * float(scores[layer, head]), 0, float(scores[layer, head])]
        for head in range(KV * GROUP)
        for layer in reversed(range(LAYERS))
    }
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(told))
    torch.testing.assert_close(load(str(file)), scores.double())
    mine, other = (methods.build("headkv", importance=str(p)) for p in (place, file))
    for view in views():
        assert heads(*mine.select_many(view, [14])) == heads(*other.select_many(view, [14]))
    assert "@sha256:" in str(other.params["importance"])
    file.write_text(json.dumps({name: [1] for name in told}))
    with pytest.raises(ValueError, match="has changed since it was chosen"):
        other.keep(random_view(), 9)


@pytest.mark.parametrize(
    "told",
    [
        "[]", "{}", '{"0-0": []}', '{"0-0": [1], "1-1": [1]}', '{"0-0": 1}', '{"0": [1]}',
        '{"0-0": ["1"]}', '{"0-0": [-1, 0]}', '{"0-0": [NaN]}', '{"0-0": [0]}', "no", "[" * 9999,
    ],
)  # fmt: skip
def test_what_is_no_importance_is_refused_in_a_sentence(tmp_path, told):
    (tmp_path / "f.json").write_text(told)
    with pytest.raises(ValueError, match=r"importance=.*; give one tensor head_scores") as error:
        methods.build("headkv", importance=str(tmp_path / "f.json"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "tensors",
    [{"scores": torch.ones(2, 2)}, {"head_scores": torch.ones(3)},
     {"head_scores": torch.full((2, 2), math.inf)}, {"head_scores": torch.zeros(2, 2)}],
)  # fmt: skip
def test_other_tensors_are_refused_in_a_sentence(tmp_path, tensors):
    save_file(tensors, tmp_path / "f.safetensors")
    for where in (tmp_path, tmp_path / "f.safetensors"):
        with pytest.raises(ValueError, match="holds no numbers from 0 on"):
            methods.build("headkv", importance=str(where))


def test_places_models_and_values_must_fit(place, tmp_path):
    for name, form in (("absent", "safetensors"), ("absent.json", "JSON")):
        with pytest.raises(ValueError, match=f"is no {form} file"):
            methods.build("headkv", importance=str(tmp_path / name))
    with pytest.raises(ValueError, match="give the safetensors or JSON file"):
        methods.build("headkv")
    policy = methods.build("headkv", importance=place)
    for view in (random_view(num_layers=3), random_view(kv_heads=3), random_view(group=1)):
        with pytest.raises(ValueError, match="is of 4 layers of 4 query heads, this model has"):
            policy.keep(view, 12)
    for wrong in ({"beta": 0.9}, {"beta": "2"}, {"temp": 0}, {"importance": 3}):
        with pytest.raises(ValueError, match=f"headkv: {next(iter(wrong))}="):
            methods.build("headkv", **{"importance": place, **wrong})
    with pytest.raises(ValueError, match="has no parameter 'budget'"):
        methods.build("headkv", importance=place, budget="pyramid")
