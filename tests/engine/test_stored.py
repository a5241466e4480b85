"""Cells that store entries otherwise: their logits, their neighbours, their bytes."""

from __future__ import annotations

import re

import pytest
import stored_oracle as oracle
import torch
from engine_helpers import Scatter, run_with_logits, stop_some
from tiny_models import PROTOCOLS, make_prompt

import harness
import methods
from harness.engine import Branch, Engine, Generation, Protocol
from harness.engine.packed_layer import PackedLayer
from harness.engine.packing import gather
from harness.engine.tiles import Tiles
from harness.settings.caches import HostValues, PQKeys, Quantized

SETTINGS = (
    Quantized(8, 8, 4),
    Quantized(4, 5, 0),
    Quantized(2, 32, 3),
    Quantized(4, 16, 40),
    Quantized(2, 3, 7),
)
OTHERS = (
    PQKeys(2, 4, 3),
    PQKeys(3, 2, 0),
    PQKeys(2, 8, 5, 0.6),
    HostValues(0.5, 3),
    PQKeys(8, 1, 7),
    HostValues(0.8, 0),
)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def kept_of(engine, policy, budget, boundary):
    """Positions by layer and head."""
    kept = {}
    for layer in engine.layout.layers:
        if policy is None:
            kept[layer.index] = [list(range(boundary))] * 2
        else:
            kept[layer.index] = policy.kept[layer.rank, budget].tolist()
    return kept


@pytest.mark.parametrize("settings", [SETTINGS, OTHERS], ids=["few bits", "others"])
@pytest.mark.parametrize(
    ("kind", "protocol", "tokens"),
    [
        ("llama", "replay", 14),
        ("llava", "context", 5),
        ("qwen", "replay", 4),
        ("llava", "paper", 3),
    ],
)
def test_logits_equal_those_of_a_model_whose_cache_is_dequantised(
    loaded_models, kind, protocol, tokens, settings, monkeypatch
):
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=23)
    engine = Engine(loaded, PROTOCOLS[protocol])
    boundary = engine.boundary(prompt)
    policy = Scatter(3, more=2)
    asked = [(None, None, setting) for setting in settings]
    asked += [(policy, 12, setting) for setting in settings[:3]]
    asked += [(policy, boundary - 5, setting) for setting in settings[2:]]
    branches = [Branch(own, budget=n, cache=setting) for own, n, setting in asked]
    branches.append(Branch(methods.build("h2o"), ratio=0.5))  # it evicts while the others pack
    results, logits = run_with_logits(monkeypatch, engine, prompt, branches, tokens)
    plain, changed, off = {}, 0, []
    for cell, (own, n, setting) in enumerate(asked):
        answer = results[cell].token_ids
        how = (loaded.model, prompt, answer, boundary, kept_of(engine, own, n, boundary))
        wanted = oracle.logits(*how, setting)[-len(logits) :]
        off += (logits[:, cell] - wanted).abs().amax(1).tolist()
        close(logits[0, cell], wanted[0])  # of the prompt, whose keys are the same to the last bit
        if n not in plain:
            plain[n] = oracle.logits(*how, None)[-len(logits)]
        changed += not torch.allclose(wanted[0], plain[n], rtol=1e-3, atol=1e-3)
    assert changed >= 6  # how they are stored must matter, or the test is empty
    # A key of an answer token that lies between two codes may get the other one, seldom.
    assert sum(each > 1e-4 for each in off) <= 0.1 * len(off)
    assert max(off) < 1e-2


def test_neighbours_and_full_precision_cells_notice_nothing(loaded_models, monkeypatch):
    loaded, prompt = loaded_models["qwen"], make_prompt("qwen", seed=37)
    engine = Engine(loaded)
    snapkv, h2o = methods.build("snapkv", budget="adaptive"), methods.build("h2o")
    branches = [Branch(snapkv, ratio=0.5), Branch(h2o, ratio=0.7), Branch()]
    apart, wanted = run_with_logits(monkeypatch, engine, prompt, branches, 9)
    few = [Branch(snapkv, ratio=0.5, cache=setting) for setting in SETTINGS + OTHERS]
    few.append(Branch(cache=SETTINGS[1]))
    together, logits = run_with_logits(monkeypatch, engine, prompt, branches + few, 9)
    close(logits[:, :3], wanted)
    assert [one.cache_bytes for one in together[:3]] == [one.cache_bytes for one in apart]
    alone, single = run_with_logits(monkeypatch, engine, prompt, [few[1]], 9)
    close(single[:, 0], logits[:, 4])
    assert alone[0].token_ids == together[4].token_ids
    assert alone[0].kept_image == pytest.approx(together[0].kept_image)
    assert alone[0].kept_tokens == together[0].kept_tokens


