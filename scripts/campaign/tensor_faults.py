"""Which tensors a model folder lacks or has too much, or whose numbers are not finite.

What is said, the change, what must come of it, the words of a refusal, the dtype of the run.
"""

from scripts.campaign.tensors import (
    Change,
    State,
    drop,
    drop_any,
    each,
    extra,
    fill,
    float32,
    poison,
    rebalanced,
    renamed,
)

Fault = tuple[str, Change, str, tuple[str, ...], str]
NAN, INF = float("nan"), float("inf")
LAYERS = "language_model.model.layers."
V = f"{LAYERS}2.self_attn.v_proj"
Q = "vision_tower.encoder.layers.1.self_attn.q_proj.weight"


def _refused(said: str, change: Change, *words: str) -> Fault:
    return said, change, "refuse", words, "float32"


def _other(want: str, said: str, change: Change, dtype: str = "float32") -> Fault:
    return said, change, want, (), dtype


def _words(first: int, part: str, value: float = NAN) -> Fault:
    where = "embedding" if part == "embed_tokens" else "output"
    said = f"{value} in the {where} of words {first} to {first + 9}"
    return _other("finite", said, fill(part, tuple(range(first, first + 10)), value))


def _one(state: State, rng: object) -> State:
    return {"x": next(iter(state.values()))}


NAMES: tuple[Fault, ...] = (
    *(_refused(f"missing: {n} tensors at random", drop_any(n)) for n in (1, 1, 1, 1, 3, 40)),
    _refused("missing: v_proj of layer 2", drop(V), "v_proj"),
    _refused("missing: layer 3", drop(f"{LAYERS}3."), "layers.3"),
    _refused("missing: lm_head", drop("lm_head"), "lm_head"),
    _refused("missing: embeddings", drop("embed_tokens"), "embed_tokens"),
    _refused("missing: vision tower", drop("vision_tower"), "vision"),
    _refused("missing: projector", drop("multi_modal_projector"), "projector"),
    _refused("missing: last norm", drop("language_model.model.norm."), "norm"),
    _refused("missing: everything", _one),
    _refused("missing: no tensors at all", lambda state, rng: {}),
    _refused("renamed: v_proj", renamed("v_proj", "value"), "v_proj|value"),
    _refused("renamed: all", lambda state, rng: {f"net.{k}": v for k, v in state.items()}),
    _refused("renamed: capitals", lambda state, rng: {k.upper(): v for k, v in state.items()}),
    _refused("renamed: lm_head", renamed("lm_head", "head"), "head"),
    _refused("renamed: vision tower", renamed("vision_tower", "visual")),
    _other("either", "renamed: as other versions do",
           renamed("language_model.model.", "model.language_model.")),
    _refused("extra: a layer", extra(f"{LAYERS}6.mlp.up_proj.weight"), "layers.6"),
    _refused("extra: a tensor", extra("mine.weight"), "mine"),
    _refused("extra: a bias", extra(f"{LAYERS}0.self_attn.q_proj.bias"), "bias"),
    _other("either", "extra: rotary frequencies",
           extra("language_model.model.rotary_emb.inv_freq")),
)  # fmt: skip
SHAPES: tuple[Fault, ...] = (
    _refused("shape: transposed", each("k_proj", lambda t: t.T), "k_proj"),
    _refused("shape: half a tensor", each(V, lambda t: t[: len(t) // 2]), "v_proj"),
    _refused("shape: smaller vocabulary", each("lm_head", lambda t: t[:-1]), "lm_head"),
    _refused("shape: larger vocabulary", each("embed_tokens", lambda t: t.repeat(2, 1)),
             "embed_tokens"),
    _refused("shape: a scalar", each(V, lambda t: t.sum()), "v_proj"),
    _refused("shape: an empty tensor", each(V, lambda t: t[:0]), "v_proj"),
    _refused("shape: one dimension more", each(V, lambda t: t[None]), "v_proj"),
    _other("either", "type: whole numbers", each(V, lambda t: t.int())),
    _refused("type: bool", each(V, lambda t: t.bool())),
    _other("right", "type: float32", float32),
    _other("right", "type: float64", each(V, lambda t: t.double())),
)  # fmt: skip
NUMBERS: tuple[Fault, ...] = (
    *(
        _other("finite", f"{value} in one weight of {part}", poison(part, value, 1))
        for value in (NAN, INF, -INF)
        for part in (V, "multi_modal_projector.linear_1.weight", "lm_head")
    ),
    _other("finite", "NaN everywhere in v_proj", poison(V, NAN)),
    _other("finite", "NaN in a norm", poison("language_model.model.norm", NAN, 1)),
    _other("finite", "NaN in the vision tower", poison(Q, NAN, 1)),
    _other("finite", "NaN in positions", poison("position_embedding", NAN, 3)),
    *(_words(n, "embed_tokens") for n in (5, 40, 80, 120, 160, 200, 240, 300, 360, 420, 480)),
    *(_words(n, "lm_head") for n in (0, 5, 100, 480)),
    _words(100, "lm_head", INF),
    _words(100, "lm_head", -INF),
    *(_other("right", f"rebalanced by 2^{p}", rebalanced(p)) for p in (6, 20)),
    *(_other("finite", f"rebalanced by 2^{p}", rebalanced(p), "float16") for p in (8, 12, 16, 24)),
    _other("finite", "rebalanced by 2^20", rebalanced(20), "bfloat16"),
    _other("finite", "NaN in v_proj", poison(V, NAN, 1), "float16"),
    _other("finite", "NaN in v_proj", poison(V, NAN, 1), "bfloat16"),
)
FAULTS = NAMES + SHAPES + NUMBERS
