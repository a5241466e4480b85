"""Scores of heads, from the weights of a full pass over prompt and answer."""

from __future__ import annotations

from dataclasses import replace

import masked_oracle as oracle
import pytest
import torch
from tiny_models import make_prompt

from harness.engine import Branch, Engine, Generation
from harness.engine.layout import prepare
from scripts.score_heads import Asked, Row, collected, measure, needle_of

TOKENS = 7


def asked(loaded, kind: str, places: list[int], score: float = 1.0, seed: int = 91) -> Asked:
    """A prompt whose answer is said to be its tokens at these places."""
    prompt = make_prompt(kind, seed=seed)
    prompt = replace(prompt, context=prompt.context or 30)
    words = [loaded.tokenizer.decode([int(prompt.inputs["input_ids"][0, p])]) for p in places]
    return Asked(prompt, str(words), Generation(TOKENS), lambda text: score)


@pytest.mark.parametrize(("kind", "places"), [("llama", [4, 11, 12]), ("qwen", [1, 3])])
def test_scores_are_what_the_full_model_pays_to_the_needle(loaded_models, kind, places):
    loaded = loaded_models[kind]
    both = [asked(loaded, kind, places, seed=seed) for seed in (91, 92)]
    found, right = measure(loaded, [*both, asked(loaded, kind, places, score=0.5)], "reasoning")
    assert right == 2
    wanted = []
    for one in both:
        ids = one.prompt.inputs["input_ids"][0]
        needle = [p for p in range(one.prompt.context) if ids[p] in ids[places]]
        assert needle_of(loaded, one.prompt, one.wanted) == needle
        (answer,) = Engine(loaded).run(one.prompt, [Branch()], Generation(TOKENS))
        oracle.logits(loaded.model, one.prompt, answer.token_ids)
        layers = []
        for layer in prepare(loaded.model).layers:
            rows = oracle.seen[layer.index][:, -TOKENS:].double()  # [H, TOKENS, length]
            best = rows.topk(len(needle))
            in_needle = (best.indices[..., None] == torch.tensor(needle)).any(-1)
            layers.append((best.values * in_needle).sum((1, 2)) / len(needle))
        wanted.append(torch.stack(layers))
    wanted = torch.stack(wanted).mean(0)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6)
    assert float(wanted.max()) > 0.01


def test_a_head_retrieves_where_it_looks_at_what_is_written_next():
    ids = torch.tensor([10, 11, 12, 13, 12])
    places = [[[2, 0], [4, 2]], [[3, 2], [3, 1]], [[9, 2], [2, 3]]]  # step, head, rank
    rows = [Row(torch.tensor([[0.6, 0.1], [0.4, 0.3]]), torch.tensor(each)) for each in places]
    found = collected(rows, [12, 13], ids, [2, 3], "retrieval")
    assert found.tolist() == [1.0, 0.5]  # the third row led to a stop token
    paid = collected(rows, [12, 13], ids, [2, 3], "reasoning")
    torch.testing.assert_close(paid, torch.tensor([1.3, 0.7]) / 2)


def test_prompts_that_tell_nothing_are_refused_in_a_sentence(loaded_models):
    loaded = loaded_models["llama"]
    one = asked(loaded, "llama", [3])
    for other in (one._replace(wanted="absent"), one._replace(score=lambda text: None)):
        with pytest.raises(ValueError, match="found the answer in none of 1 prompts") as told:
            measure(loaded, [other], "reasoning")
        assert "\n" not in str(told.value)
    words = [loaded.tokenizer.decode([int(i)]) for i in one.prompt.inputs["input_ids"][0, [3, 9]]]
    sentence = one._replace(wanted=f"{words[1]}, {words[0]}.")  # not written so: word by word
    assert {3, 9} <= {*needle_of(loaded, sentence.prompt, sentence.wanted)}
