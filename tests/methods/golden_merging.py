"""Merging what is evicted, against the published code of LOOK-M."""

from __future__ import annotations

import dataclasses

import torch

import methods
from tests.methods.golden_data import Case, expect, output, view


def check_look_m(case: Case) -> None:
    """The kept sets, and keys and values with what that code merged into them."""
    params, layer = case["params"], view(case["inputs"], per_query_head=False)
    kinds = torch.zeros(layer.batch, layer.length, dtype=torch.long)
    for first, end in case["spans"]:
        kinds[:, first:end] = 1
    layer = dataclasses.replace(layer, modality=kinds)
    states = layer.keys[0].clone(), layer.values[0]
    if params["one_image_key"]:
        states[0][:, kinds[0].bool()] = states[0][:, case["spans"][0][0]][:, None]
        layer = dataclasses.replace(layer, keys=states[0][None])
    policy = methods.build("look_m", recent=params["recent_size"], merge=params["merge"])
    theirs = output("look_m", case, "idx").long()
    kept = policy.keep(layer, case["n_kept"])[0]
    same = (kept == theirs).all(-1) | (output("look_m", case, "rel_margin") <= 1e-4)
    expect(same.all(), "kept sets differ")
    places = output("look_m", case, "merged").long()
    evicted = torch.zeros(layer.kv_heads, layer.length, dtype=torch.bool).scatter(1, places, True)
    found = methods.merged(*states, theirs, params["merge"], evicted)
    for ours, name in zip(found, ("k_out", "v_out"), strict=True):
        worst = float((ours - output("look_m", case, name)).abs().max())
        expect(worst <= 2e-6, f"{name}: off by {worst:.1e}")
    if places.shape[1] == layer.length - theirs.shape[1]:  # all that it evicted
        whole = methods.merged(*states, theirs, params["merge"])
        expect(all(map(torch.equal, whole, found)), "something else is merged")
