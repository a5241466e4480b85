"""What is read off several layers, against the published code of CAKE and of Q-Filters."""

from __future__ import annotations

import dataclasses

import torch
from safetensors.torch import load_file

import methods
from methods.budgets import preferred
from tests.methods.golden_data import ROOT, Case, expect, expect_close, inputs, output, view


def layer_views(case: Case) -> list[methods.LayerView]:
    """The stored input as several layers: queries made larger, keys and values rolled."""
    layer, places = view(case["inputs"], per_query_head=False), case["params"]["layers"]
    return [
        dataclasses.replace(
            layer,
            queries=layer.queries * scale,
            keys=layer.keys.roll(shift, 2),
            values=layer.values.roll(shift, 2),
            layer=number,
            num_layers=len(places),
        )
        for number, (scale, shift) in enumerate(places)
    ]


def check_cake(case: Case) -> None:
    """Scores, what layers ask for and get, and the sets of each head."""
    params = case["params"]
    window, names = params["window_size"], ("gamma", "tau1", "tau2")
    policy = methods.build("cake", window=window, **{name: params[name] for name in names})
    views = layer_views(case)
    rated = [policy.rate(one, [params["cache_size"]]) for one in views]
    past = views[0].length - window
    wanted, stored = output("cake", case, "preference"), output("cake", case, "score")
    ours = torch.cat([one.preference for one in rated])
    expect_close(ours, wanted, "preference")
    scores = torch.cat([one.scored.scores[0] for one in rated])
    expect(scores[..., past:].isinf().all(), "the window is not protected")
    expect_close(scores[..., :past], stored, "score", rtol=5e-5)
    counts = output("cake", case, "budget").long()
    found = preferred(ours[None], params["cache_size"] - window, past)[0]
    expect((found == counts).all(), f"layers keep {found.tolist()}")
    margins, positions = output("cake", case, "rel_margin"), output("cake", case, "idx").long()
    chosen = [layer[0] for layer in policy.select_layers(rated)]
    for layer, selection in enumerate(chosen):
        kept = selection.positions[0, :, : counts[layer]]
        theirs = positions[layer, :, : counts[layer]].sort(-1).values
        same = (kept == theirs).all(-1) | (margins[layer] <= 1e-4)
        expect(same.all(), f"layer {layer} differs")
        expect((selection.counts == counts[layer] + window).all(), f"layer {layer} keeps others")


def check_qfilters(case: Case) -> None:
    """Filters, scores and kept sets of each layer."""
    params, file = case["params"], ROOT / "qfilters" / f"{case['inputs']}.safetensors"
    policy = methods.build("qfilters", filters=str(file), recent=params["window_length"])
    queries, theirs = inputs(case["inputs"])["q"], load_file(file)["q_filters"]
    scores, margins = output("qfilters", case, "score"), output("qfilters", case, "margin")
    for layer, (scale, shift) in enumerate(params["layers"]):
        leaning = (queries + params["lean"] * queries[:, :, shift : shift + 1]) * scale
        made = methods.filters_of(leaning[0], theirs.shape[1])
        expect(torch.allclose(made, theirs[layer], atol=1e-5), f"filters of layer {layer} differ")
        own = layer_views(case)[layer]
        if scores is not None:
            close = torch.allclose(policy.measure(own)[0], scores[layer], atol=1e-6)
            expect(close, f"scores of layer {layer} differ")
        stored = output("qfilters", case, "idx")[layer].long().sort(-1).values
        same = (policy.keep(own, case["n_kept"])[0] == stored).all(-1) | (margins[layer] <= 1e-5)
        expect(same.all(), f"layer {layer} keeps another set")


def check_kvzip(case: Case) -> None:
    """Scores of each part, sets of uniform heads, and those of one threshold, which keeps one entry
    less than we do of all layers and heads.
    """
    params, whole = case["params"], view(case["inputs"], per_query_head=False)
    sinks, rows = params["sink"], params["repeat"]
    end = sinks + params["ctx_len"]
    uniform, pooled = methods.build("kvzip"), methods.build("kvzip", budget="global")
    views = []
    for number, (times, roll) in enumerate(params["layers"]):
        keys, most = whole.keys.roll(roll, 2), []
        for start in range(sinks, end, params["chunk_size"]):
            span = start, min(start + params["chunk_size"], end)
            queries = (times * whole.queries).roll(start, 2)[:, :, -rows:]
            repeated = torch.cat([keys[:, :, :end], keys.roll(start, 2)[:, :, -rows:]], 2)
            most.append(methods.most_attention(queries, repeated, whole.scaling, sinks, span))
        recited = methods.Recited(sinks, torch.cat(most, -1))
        layer = methods.LayerView(
            keys[:, :, :end], whole.values[:, :, :end], whole.queries[:, :, :0], whole.scaling,
            layer=number, num_layers=len(params["layers"]), recited=recited,
        )  # fmt: skip
        stored = output("kvzip", case, "score")[number]
        expect_close(uniform.measure(layer)[0, :, sinks:], stored, "score")
        kept = uniform.keep(layer, sinks + case["n_kept"])[0]
        theirs = output("kvzip", case, "uniform")[number]
        same = (_marked(kept, end)[:, sinks:] == theirs).all(-1)
        close = output("kvzip", case, "rel_margin")[number] <= 1e-4
        expect((same | close).all(), f"sets of layer {number} differ")
        expect((kept[:, :sinks] == torch.arange(sinks)).all(), "the template is not kept")
        views.append(layer)
    rated = [pooled.rate(layer, [sinks + case["n_kept"]]) for layer in views]
    found = pooled.select_layers(rated)
    ours = torch.stack([_marked(of.positions[0], end)[:, sinks:] for (of,) in found])
    theirs, scores = output("kvzip", case, "pair"), output("kvzip", case, "score")
    expect(int(ours.sum()) == int(theirs.sum()) + 1, "another count than one more than theirs")
    close = output("kvzip", case, "pair_rel_margin") <= 1e-5
    expect((ours | ~theirs).all() | close, "what passes their threshold is not kept")
    expect(scores[ours & ~theirs].max() <= scores[theirs].min(), "one more is not the next best")


def _marked(positions: torch.Tensor, length: int) -> torch.Tensor:
    """Positions [heads, n] with -1 at the ends as bool [heads, length]."""
    marks = torch.zeros(len(positions), length + 1, dtype=torch.bool)
    return marks.scatter(1, positions.masked_fill(positions < 0, length), True)[:, :length]
