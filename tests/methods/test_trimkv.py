"""TRIM-KV against its released code, and against the formula in float64."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import methods
from methods.gates import load
from methods.trimkv import TrimKV
from tests.methods.views import random_view

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "trimkv"
TENSORS = load_file(GOLDEN / "tensors.safetensors")
STORED = json.loads((GOLDEN / "cases.json").read_text())
CASES = STORED["cases"]
LAYERS, LENGTH = 3, 37


def golden_views() -> list[methods.LayerView]:
    """The layers of the golden numbers; no query is looked at."""
    return [
        methods.LayerView(
            keys=TENSORS[f"keys.{layer}"],
            values=TENSORS[f"keys.{layer}"],
            queries=TENSORS[f"keys.{layer}"][:, :, :0],
            scaling=1.0,
            layer=layer,
            num_layers=LAYERS,
            hidden=TENSORS[f"hidden.{layer}"],
        )
        for layer in range(LAYERS)
    ]


def heads(selection: methods.Selection) -> list[list[int]]:
    return [[p for p in head if p >= 0] for head in selection.positions[0].tolist()]


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of the gates alone."""
    file = tmp_path_factory.mktemp("gates") / "gates.safetensors"
    save_file({name: t for name, t in TENSORS.items() if "retention_gate" in name}, file)
    return str(file)


def test_gates_say_what_the_released_ones_say(gates: str) -> None:
    for layer, gate in enumerate(load(gates)):
        found = gate(TENSORS[f"hidden.{layer}"])
        torch.testing.assert_close(found, TENSORS[f"log_beta.{layer}"])


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join(map(str, list(case.values())[:3]))
)
def test_it_keeps_what_the_released_code_keeps(gates: str, case: dict) -> None:
    policy = methods.build("trimkv", gates=gates, strategy=case["strategy"], budget=case["budget"])
    views, count = golden_views(), case["count"]
    if case["budget"] == "global":
        rated = [policy.rate(view, [count]) for view in views]
        found = [heads(of[0]) for of in policy.select_layers(rated)]
    else:
        found = [heads(policy.select_many(view, [count])[0]) for view in views]
    if all(head for layer in case["kept"] for head in layer):  # here every head keeps one
        assert found == case["kept"]
    else:
        assert (case["budget"], count) == ("global", 1)
        assert sum(len(head) for layer in found for head in layer) == 2 * LAYERS


def decoding(gates: str, case: dict, **more: str) -> tuple[methods.Policy, list, methods.Held]:
    """The policy of a stored course, its layers up to the end of the prompt, and its cell."""
    prompt, budget, buffer = (case[n] for n in ("prefill_len", "memory_size", "buffer_size"))
    how = {"decode": "hold"} if buffer == 1 else {"decode": "buffer", "buffer": buffer}
    views = []
    for whole in golden_views():
        parts = {n: getattr(whole, n)[:, :, :prompt] for n in ("keys", "values", "queries")}
        views.append(dataclasses.replace(whole, hidden=whole.hidden[:, :prompt], **parts))
    policy = methods.build("trimkv", gates=gates, strategy=case["strategy"], **how, **more)
    return policy, views, methods.Held(prompt, budget, budget, tail=0)


def appended(
    policy: methods.Policy, held: methods.Held, whole: methods.LayerView, kept, carried, seen, count
) -> methods.Step:
    """The step of a layer at which token `seen - 1` came and `count` entries a head go."""
    kept = torch.nn.functional.pad(kept, (0, 1), value=seen - 1)
    index = kept.clamp_min(0)[..., None].expand(-1, -1, -1, whole.keys.shape[-1])
    return methods.Step(
        held=[held],
        positions=kept,
        budgets=(kept >= 0).sum(-1) - count,
        seen=seen,
        new=1,
        layer=whole.layer,
        num_layers=LAYERS,
        carried=torch.nn.functional.pad(carried, (0, 1)),
        keys=whole.keys.gather(2, index) if policy.recalls else None,
        hidden=whole.hidden[:, seen - 1 : seen],
    )