def test_cells_that_stop_leave_the_others_their_packed_entries(loaded_models, monkeypatch):
    loaded, prompt = loaded_models["llama"], make_prompt("llama", seed=41)
    snapkv, tova = methods.build("snapkv"), methods.build("tova")
    ratios = (0.0, 0.3, 0.6, 0.8)
    branches = [Branch(snapkv, ratio=r, cache=c) for c in (SETTINGS[1], OTHERS[2]) for r in ratios]
    branches += [Branch(tova, ratio=r) for r in (0.3, 0.8)] + [Branch()]
    lengths = stop_some(monkeypatch, Engine(loaded), prompt, branches, 3)
    assert len(lengths) > 2


def test_a_second_question_finds_the_context_as_it_was_packed(loaded_models):
    """The cells of one context, asked again, answer as if they were asked alone."""
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=3)
    branches = [Branch(methods.build("random"), ratio=0.4, cache=SETTINGS[4]), Branch()]
    engine = Engine(loaded, Protocol("context"))
    first, second, third = (engine.run(prompt, branches, Generation(12)) for _ in range(3))
    assert [one.token_ids for one in first] == [one.token_ids for one in second]
    assert [one.token_ids for one in first] == [one.token_ids for one in third]


@pytest.mark.parametrize("setting", [Quantized(2, 4, 3), PQKeys(1, 2, 3, 0.3)])
def test_generate_inside_evict_packs_alike(loaded_models, setting):
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=13)
    branch = Branch(methods.build("snapkv"), ratio=0.4, cache=setting)
    (wanted,) = Engine(loaded).run(prompt, [branch], Generation(9))
    how = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    length = prompt.modality.shape[0]
    with harness.evict(loaded.model, "snapkv", ratio=0.4, **setting.params) as model:
        found = model.generate(**prompt.inputs, **how)[0, length:].tolist()
    assert found == wanted.token_ids
    with harness.evict(loaded.model, "snapkv", ratio=0.4) as model:
        assert model.generate(**prompt.inputs, **how)[0, length:].tolist() != found
    (whole,) = Engine(loaded).run(prompt, [Branch(cache=setting)], Generation(9))
    with harness.evict(loaded.model, "full", **setting.params) as model:
        assert model.generate(**prompt.inputs, **how)[0, length:].tolist() == whole.token_ids
    wrong = harness.evict(loaded.model, "full", cache="quantized", cache_bits=5)
    with pytest.raises(ValueError, match="cache_bits=5 is not allowed"), wrong:
        pass


