"""Eviction policies for KV caches: which tokens of a layer to keep at a budget.

Torch only; it must not know models, configurations or the harness.
"""

from __future__ import annotations

from .budgets import budget
from .cake import Cake
from .chunkkv import ChunkKV
from .criticalkv import CriticalH2O, CriticalKV, CriticalTOVA
from .expected_attention import ExpectedAttention
from .finch import Finch
from .full import Full
from .h2o import H2O
from .headkv import HeadKV
from .holding import Due, Held, Rule, Step, victims, victims_across
from .infinipot_v import InfiniPotV
from .keydiff import KeyDiff
from .knorm import Knorm
from .kvzip import KVzip
from .lacache import LaCache
from .lagkv import LagKV
from .look_m import LookM
from .merging import merged
from .mixkv import MixKV
from .policy import Policy, Rated, Selection
from .post_vision import PostVision
from .qfilters import QFilters, filters_of
from .random import Random
from .recital import Recited, most_attention
from .restkv import RestKV
from .rkv import RKV
from .snapkv import SnapKV
from .streaming_llm import StreamingLLM
from .tova import TOVA
from .trimkv import TrimKV
from .view import LayerView

__all__ = [
    "Due",
    "Held",
    "LayerView",
    "Policy",
    "Rated",
    "Recited",
    "Rule",
    "Selection",
    "Step",
    "budget",
    "build",
    "filters_of",
    "merged",
    "most_attention",
    "names",
    "parameters",
    "title",
    "victims",
    "victims_across",
]

_POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        Full,
        Random,
        StreamingLLM,
        SnapKV,
        H2O,
        TOVA,
        LaCache,
        RestKV,
        KeyDiff,
        CriticalKV,
        CriticalH2O,
        CriticalTOVA,
        TrimKV,
        Knorm,
        LagKV,
        ChunkKV,
        PostVision,
        ExpectedAttention,
        Cake,
        LookM,
        MixKV,
        InfiniPotV,
        QFilters,
        HeadKV,
        RKV,
        Finch,
        KVzip,
    )
}


def names() -> tuple[str, ...]:
    """Names that `build` takes."""
    return tuple(_POLICIES)


def title(name: str) -> str:
    """A method's name as it is written in a sentence, such as ReST-KV."""
    return _POLICIES[name].title or name


def build(name: str, **params: object) -> Policy:
    """The policy with these parameters, ready to look at views.

    ValueError for an unknown name, parameter or value, and for files that are not there.
    """
    known = parameters(name)
    for parameter in params:
        if parameter not in known:
            takes = "it takes " + ", ".join(known) if known else "it takes none"
            raise ValueError(f"{name} has no parameter {parameter!r}; {takes}.")
    return _POLICIES[name](**params).ready()


def parameters(name: str) -> dict[str, object]:
    """Parameters of a method with their defaults. ValueError for an unknown name."""
    if name not in _POLICIES:
        raise ValueError(f"unknown method {name!r}; choose one of {', '.join(_POLICIES)}.")
    return _POLICIES[name]().params