@pytest.mark.parametrize("case", STORED["decode"], ids=lambda case: case["strategy"])
def test_it_goes_on_evicting_as_the_released_code_does(gates: str, case: dict) -> None:
    """One token after the other, from the eviction of the first `prefill_len` on."""
    policy, views, held = decoding(gates, case)
    for number, whole in enumerate(golden_views()):
        (chosen,) = policy.select_many(views[number], [held.kept])
        kept, carried, found = chosen.positions, chosen.carried, [chosen.positions[0].tolist()]
        for seen in range(held.prompt + 1, LENGTH + 1):
            count = policy.evictions(held, kept.shape[-1] + 1 - held.kept, seen, LAYERS)
            step = appended(policy, held, whole, kept, carried, seen, count)
            kept, carried = step.positions, policy.carry(step)
            if count:
                gone = policy.drop(step, carried, count)
                stays = torch.ones_like(kept, dtype=torch.bool).scatter_(-1, gone, False)
                kept, carried = (x[stays].view(1, 2, -1) for x in (kept, carried))
                found.append(kept[0].tolist())
        assert found == [layers[number] for layers in case["kept"]]


@pytest.mark.parametrize("case", STORED["decode_global"], ids=lambda case: case["strategy"])
def test_all_layers_compete_at_each_eviction_as_in_the_released_code(gates, case) -> None:
    """Heads get other numbers of the same total from one eviction to the next."""
    policy, views, held = decoding(gates, case, budget="global")
    assert policy.competes
    rated = [policy.rate(view, [held.kept]) for view in views]
    chosen = [of[0] for of in policy.select_layers(rated)]
    kept, carried = [one.positions for one in chosen], [one.carried for one in chosen]
    found, grown = [[heads(one) for one in chosen]], 0
    for seen in range(held.prompt + 1, LENGTH + 1):
        count = policy.evictions(held, grown + 1, seen, LAYERS)
        grown += 1 - count
        steps = [
            appended(policy, held, whole, *own, seen, count)
            for whole, *own in zip(golden_views(), kept, carried, strict=True)
        ]
        kept, carried = [step.positions for step in steps], [policy.carry(step) for step in steps]
        if count:
            ranked = [policy.ranked(*own) for own in zip(steps, carried, strict=True)]
            for own, (gone, numbers) in zip(
                kept, methods.victims_across(ranked, kept, count), strict=True
            ):
                assert (gone >= 0).sum(-1).tolist() == numbers.tolist()
                for head, drops in enumerate(gone[0].tolist()):
                    own[0, head, [i for i in drops if i >= 0]] = -1
            found.append(
                [[[p for p in head if p >= 0] for head in own[0].tolist()] for own in kept]
            )
    assert found == case["kept"]
    counts = {tuple(len(head) for layer in each for head in layer) for each in found}
    assert len(counts) > 2
    assert {sum(each) for each in counts} == {2 * LAYERS * held.kept}


