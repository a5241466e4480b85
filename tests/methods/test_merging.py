"""Merging evicted entries into kept ones, against a loop over them in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import methods
from methods import merging
from tests.methods.views import random_view


def by_hand(keys, values, kept, how):
    """One head: keys [L, d], values [L, dv], kept a list of positions."""
    keys, values = keys.double(), values.double()
    units = keys / keys.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    groups = {place: [(1.0, place)] for place in kept}
    for place in range(len(keys)):
        if place not in groups:
            cosines = [float(units[place] @ units[other]) for other in kept]
            best = max(cosines)
            groups[kept[cosines.index(best)]].append((best, place))
    rows = []
    for states in (keys, values):
        mixed = []
        for place in kept:
            parts = []
            for cosine, other in groups[place]:
                weight = cosine if how == "weighted" and other != place else 1.0
                part = weight * states[other]
                parts.append((part + states[place]) / 2 if how == "pivot" else part)
            mixed.append(sum(parts) / len(parts))
        rows.append(torch.stack(mixed))
    return rows


@pytest.mark.parametrize("how", merging.MERGES)
@pytest.mark.parametrize("elements", [1, 1 << 24])
def test_each_evicted_entry_goes_to_its_nearest(how, elements, monkeypatch):
    """Heads may keep different numbers, and one all or a single entry; values have their size."""
    monkeypatch.setattr(merging, "_ELEMENTS", elements)
    view = random_view(23, kv_heads=4, group=1, seed=5)
    values = torch.cat([view.values[0], view.keys[0, ..., :3]], -1)
    held = [[*range(23)], [7], [0, 3, 4, 11, 20], [1, 2, 22]]
    positions = torch.tensor([[*head, *[-1] * (23 - len(head))] for head in held])
    found = methods.merged(view.keys[0], values, positions, how)
    for head, kept in enumerate(held):
        wanted = by_hand(view.keys[0, head], values[head], kept, how)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours[head, : len(kept)].double(), theirs, rtol=0, atol=2e-6)
    assert torch.equal(found[0][0], view.keys[0, 0])


@pytest.mark.parametrize("how", merging.MERGES)
def test_half_precision_is_summed_in_float32_and_given_back(how):
    view = random_view(60, dtype=torch.bfloat16)
    positions = torch.arange(0, 60, 7).expand(2, -1)
    found = methods.merged(view.keys[0], view.values[0], positions, how)
    exact = methods.merged(view.keys[0].float(), view.values[0].float(), positions, how)
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, theirs.bfloat16())


def test_a_key_of_zeros_is_no_trouble():
    keys = torch.zeros(1, 9, 4)
    for how in merging.MERGES:
        found = methods.merged(keys, keys + 1, torch.tensor([[2, 5]]), how)
        assert not any(bool(each.isnan().any()) for each in found)


def test_of_equals_the_first_takes_all():
    keys, values = torch.ones(1, 6, 4), torch.arange(6.0).view(1, 6, 1)
    _, found = methods.merged(keys, values, torch.tensor([[1, 4]]), "average")
    assert found.flatten().tolist() == pytest.approx([(1 + 0 + 2 + 3 + 5) / 5, 4])


def test_look_m_is_h2o_that_spares_text_and_merges():
    view = random_view(41, seed=2, sharpness=2.0)
    modality = torch.zeros(1, 41, dtype=torch.long)
    modality[:, 4:30] = 1
    view = dataclasses.replace(view, modality=modality)
    ours, plain = methods.build("look_m"), methods.build("h2o", protect="text", decode="grow")
    for budget in (20, 30, 41):
        assert torch.equal(ours.keep(view, budget), plain.keep(view, budget))
    assert (ours.merge, plain.merge, ours.decode) == ("pivot", "none", "grow")
    assert ours.select_many(view, [9])[0].fallback == "all_text"
