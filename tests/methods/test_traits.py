"""What runs, docs and the field's experiment say of the kinds of methods, against the methods."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import yaml

import methods
from harness.settings.config import CONF, HOME
from harness.settings.grid import Variant
from harness.settings.variants import traits
from tests.methods.matrix import EVERY
from tests.methods.views import random_view


def kinds(name: str, **params: object) -> dict[str, bool]:
    return traits([Variant(name, name, tuple(params.items()))])[name]


@pytest.mark.parametrize("variant", EVERY)
def test_a_method_looks_at_queries_if_others_change_its_score(variant: str) -> None:
    name, params = EVERY[variant]
    policy = methods.build(name, **params)
    views = [random_view(96, seed=seed) for seed in (0, 1)]
    views[1] = replace(views[0], queries=views[1].queries)
    scores = [policy.score(view, 40) for view in views]
    assert kinds(name, **params)["queries"] != torch.equal(*scores)


@pytest.mark.parametrize("name", ["full", "snapkv", "knorm"])
def test_fewer_bits_leave_the_kind_alone(name: str) -> None:
    stored = {"cache": "quantized", "cache_bits": 2, "cache_group": 16, "cache_residual": 8}
    assert kinds(name, **stored) == kinds(name)


FILES = {"gates", "filters", "importance"}
FILELESS = [n for n in methods.names() if not FILES & {*methods.parameters(n)}]


def test_docs_name_the_kinds() -> None:
    """A new method has its place in docs/methods.md: each name where its class says."""
    text = (HOME / "docs" / "methods.md").read_text(encoding="utf-8")
    said = {
        kind: {*re.findall(r"`(\w+)`", re.search(pattern, text, re.DOTALL)[1])}
        for kind, pattern in {
            "agnostic": r"\n\n([^\n.]*(?:\n[^\n.]+)*?) look at\s+no query",
            "learned": r"Learned: ([^.]*)\.",
            "images": r"Made for images: ([^.]*)\.",
        }.items()
    }
    told = {name: kinds(name) for name in FILELESS if name != "full"}
    assert said == {
        "agnostic": {name for name, kind in told.items() if not kind["queries"]}
        | {"trimkv", "qfilters"},
        "learned": {name for name, kind in told.items() if kind["learned"]} | {"trimkv"},
        "images": {name for name, kind in told.items() if kind["images"]},
    }


def test_the_field_is_whole() -> None:
    """Every method that needs no file, but what `protocol=context` refuses."""
    given = yaml.safe_load((CONF / "experiment" / "field.yaml").read_text(encoding="utf-8"))
    (chosen,) = (one["override /method"] for one in given["defaults"] if "override /method" in one)
    assert {*chosen} == {*FILELESS} - {"full", "post_vision", "finch", "kvzip"}