def by_formula(view: methods.LayerView, parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """(L + 1 - i) log sigmoid(...), element by element in float64."""
    hidden, found = view.hidden.double(), torch.zeros(1, view.kv_heads, view.length).double()
    for token in range(view.length):
        inner = parts["linear1.weight"].double() @ hidden[0, token] + parts["linear1.bias"].double()
        inner = inner / (1 + (-inner).exp())
        logits = parts["linear2.weight"].double() @ inner + parts["bias"].double()
        for head, logit in enumerate(logits.tolist()):
            found[0, head, token] = -(view.length + 1 - token) * math.log1p(math.exp(-logit))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_follow_the_formula(gates: str, dtype: torch.dtype) -> None:
    policy = methods.build("trimkv", gates=gates)
    for layer, view in enumerate(golden_views()):
        name = f"model.layers.{layer}.self_attn.retention_gate."
        parts = {k.removeprefix(name): v for k, v in TENSORS.items() if k.startswith(name)}
        low = methods.LayerView(
            *(t.to(dtype) for t in (view.keys, view.values, view.queries)),
            scaling=1.0,
            layer=layer,
            num_layers=LAYERS,
            hidden=view.hidden.to(dtype),
        )
        found = policy.score(low, 7)
        torch.testing.assert_close(found.double(), by_formula(low, parts), rtol=1e-4, atol=1e-4)


def test_budgets_together_keep_what_each_keeps_alone(gates: str) -> None:
    policy, view = methods.build("trimkv", gates=gates, protect="boundary"), golden_views()[1]
    together = policy.keep_many(view, [1, 8, LENGTH, 90])
    assert all(
        torch.equal(one, policy.keep(view, n))
        for one, n in zip(together, [1, 8, LENGTH, 90], strict=True)
    )
    assert [one.shape[-1] for one in together] == [1, 8, LENGTH, LENGTH]


def test_a_folder_and_other_names_are_read(gates: str, tmp_path: Path) -> None:
    renamed = {name.removeprefix("model."): t for name, t in load_file(gates).items()}
    halves = [
        {n: t for n, t in renamed.items() if (".0." in n) is first} for first in (True, False)
    ]
    for number, half in enumerate(halves):
        save_file(half, tmp_path / f"part-{number}.safetensors")
    for one, other in zip(load(str(tmp_path)), load(gates), strict=True):
        torch.testing.assert_close(one(torch.ones(1, 2, 16)), other(torch.ones(1, 2, 16)))


def test_three_maps_are_a_gate_too(tmp_path: Path) -> None:
    """DBTrimKV's gates have one more."""
    torch.manual_seed(1)
    shapes = {"linear1": (6, 16), "linear2": (5, 6), "linear3": (2, 5)}
    parts = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    parts["bias"] = torch.tensor([18.0, 0.0])
    save_file(
        {f"layers.0.retention_gate.{n}": t for n, t in parts.items()}, tmp_path / "g.safetensors"
    )
    (gate,) = load(str(tmp_path))
    x = torch.randn(1, 4, 16)
    inner = x
    for name in ("linear1", "linear2"):
        inner = torch.nn.functional.silu(inner @ parts[f"{name}.weight"].T)
    wanted = (inner @ parts["linear3.weight"].T + parts["bias"]).sigmoid().log().transpose(1, 2)
    torch.testing.assert_close(gate(x), wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {}, "holds gates of 0 layers"),
        (lambda t: {n: x for n, x in t.items() if ".1." not in n}, "holds gates of 2 layers"),
        (lambda t: {n: x for n, x in t.items() if "1.self_attn.retention_gate.linear1.w" not in n},
         "is no chain of linear maps"),
        (lambda t: {n.replace("linear2", "linear3"): x for n, x in t.items()},
         "is no chain of linear maps"),
        (lambda t: {n: x * math.nan for n, x in t.items()}, "is no chain of linear maps"),
        (lambda t: {**t, "layers.0.self_attn.retention_gate.odd": torch.ones(1)},
         "is no chain of linear maps"),
    ],
)  # fmt: skip
def test_damaged_gates_are_refused_in_a_sentence(gates: str, tmp_path: Path, change, said) -> None:
    save_file(change(load_file(gates)), tmp_path / "g.safetensors")
    with pytest.raises(ValueError, match=said):
        methods.build("trimkv", gates=str(tmp_path / "g.safetensors"))


@pytest.mark.parametrize("place", ["absent", "text.safetensors", "."])
def test_what_is_no_gates_is_refused_in_a_sentence(tmp_path: Path, place: str) -> None:
    (tmp_path / "text.safetensors").write_text("not tensors")
    with pytest.raises(ValueError, match=r"^(trimkv: )?gates="):
        methods.build("trimkv", gates=str(tmp_path / place))


def test_gates_and_views_must_fit(gates: str) -> None:
    with pytest.raises(ValueError, match="give the safetensors file"):
        methods.build("trimkv")
    with pytest.raises(ValueError, match="not allowed; give a rule"):
        TrimKV(gates=gates, budget="adaptive")
    policy = methods.build("trimkv", gates=gates)
    with pytest.raises(ValueError, match="needs the hidden states"):
        policy.keep(random_view(num_layers=3), 4)
    view = methods.LayerView(
        *(random_view(num_layers=3).__dict__[n] for n in ("keys", "values", "queries")),
        scaling=1.0,
        hidden=torch.randn(1, 41, 20),
        num_layers=3,
    )
    with pytest.raises(
        ValueError, match="3 layers of 16 units and 2 KV heads, this model has 3, 20"
    ):
        policy.keep(view, 4)
    with pytest.raises(ValueError, match="hidden has shape"):
        methods.LayerView(view.keys, view.values, view.queries, 1.0, hidden=torch.ones(1, 3, 16))


def test_the_digest_of_the_gates_is_part_of_the_parameters(gates: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(Path(gates).read_bytes())
    ends = [str(methods.build("trimkv", gates=p).params["gates"])[-24:] for p in (gates, str(copy))]
    assert ends[0] == ends[1]
    assert ends[0].startswith("@sha256:")
    policy = methods.build("trimkv", gates=str(copy))
    assert methods.build("trimkv", **policy.params) == policy
    changed = {name: 2 * tensor for name, tensor in load_file(copy).items()}
    before = copy.stat().st_mtime_ns
    save_file(changed, copy)
    os.utime(copy, ns=(before, before + 10**7))  # clocks of file systems tick slowly
    assert methods.build("trimkv", gates=str(copy)) != policy
    with pytest.raises(ValueError, match="has changed since it was chosen"):
        policy.keep(golden_views()[0], 4)
