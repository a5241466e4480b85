"""FINCH in the engine: the question chooses, as the model's eager attention says."""

from __future__ import annotations

import pytest
import torch
from eager import eager, weights
from engine_helpers import Trace, run_with_logits
from test_sharing import questions
from tiny_models import PROTOCOLS, make_prompt

import harness
import methods
from harness.engine import Branch, Engine, Generation, sharing

FREE = 7  # tokens kept besides the protected ones


@pytest.fixture(autouse=True)
def short_prefixes_are_worth_it(monkeypatch):
    monkeypatch.setattr(sharing, "LEAST", 8)


def wanted(loaded, inputs, context: int, rows: slice) -> list[list[list[int]]]:
    """Kept positions [layer][head] where all behind the context stays."""
    found = []
    for attention in weights(eager(loaded.model), **inputs):
        queries = torch.arange(rows.start, rows.stop)[:, None]
        shares = (attention[:, rows, :context] * queries).sum(1)
        scores = shares.unflatten(0, (2, -1)).mean(1)
        behind = [*range(context, inputs["input_ids"].shape[1] - 1)]
        found.append([sorted(head.topk(FREE).indices.tolist()) + behind for head in scores])
    return found


@pytest.mark.parametrize(
    ("kind", "share", "positions"),
    [("llava", True, "original"), ("llava", False, "cache"), ("qwen", True, "original")],
)
def test_cells_keep_what_the_question_attends_to(
    loaded_models, kind, share, positions, monkeypatch
):
    loaded, prompt = loaded_models[kind], questions(kind, 1, seed=81)[0]
    length = prompt.inputs["input_ids"].shape[1]
    budget = FREE + length - 1 - prompt.context
    policies = [methods.build("finch", positions=positions), methods.build("snapkv", window=4)]
    trace = Trace(monkeypatch)
    engine = Engine(loaded, PROTOCOLS["replay"], share_prefixes=share)
    engine.run(prompt, [Branch(policy, budget=budget) for policy in policies], Generation(2))
    held = [[sorted(head) for head in cells[0]] for cells in trace.passes[0][0].values()]
    rows = slice(prompt.context, length - prompt.suffix)
    assert held == wanted(loaded, prompt.inputs, prompt.context, rows)


def test_generate_inside_evict_watches_all_behind_the_image(loaded_models):
    loaded, prompt = loaded_models["llava"], questions("llava", 1, seed=82)[0]
    length = prompt.inputs["input_ids"].shape[1]
    how = {"window_anchor": "end", "budget": FREE + length - 1 - prompt.context}
    with harness.evict(loaded.model, "finch", **how) as model:
        said = model.generate(**prompt.inputs, max_new_tokens=3, do_sample=False)
    branch = Branch(methods.build("finch", window_anchor="end"), budget=how["budget"])
    (result,) = Engine(loaded).run(prompt, [branch], Generation(3))
    assert said[0, length:].tolist()[: len(result.token_ids)] == result.token_ids


def test_re_indexed_positions_change_the_answers(loaded_models, monkeypatch):
    prompt, engine = questions("llava", 1)[0], Engine(loaded_models["llava"])
    branches = [
        Branch(methods.build("finch", positions=positions), ratio=ratio)
        for positions in ("original", "cache")
        for ratio in (0.0, 0.6)
    ]
    _, logits = run_with_logits(monkeypatch, engine, prompt, branches, 2)
    torch.testing.assert_close(logits[0, 0], logits[0, 2], rtol=0, atol=1e-4)
    assert not torch.allclose(logits[0, 1], logits[0, 3], atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "protocol", "params", "sentence"),
    [
        ("llava", "context", {}, "window_anchor=question watches the question"),
        ("llava", "context", {"window_anchor": "end"}, "none is there when the cache is evicted"),
        ("llama", "replay", {}, "this prompt marks no end of one"),
        ("qwen", "replay", {"positions": "cache"}, "M-RoPE"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(loaded_models, kind, protocol, params, sentence):
    engine = Engine(loaded_models[kind], PROTOCOLS[protocol])
    branch = Branch(methods.build("finch", **params), ratio=0.5)
    with pytest.raises(ValueError, match=sentence) as error:
        engine.run(make_prompt(kind), [branch], Generation(1))
    assert str(error.value).count(". ") == 0
    assert "\n" not in str(error.value)
