"""Window anchors, protected text and budget rules, as the engine carries them out."""

from __future__ import annotations

import pytest
import torch
from engine_helpers import Scatter
from tiny_models import make_prompt

import methods
from harness.engine import Branch, Engine, Generation, Protocol


@pytest.mark.parametrize(
    ("protocol", "behind"),
    [(Protocol("replay"), 2), (Protocol("replay", "suffix"), 0), (Protocol("paper"), 3)],
)
def test_an_anchored_window_sees_the_queries_of_the_question(loaded_models, protocol, behind):
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=9)  # a suffix of 3 tokens
    seen = Scatter(1, window=4)
    anchored = methods.build("snapkv", window=5, window_anchor="question")
    branches = [Branch(seen, ratio=0.5), Branch(anchored, budget=9)]
    Engine(loaded, protocol).run(prompt, branches, Generation(1))
    for view in seen.views:
        assert view.suffix == behind
        assert view.queries.shape[2] == max(4, 5 + behind)


def test_an_anchored_window_needs_the_question_in_the_cache(loaded_models):
    anchored = methods.build("restkv", window=5, window_anchor="question")
    with pytest.raises(ValueError, match="protocol=context reads after"):
        Engine(loaded_models["llava"], Protocol("context")).run(
            make_prompt("llava"), [Branch(anchored, budget=9)], Generation(1)
        )


def test_protected_text_stays_in_every_layer_and_the_figures_say_so(loaded_models):
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=9)
    policy = methods.build("snapkv", window=4, protect="text")
    branches = [Branch(policy, budget=n) for n in (25, 6)]
    some, none = Engine(loaded).run(prompt, branches, Generation(1))
    text = some.evictable_tokens - some.image_tokens
    assert (some.kept_text, some.kept_image, some.fallback) == (text, 25 - text, None)
    assert (none.kept_text, none.kept_image, none.fallback) == (text, 0, "all_text")


@pytest.mark.parametrize("rule", ["pyramid", "adaptive"])
def test_budget_rules_store_as_much_and_no_padding(loaded_models, rule, monkeypatch):
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=9)
    engine = Engine(loaded)
    caches = []
    original = engine.decoder.run
    monkeypatch.setattr(
        engine.decoder, "run", lambda cache, *rest: caches.append(cache) or original(cache, *rest)
    )
    policies = [methods.build("h2o", recent=2, budget=name) for name in ("uniform", rule)]
    results = [engine.run(prompt, [Branch(p, budget=9)], Generation(1))[0] for p in policies]
    assert results[0].cache_bytes == results[1].cache_bytes < results[0].full_cache_bytes
    assert results[1].kept_tokens == 9
    counts = torch.stack([layer.tiles.counts for layer in caches[1].layers]) - 1  # the new token
    assert int(counts.sum()) == 9 * counts.numel()
    assert len(set(counts.flatten().tolist())) > 1
    for layer in caches[1].layers:
        spare = layer.tiles.places.numel() - int(layer.tiles.counts.sum())
        assert spare < layer.tiles.size * len(layer.tiles.counts)
