"""harness.evict around model.generate against the engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import KINDS, make_prompt

import harness
import methods
from harness.engine import Branch, Engine, Generation, Protocol

TOKENS = 6


def generate(model, prompt, **kwargs):
    inputs = {name: value.clone() for name, value in prompt.inputs.items()}
    out = model.generate(
        **inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, **kwargs
    )
    return out[0, prompt.modality.shape[0] :].tolist()


@pytest.mark.parametrize("protocol", ["replay", "context", "paper"])
@pytest.mark.parametrize("kind", KINDS)
def test_generate_inside_evict_equals_the_engine(loaded_models, kind, protocol):
    if (kind, protocol) == ("llama", "context"):
        return  # no image, no context: refused, see below
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=3)
    policies = [methods.build("restkv", window=8), methods.build("snapkv", window=8)]
    branches = [Branch(p, ratio=r) for p in policies for r in (0.5, 0.9)]
    wanted = Engine(loaded, Protocol(protocol)).run(prompt, branches, Generation(TOKENS))
    for branch, result in zip(branches, wanted, strict=True):
        with harness.evict(loaded.model, branch.policy, ratio=branch.ratio, protocol=protocol):
            assert generate(loaded.model, prompt) == result.token_ids
    with harness.evict(loaded.model, "restkv", ratio=0.5, protocol=protocol, window=8):
        assert generate(loaded.model, prompt) == wanted[0].token_ids


def test_a_budget_rule_goes_by_the_name_of_rule(loaded_models):
    model, prompt = loaded_models["llava"].model, make_prompt("llava", seed=3)
    built = methods.build("snapkv", window=8, budget="adaptive")
    with harness.evict(model, built, ratio=0.7):
        wanted = generate(model, prompt)
    with harness.evict(model, "snapkv", ratio=0.7, window=8, rule="adaptive"):
        assert generate(model, prompt) == wanted


def test_what_does_not_fit_is_told_once_a_call(loaded_models):
    model, prompt = loaded_models["llava"].model, make_prompt("llava", seed=3)
    with (
        harness.evict(model, "snapkv", budget=5, window=4, protect="text"),
        pytest.warns(UserWarning, match="snapkv did not fit .* all_text") as told,
    ):
        generate(model, prompt)
    assert len(told) == 1


def test_the_model_is_itself_again_afterwards(loaded_models):
    loaded, prompt = loaded_models["llava"], make_prompt("llava")
    loaded.model.set_attn_implementation("sdpa")
    before = generate(loaded.model, prompt)
    with harness.evict(loaded.model, "random", ratio=0.9):
        assert generate(loaded.model, prompt) != before
        assert generate(loaded.model, prompt) != before  # a fresh cache for every call
    assert generate(loaded.model, prompt) == before
    assert "generate" not in vars(loaded.model)
    assert loaded.model.config._attn_implementation == "sdpa"


def test_a_second_evict_inside_the_first_is_refused(loaded_models):
    model = loaded_models["llama"].model
    with (
        harness.evict(model, "random", ratio=0.5),
        pytest.raises(ValueError, match="already"),
        harness.evict(model, "snapkv", ratio=0.5),
    ):
        pass
    assert "generate" not in vars(model)


@pytest.mark.parametrize(
    ("kwargs", "part"),
    [
        ({"ratio": 1.0}, "ratio=1.0"),
        ({"ratio": 0.5, "budget": 3}, "exactly one"),
        ({"ratio": 0.5, "protocol": "later"}, "protocol='later'"),
        ({"ratio": 0.5, "nonsense": 1}, "nonsense"),
        ({"ratio": 0.5, "rule": "cone"}, "budget='cone'"),
        ({"ratio": 0.5, "window_anchor": "question"}, "window_anchor=end"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(loaded_models, kwargs, part):
    with (
        pytest.raises(ValueError, match=part),
        harness.evict(loaded_models["llama"].model, "snapkv", **kwargs),
    ):
        pass


def test_calls_that_cannot_be_compressed_are_refused(loaded_models):
    model, prompt = loaded_models["llama"].model, make_prompt("llama")
    ids = prompt.inputs["input_ids"]
    with harness.evict(model, "snapkv", ratio=0.5):
        with pytest.raises(ValueError, match="one prompt at a time"):
            model.generate(ids.expand(2, -1), max_new_tokens=2)
        with pytest.raises(ValueError, match="num_beams=2"):
            model.generate(ids, num_beams=2, max_new_tokens=2)
        for name, value in (("use_cache", False), ("prefill_chunk_size", 16)):
            with pytest.raises(ValueError, match=f"{name}.* does not work"):
                model.generate(ids, max_new_tokens=2, **{name: value})
        with pytest.raises(ValueError, match="no input_ids"):
            model.generate(max_new_tokens=2)
        mask = torch.ones_like(ids)
        mask[0, 0] = 0
        with pytest.raises(ValueError, match="padding"):
            model.generate(ids, attention_mask=mask, max_new_tokens=2)
    with (
        harness.evict(model, "snapkv", ratio=0.5, protocol="context"),
        pytest.raises(ValueError, match="needs an image"),
    ):
        model.generate(ids, max_new_tokens=2)


@pytest.mark.parametrize("count", [1, 17])
def test_a_context_of_text_is_a_count_of_tokens(loaded_models, count):
    loaded, prompt = loaded_models["llama"], make_prompt("llama", seed=71)
    marked = replace(prompt, context=count)
    policy = methods.build("streaming_llm", decode="grow")
    branches = [Branch(policy, budget=1)]
    wanted = Engine(loaded, Protocol("context")).run(marked, branches, Generation(4))[0]
    with harness.evict(loaded.model, policy, budget=1, protocol="context", context=count):
        assert generate(loaded.model, prompt)[: len(wanted.token_ids)] == wanted.token_ids


def test_a_context_that_does_not_fit_is_refused(loaded_models):
    model, prompt = loaded_models["llama"].model, make_prompt("llama")
    length = prompt.inputs["input_ids"].shape[1]
    for given in ({"context": 0, "protocol": "context"}, {"context": 5}):
        with pytest.raises(ValueError, match="give both"), harness.evict(model, "snapkv", **given):
            pass
    with (
        harness.evict(model, "snapkv", ratio=0.5, protocol="context", context=length),
        pytest.raises(ValueError, match="give fewer"),
    ):
        generate(model, prompt)


def test_a_plain_call_that_would_keep_everything_is_refused(loaded_models):
    model, prompt = loaded_models["llama"].model, make_prompt("llama")
    with harness.evict(model, "snapkv", ratio=0.5):
        with pytest.raises(ValueError, match="keep everything; call generate"):
            model(**prompt.inputs)
        generate(model, prompt)
        with pytest.raises(ValueError, match="keep everything"):
            model(**prompt.inputs)
    model(**prompt.inputs)


def test_labels_are_names_too(loaded_models):
    loaded, prompt = loaded_models["llama"], make_prompt("llama", seed=72)
    said = []
    for name, given in (("restkv_nospatial", {}), ("restkv", {"spatial": "none"}), ("restkv", {})):
        with harness.evict(loaded.model, name, budget=6, window=4, **given):
            said.append(logits_of(loaded.model, prompt))
    assert torch.equal(said[0], said[1])
    assert not torch.equal(said[0], said[2])


def logits_of(model, prompt):
    found = model.generate(
        **prompt.inputs, max_new_tokens=3, do_sample=False, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    return torch.cat(found.logits)


@pytest.mark.parametrize(
    "given", [{"cache_implementation": "static"}, {"assistant_early_exit": 1},
              {"custom_generate": "x"}, {"guidance_scale": 1.5}],
)  # fmt: skip
def test_arguments_that_bring_another_cache_are_refused(loaded_models, given):
    model, prompt = loaded_models["llama"].model, make_prompt("llama")
    with (
        harness.evict(model, "snapkv", ratio=0.5),
        pytest.raises(ValueError, match=f"{next(iter(given))}.* does not work"),
    ):
        model.generate(**prompt.inputs, max_new_tokens=2, **given)


def test_a_kind_of_cache_in_the_models_own_settings_is_left_out(loaded_models, monkeypatch):
    loaded, prompt = loaded_models["llama"], make_prompt("llama", seed=73)
    with harness.evict(loaded.model, "snapkv", ratio=0.5, window=4):
        wanted = generate(loaded.model, prompt)
        monkeypatch.setattr(loaded.model.generation_config, "cache_implementation", "hybrid")
        assert generate(loaded.model, prompt) == wanted
    assert loaded.model.generation_config.cache_implementation == "hybrid"