def test_reindexed_keys_are_packed_as_they_are_stored(loaded_models):
    """8 bits of keys without rotary positions give nearly the logits that full precision gives."""
    loaded, prompt = loaded_models["llama"], make_prompt("llama", seed=7)
    policy = methods.build("streaming_llm", positions="cache", decode="grow")
    branches = [
        Branch(policy, ratio=0.3),
        *(Branch(policy, ratio=0.3, cache=Quantized(bits, 8, 2)) for bits in (8, 4, 2)),
    ]
    results = Engine(loaded).run(prompt, branches, Generation(1), ("A", "B", "C", "D"))
    logits = torch.tensor([[*one.letter_logits.values()] for one in results])
    off = (logits[1:] - logits[0]).norm(dim=1)
    assert off[0] < 0.1 < off[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_bytes_are_those_of_the_tensors(loaded_models, bits, dtype):
    """Whole groups waste nothing: what is told of the cells is what their tensors take."""
    heads, length, dim = 2, 48, 12
    keys, values = (torch.randn(1, heads, length, dim).to(dtype) for _ in range(2))
    setting = Quantized(bits, 8, 8)
    every = torch.arange(length).expand(heads, -1)
    few = every[:, ::2]
    packed, rest, left = gather(keys, values, [every, few], [[48, 48], [24, 24]], {setting: [0, 1]})
    layer = PackedLayer(
        Tiles.gather(keys, values, rest, left, [None, None]), heads, length, None, packed
    )
    assert layer.counts.tolist() == [48, 48, 24, 24]
    assert layer.tiles.counts.tolist() == [8, 8, 8, 8]
    own = 8 * 2 * dim * keys.element_size()
    half = 2
    token = 2 * -(-dim * bits // 8) + 2 * half * -(-dim // 8)
    wanted = [n * token + n // 8 * 2 * half * dim + own for n in (40, 40, 16, 16)]
    assert layer.sizes().tolist() == wanted
    assert sum(each.nbytes for each in packed) == sum(wanted) - 4 * own
    assert layer.nbytes > sum(wanted) - 4 * own


def test_results_tell_the_bytes_of_each_cell(loaded_models):
    loaded, prompt = loaded_models["llama"], make_prompt("llama", seed=11)
    snapkv = methods.build("snapkv")
    branches = [Branch(), *(Branch(cache=Quantized(bits, 12, 0)) for bits in (8, 4, 2))]
    branches.append(Branch(snapkv, ratio=0.5, cache=Quantized(4, 12, 0)))
    found = Engine(loaded).run(prompt, branches, Generation(2))
    layers, heads, dim, length = 3, 2, 8, 36
    assert (
        found[0].cache_bytes == found[0].full_cache_bytes == layers * heads * length * 2 * dim * 4
    )
    for one, bits in zip(found[1:4], (8, 4, 2), strict=True):
        token = 2 * dim * bits // 8 + 4
        assert one.cache_bytes == layers * heads * (length * token + 3 * dim * 4)
        assert one.full_cache_bytes == found[0].full_cache_bytes
        assert one.exposed_tokens == 2
    assert found[0].exposed_tokens == 0
    assert found[4].cache_bytes == layers * heads * (18 * 12 + 2 * dim * 4)


@pytest.mark.parametrize(("residual", "exposed"), [(35, 3), (36, 1), (37, 0)])
def test_answers_are_exposed_from_the_first_packed_entry_on(loaded_models, residual, exposed):
    """36 entries at the eviction, and before the third token's pass 38."""
    loaded, prompt = loaded_models["llama"], make_prompt("llama", seed=11)
    branches = [Branch(cache=Quantized(2, 2, residual)), Branch()]
    packed, full = Engine(loaded).run(prompt, branches, Generation(3), ("A", "B"))
    assert packed.evictable_tokens == 36
    assert packed.exposed_tokens == exposed
    assert (packed.letter_logits == pytest.approx(full.letter_logits, abs=1e-5)) == (exposed < 3)


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match=r"cache_bits=3 is not allowed; give 8, 4 or 2\.$"):
        Quantized(3)
    with pytest.raises(
        ValueError, match="cache_group=0 is not allowed; give a whole number from 1"
    ):
        Quantized(4, 0)
    with pytest.raises(ValueError, match="cache_residual=-1 is not allowed"):
        Quantized(4, 32, -1)
    with pytest.raises(ValueError, match="cache_bits=True is not allowed"):
        Quantized(True)
    with pytest.raises(ValueError, match=r"none of which can go by itself.*give decode=grow"):
        Branch(methods.build("h2o"), ratio=0.5, cache=Quantized())
    with pytest.raises(ValueError, match=r"merge changes what stays; give merge=none\.$"):
        Branch(methods.build("snapkv", merge="pivot"), ratio=0.5, cache=Quantized())
    for made, told in (
        (lambda: PQKeys(9), "cache_bits=9 is not allowed; give a whole number from 1 to 8."),
        (lambda: PQKeys(4, 0), "cache_parts=0 is not allowed; give a whole number from 1"),
        (lambda: PQKeys(mass=1.5), "cache_mass=1.5 is not a share of attention; give a number"),
        (lambda: HostValues(0), "cache_mass=0 is not a share of attention; give a number above 0"),
        (lambda: HostValues(True), "cache_mass=True is not a share of attention"),
        (lambda: HostValues(residual=-1), "cache_residual=-1 is not allowed"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            made()
    places = methods.build("streaming_llm", positions="cache", decode="grow")
    with pytest.raises(ValueError, match=r"positions=cache counts all of them; give positions=ori"):
        Branch(places, ratio=0.5, cache=HostValues())
    assert Branch(places, ratio=0.5, cache=PQKeys()).cache == PQKeys()


@pytest.mark.parametrize("setting", [HostValues(0.5, 3), PQKeys(2, 4, 2, 0.7)])
def test_results_tell_what_is_on_the_host_and_what_came_from_there(loaded_models, setting):
    """Beside cells that stop earlier and later, and asked a second time."""
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=5)
    engine = Engine(loaded, Protocol("context"))
    policy = Scatter(3)
    branches = [Branch(), Branch(policy, budget=9, cache=setting), Branch(cache=SETTINGS[0])]
    found = engine.run(prompt, branches, Generation(5))
    again = engine.run(prompt, branches, Generation(5))
    one, boundary = found[1], engine.boundary(prompt)
    oracle.read.clear()
    kept = kept_of(engine, policy, 9, boundary)
    oracle.logits(loaded.model, prompt, one.token_ids, boundary, kept, setting)
    layers, heads, dim, half = len(kept), 2, 8, 4
    assert one.fetched_bytes == sum(oracle.read) * dim * half > 0
    assert one.passes == 5 == len(oracle.read) / layers
    assert one.host_bytes == layers * heads * (9 - setting.residual) * dim * half
    assert (again[1].fetched_bytes, again[1].passes) == (one.fetched_bytes, 5)
    for other in (found[0], found[2]):
        assert (other.host_bytes, other.fetched_bytes, other.passes) == (0, 0, 0)
    own = setting.residual * dim
    keys = 9 * dim if isinstance(setting, HostValues) else None
    if keys is not None:
        assert one.cache_bytes == layers * heads * (keys + own) * half
    else:
        book, codes = 4 * dim * half, (9 - setting.residual) * 1
        assert one.cache_bytes == layers * heads * (2 * own * half + book + codes)
