"""Names, parameters, the budget rule, and how bad input is refused."""

from fractions import Fraction

import pytest
import torch

import methods
from tests.methods import matrix
from tests.methods.defaults import DEFAULTS
from tests.methods.views import random_view

OBSERVING = ("snapkv", "restkv", "criticalkv", "chunkkv", "mixkv")


def test_names_and_defaults_are_the_published_setting():
    assert set(methods.names()) == set(DEFAULTS)
    for name, params in DEFAULTS.items():
        assert methods.parameters(name) == params
    for name in matrix.NAMES:
        policy = methods.build(name)
        assert policy.name == name
        assert policy.params == DEFAULTS[name]


def test_how_many_queries_each_method_needs():
    windows = {name: methods.build(name).window for name in matrix.NAMES}
    every = ("h2o", "criticalkv_h2o", "post_vision", "expected_attention")
    assert {windows.pop(name) for name in every} == {None}
    assert {windows.pop(name) for name in OBSERVING} == {32}
    assert methods.build("cake").window == 32
    assert windows.pop("rkv") == 8
    assert windows.pop("tova") == windows.pop("criticalkv_tova") == 1
    assert set(windows.values()) == {0}


def test_equal_policies_are_equal():
    assert methods.build("restkv", alpha=0.5) == methods.build("restkv", alpha=0.5)
    assert len({methods.build("h2o"), methods.build("h2o"), methods.build("h2o", recent=3)}) == 2
    assert methods.build("restkv", alpha=0.5).params["alpha"] == 0.5


def test_unknown_name_lists_the_methods():
    for call in (methods.build, methods.parameters):
        with pytest.raises(ValueError, match=r"'rest_kv'.*snapkv.*restkv"):
            call("rest_kv")


def test_unknown_parameter_lists_the_parameters():
    with pytest.raises(ValueError, match=r"restkv.*'windw'.*window, temporal"):
        methods.build("restkv", windw=3)
    with pytest.raises(ValueError, match="takes none"):
        methods.build("full", window=3)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("random", {"seed": -1}),
        ("random", {"seed": 0.5}),
        ("streaming_llm", {"sinks": -1}),
        ("streaming_llm", {"sinks": True}),
        ("snapkv", {"window": 0}),
        ("snapkv", {"pool": "median"}),
        ("snapkv", {"pool": ["avg"]}),
        ("snapkv", {"kernel": 4}),
        ("snapkv", {"group": "joint"}),
        ("snapkv", {"value_norm": 1}),
        ("knorm", {"budget": "adaptive"}),
        ("chunkkv", {"budget": "adaptive"}),
        ("expected_attention", {"future": 0}),
        ("expected_attention", {"epsilon": -1}),
        ("expected_attention", {"covariance": 1}),
        ("chunkkv", {"chunk": 0}),
        ("post_vision", {"recent": 1.1}),
        ("post_vision", {"shared": True, "budget": "adaptive"}),
        ("chunkkv", {"shared": 1}),
        ("look_m", {"merge": "mean"}),
        ("snapkv", {"merge": None}),
        ("streaming_llm", {"merge": "pivot"}),
        ("mixkv", {"diversity": 1.1}),
        ("rkv", {"mix": 1.1}),
        ("rkv", {"threshold": -0.1}),
        ("rkv", {"kernel": 4}),
        ("rkv", {"official": 1}),
        ("rkv", {"budget": "adaptive"}),
        ("rkv", {"decode": "grow", "buffer": 16}),
        ("finch", {"window": 0}),
        ("kvzip", {"chunk": 0}),
        ("finch", {"normalize": 1}),
        ("finch", {"positions": "rank"}),
        ("finch", {"positions": "cache", "merge": "pivot"}),
        ("qfilters", {"filters": 3}),
        ("qfilters", {"recent": -1}),
        ("infinipot_v", {"temporal": 1.1}),
        ("infinipot_v", {"recent": -0.1}),
        ("infinipot_v", {"frame": 0}),
        ("infinipot_v", {"budget": "adaptive"}),
        ("infinipot_v", {"budget": "global"}),
        ("cake", {"gamma": -1}),
        ("cake", {"tau1": 0}),
        ("cake", {"tau2": True}),
        ("h2o", {"budget": "layers"}),
        ("keydiff", {"budget": "layers"}),
        ("criticalkv", {"budget": "layers"}),
        ("lagkv", {"sinks": -1}),
        ("lagkv", {"lag": 1}),
        ("lagkv", {"cross": 1}),
        ("criticalkv", {"first_stage": -0.1}),
        ("criticalkv", {"first_stage": 1.1}),
        ("criticalkv", {"epsilon": 0}),
        ("criticalkv", {"value_norm": False}),
        ("h2o", {"recent": -1}),
        ("h2o", {"causal": "no"}),
        ("h2o", {"causal": False}),
        ("h2o", {"average": "mean"}),
        ("h2o", {"group": "joint"}),
        ("tova", {"protect_last": None}),
        ("lacache", {"span": 0}),
        ("lacache", {"span": 2, "overlap": 2}),
        ("lacache", {"overlap": -1}),
        ("lacache", {"overlap": "1"}),
        ("lacache", {"overlap": "1", "span": 2}),
        ("lacache", {"start": -1}),
        ("restkv", {"window": 1.5}),
        ("restkv", {"temporal": "none"}),
        ("restkv", {"alpha": 0}),
        ("restkv", {"alpha": 1.1}),
        ("restkv", {"alpha": "0.3"}),
        ("restkv", {"alpha": float("nan")}),
        ("restkv", {"metric": "both"}),
        ("restkv", {"project": 1}),
        ("restkv", {"tau": 0}),
        ("restkv", {"spatial": "avgpool"}),
        ("restkv", {"kernel": 6}),
        ("restkv", {"scale": 0}),
        ("restkv", {"scale": None}),
        ("restkv", {"relative_scale": -0.1}),
        ("restkv", {"group": "sum"}),
        ("restkv", {"group": "joint", "tau": 2.0}),
        ("restkv", {"group": "joint", "normalize": True}),
    ],
)
def test_bad_values_are_refused_by_name(name, params):
    with pytest.raises(ValueError, match=name) as error:
        methods.build(name, **params)
    assert any(parameter in str(error.value) for parameter in params)
    assert "\n" not in str(error.value)


