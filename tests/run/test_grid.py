import json
from dataclasses import replace

import pytest

from harness.settings.grid import (
    Cell,
    Prefill,
    Variant,
    cell_key,
    described,
    expand,
    full_cells,
)

CONTEXT = {"weights": "w", "data": "d", "seed": 0, "generation": {"n": 8}}
BASE = Cell("snapkv", "snapkv", (("kernel", 5), ("window", 32)), ratio=0.5)


def test_full_cache_and_control_come_first_then_method_by_method() -> None:
    variants = [Variant("full", "full"), Variant("a", "snapkv"), Variant("b", "random")]
    cells = expand(variants, [0.5, 0.9], [])
    assert [(c.label, c.ratio, c.control) for c in cells] == [
        ("full", None, "none"),
        ("blank_image", None, "blank_image"),
        ("a", 0.5, "none"),
        ("a", 0.9, "none"),
        ("b", 0.5, "none"),
        ("b", 0.9, "none"),
    ]
    assert [c.evicts for c in cells] == [False, False, True, True, True, True]


def test_every_protocol_has_all_cells_with_its_own_full_cache() -> None:
    protocols = [("replay", "suffix"), ("context", None)]
    cells = expand([Variant("a", "snapkv")], [0.5], [], True, protocols)
    assert [(c.label, c.protocol, c.tail) for c in cells] == [
        (label, *protocol) for protocol in protocols for label in ("full", "blank_image", "a")
    ]
    keys = {str(number): cell for number, cell in enumerate(cells)}
    assert full_cells(keys) == {"0": cells[0], "3": cells[3]}


def test_a_key_is_what_earlier_stores_hold() -> None:
    """Made before cells knew their protocol; what is stored stays of use."""
    context = {**CONTEXT, "task": "t", "device": "cpu", "dtype": "float32", "generation": {}}
    late = Cell("a", "snapkv", (("window", 4),), 0.5, protocol="context", tail=None)
    assert cell_key(late, context) == "e645b5f61e529242"
    assert cell_key(replace(late, protocol="replay", tail="last_token"), context) == (
        "884a09d404777fb8"
    )
    told = described(late, context)
    assert told["context"] == {**context, "protocol": "context", "tail": None}
    assert "protocol" not in told["cell"]


def test_every_prefill_has_all_cells_and_dense_ones_keep_their_keys() -> None:
    sparse = Prefill("wide", (("pattern", "xattention"), ("stride", 16)))
    cells = expand([Variant("a", "snapkv")], [0.5], [], False, prefills=[Prefill(), sparse])
    assert [(c.label, c.under) for c in cells] == [
        ("full", "replay"), ("a", "replay"), ("full", "replay+wide"), ("a", "replay+wide")
    ]  # fmt: skip
    assert [cell_key(c, CONTEXT) for c in cells[:2]] == [
        cell_key(c, CONTEXT) for c in expand([Variant("a", "snapkv")], [0.5], [], False)
    ]
    assert "prefill" not in described(cells[0], CONTEXT)["cell"]
    told = described(cells[2], CONTEXT)
    assert told["cell"]["prefill"] == "wide"
    assert told["context"]["prefill"] == {"pattern": "xattention", "stride": 16}
    renamed = replace(cells[2], prefill="other")
    assert cell_key(renamed, CONTEXT) == cell_key(cells[2], CONTEXT)
    other = replace(cells[2], pattern=(("pattern", "xattention"), ("stride", 8)))
    assert len({cell_key(c, CONTEXT) for c in (*cells, other)}) == 5


def test_budgets_make_cells_too_and_the_control_can_be_left_out() -> None:
    cells = expand([Variant("a", "snapkv")], [], [8, 16], blank_image=False)
    assert [(c.label, c.ratio, c.budget) for c in cells] == [
        ("full", None, None),
        ("a", None, 8),
        ("a", None, 16),
    ]


@pytest.mark.parametrize(
    "other",
    [
        Cell("snapkv", "tova", BASE.params, ratio=0.5),
        Cell("snapkv", "snapkv", (("kernel", 7), ("window", 32)), ratio=0.5),
        Cell("snapkv", "snapkv", BASE.params, ratio=0.6),
        Cell("snapkv", "snapkv", BASE.params, budget=5),
        Cell("snapkv", "snapkv", BASE.params, ratio=0.5, control="blank_image"),
        Cell("snapkv", "snapkv", BASE.params, ratio=0.5, protocol="context", tail=None),
        Cell("snapkv", "snapkv", BASE.params, ratio=0.5, tail="suffix"),
    ],
)
def test_every_field_of_a_cell_changes_its_key(other: Cell) -> None:
    assert cell_key(other, CONTEXT) != cell_key(BASE, CONTEXT)


@pytest.mark.parametrize("name", list(CONTEXT))
def test_every_setting_changes_the_key(name: str) -> None:
    assert cell_key(BASE, {**CONTEXT, name: "other"}) != cell_key(BASE, CONTEXT)


def test_a_key_is_16_hex_digits_that_do_not_depend_on_label_or_order() -> None:
    key = cell_key(BASE, CONTEXT)
    assert len(key) == 16
    assert set(key) <= set("0123456789abcdef")
    renamed = Cell("mine", "snapkv", BASE.params, ratio=0.5)
    assert cell_key(renamed, dict(reversed(list(CONTEXT.items())))) == key


def test_a_key_survives_a_round_trip_of_its_settings() -> None:
    assert cell_key(BASE, json.loads(json.dumps(CONTEXT))) == cell_key(BASE, CONTEXT)


def test_a_meaning_that_changed_changes_the_keys_of_its_cells_alone() -> None:
    """The keys were made before DBTrimKV ranked all layers while it holds its budget."""
    context = {"model": "m"}

    def key(method: str, **params: object) -> str:
        return cell_key(Cell("a", method, tuple(sorted(params.items())), ratio=0.9), context)

    before = {
        ("trimkv", "global", "hold"): "d353e19ea9a2abc7",
        ("trimkv", "global", "buffer"): "48adca18ef56a2b3",
        ("trimkv", "global", "grow"): "4aae9db4abf9c59e",
        ("trimkv", "uniform", "hold"): "9980577db162a586",
        ("tova", "global", "hold"): "f13d693b8d84f6f8",
    }
    now = {each: key(each[0], budget=each[1], decode=each[2], buffer=64) for each in before}
    assert {each for each in before if now[each] != before[each]} == {
        ("trimkv", "global", "hold"),
        ("trimkv", "global", "buffer"),
    }
    assert len({*now.values(), *before.values()}) == len(before) + 2


def test_a_parameter_that_came_later_changes_the_key_only_where_it_says_something() -> None:
    def key(**params: object) -> str:
        return cell_key(replace(BASE, params=tuple(sorted(params.items()))), CONTEXT)

    before = key(protect="none", window=32)
    assert key(protect="none", window=32, boundary_share=0.1) == before
    assert key(protect="none", window=32, boundary_share=0.2) == before
    assert key(protect="boundary", boundary_share=0.1) != key(protect="boundary")
    assert key(protect="boundary", boundary_share=0.1) != key(
        protect="boundary", boundary_share=0.2
    )
    assert key(protect="none", window=32, merge="none") == before
    held = key(decode="hold")
    assert key(decode="hold", buffer=128) == held
    assert len({held, *(key(decode="buffer", buffer=n) for n in (64, 128))}) == 3
    assert (
        len({before, *(key(protect="none", window=32, merge=m) for m in ("pivot", "average"))}) == 3
    )