def test_edges_of_the_allowed_values():
    methods.build("restkv", alpha=1, tau=0.5, scale=1, relative_scale=1, kernel=1, window=1)
    methods.build("lacache", span=1, start=0)
    methods.build("h2o", recent=0)
    view = random_view()
    newest = methods.build("restkv", window=8, alpha=1).score(view, 12)
    last = methods.build("restkv", window=8, temporal="last").score(view, 12)
    assert torch.allclose(newest, last)


def test_budget_keeps_what_the_decimal_ratio_means():
    assert methods.budget(10, 0.7) == 3
    assert methods.budget(100, 0.29) == 71
    assert methods.budget(10, 1 - 0.9) == 9
    assert methods.budget(130, 0) == 130
    assert methods.budget(3, 1 / 3) == 2
    assert methods.budget(3, 0.333333) == 3
    assert methods.budget(1, 0.999) == 1
    assert methods.budget(5, 0.99999999) == 1
    for percent in range(100):
        for length in (1, 7, 130, 1999, 131072):
            exact = length - (Fraction(percent, 100) * length).__floor__()
            assert methods.budget(length, percent / 100) == exact


@pytest.mark.parametrize("ratio", [1, 1.0, -0.1, 2, float("nan"), "0.5", None, True])
def test_a_ratio_outside_zero_to_one_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio"):
        methods.budget(10, ratio)


def test_a_length_of_zero_is_refused():
    with pytest.raises(ValueError, match="length"):
        methods.budget(0, 0.5)


def _parts(**changes):
    view = random_view()
    parts = {
        "keys": view.keys,
        "values": view.values,
        "queries": view.queries,
        "scaling": 0.5,
        "output_weight": view.output_weight,
    }
    return {**parts, **changes}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"keys": torch.zeros(2, 41, 8)}, "keys"),
        ({"values": torch.zeros(1, 2, 40, 8)}, "values"),
        ({"queries": torch.zeros(1, 3, 4, 8)}, "queries"),
        ({"queries": torch.zeros(1, 4, 42, 8)}, "queries"),
        ({"queries": torch.zeros(1, 4, 4, 9)}, "queries"),
        ({"queries": torch.zeros(2, 4, 4, 8)}, "queries"),
        ({"output_weight": torch.zeros(24, 31)}, "output_weight"),
        ({"layer": 1}, "layer"),
        ({"modality": torch.zeros(1, 40)}, "modality"),
        ({"mask": torch.ones(1, 1, 41, 41)}, "mask"),
        ({"mask": torch.ones(1, 1, 40, 41, dtype=torch.bool)}, "mask"),
        ({"mask": torch.zeros(1, 1, 41, 41, dtype=torch.bool)}, "mask"),
    ],
)
def test_a_layer_whose_parts_disagree_is_refused(changes, word):
    with pytest.raises(ValueError, match=word):
        methods.LayerView(**_parts(**changes))


def test_restkv_needs_the_output_projection_unless_told_not_to():
    view = methods.LayerView(**_parts(output_weight=None))
    with pytest.raises(ValueError, match="output_weight"):
        methods.build("restkv").keep(view, 5)
    assert methods.build("restkv", project=False).keep(view, 5).shape == (1, 2, 5)


def test_expected_attention_needs_the_rotation():
    with pytest.raises(ValueError, match=r"LayerView\.rotation") as error:
        methods.build("expected_attention").keep(methods.LayerView(**_parts()), 5)
    assert "\n" not in str(error.value)


def test_criticalkv_needs_the_output_projection():
    view = methods.LayerView(**_parts(output_weight=None))
    with pytest.raises(ValueError, match="output_weight") as error:
        methods.build("criticalkv").keep(view, 5)
    assert "\n" not in str(error.value)
