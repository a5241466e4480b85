"""The chosen methods with every parameter filled in, checked before any model loads.

Knows settings and the names of the methods; must not know models, tasks or the engine.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.errors import UserError
from harness.settings import caches
from harness.settings.bounds import check_name, shortened
from harness.settings.config import (
    CACHE_WIDE,
    SWEEP_WIDE,
    Config,
    ContrastConfig,
    ProtocolConfig,
)
from harness.settings.grid import FULL, IDLE, Variant


def sweep_wide(config: Config) -> dict[str, object]:
    """The parameters that are given for the whole sweep."""
    given = {name: getattr(config, name) for name in SWEEP_WIDE}
    return {name: value for name, value in given.items() if value is not None}


def cache_wide(config: Config) -> dict[str, object]:
    """How what is kept is stored, as it is given for the whole sweep."""
    given = {name: getattr(config, name) for name in CACHE_WIDE}
    return {name: value for name, value in given.items() if value is not None}


def variants(
    chosen: Mapping[str, Any],
    wide: Mapping[str, object],
    cache: Mapping[str, object] | None = None,
) -> list[Variant]:
    """Turn the `methods` mapping into variants with every parameter filled in.

    Args:
        chosen: a label to {method, parameters...}.
        wide: parameters for every variant that has them and does not set them otherwise.
        cache: how every variant stores what it keeps, where it does not say otherwise.

    Raises:
        UserError: an unknown method or parameter, a value out of range, a parameter in `wide` that
            no variant takes, two labels alike, or a full cache in few bits without a label of its
            own.
    """
    if not chosen:
        raise UserError(
            "method=[] chooses nothing to compare: name at least one, such as 'method=[restkv]'."
        )
    nodes = caches.spread(chosen, cache or {})
    found = _replaced([variant(label, node) for label, node in nodes.items()], wide)
    if any(one.label == FULL and one.params for one in found):
        raise UserError(
            "methods.full is the full cache that all others are compared with, so it stays in full "
            "precision: use method=[full_quantized], or a label of your own with method: full."
        )
    for one in found:
        check_stored(one)
    seen: dict[tuple[object, ...], str] = {}
    for one in found:
        other = seen.setdefault((one.method, one.params), one.label)
        if other != one.label:
            raise UserError(
                f"methods.{other} and methods.{one.label} are the same method with the same "
                f"parameters{_because(wide)}: leave one out, or change a parameter."
            )
    return found


def _because(wide: Mapping[str, object]) -> str:
    given = ", ".join(f"{name}={value}" for name, value in wide.items())
    return f" ({given} given)" if given else ""


def _replaced(found: Sequence[Variant], wide: Mapping[str, object]) -> list[Variant]:
    """The variants with what is given for the whole sweep, where they set nothing of their own."""
    import methods

    for name, value in wide.items():
        if any(name in _usual(one) for one in found):
            continue
        able = [method for method in methods.names() if name in methods.parameters(method)]
        raise UserError(
            f"{name}={value} applies to none of the chosen methods, which lack it or set a value "
            f"of their own: leave it out, or choose one that has it, of {', '.join(able)}."
        )
    replaced = []
    for one in found:
        given = {name: wide[name] for name in _usual(one) if name in wide}
        own = dict(one.params) | given
        own |= {name: value for name, value in one.params if name in given and _idle(name, own)}
        replaced.append(variant(one.label, {"method": one.method, **own}))
    for name, value in wide.items():
        if all(_idle(name, dict(one.params)) for one in replaced):
            other, (acts, *_) = IDLE[name]
            raise UserError(
                f"{name}={value} does nothing for the chosen methods: give {other}={acts} as well, "
                "or leave it out."
            )
    return replaced


def _idle(name: str, params: Mapping[str, object]) -> bool:
    """Whether a parameter does nothing beside the others, or is not there."""
    other, values = IDLE.get(name, (name, ()))
    return other != name and params.get(other) not in values


def _usual(one: Variant) -> list[str]:
    """The parameters of a variant that have their method's default."""
    import methods

    defaults = methods.parameters(one.method)
    return [name for name, value in one.params if name in defaults and value == defaults[name]]


def check_stored(one: Variant) -> None:
    """Raise UserError for a cache that the method cannot have."""
    own, cache = caches.parted(dict(one.params))
    if reason := caches.refused(own, cache):
        raise UserError(f"methods.{one.label}: {reason}")


def untouched(chosen: Sequence[Variant], wide: Mapping[str, object]) -> list[str]:
    """A sentence for each sweep-wide value that some of the variants do not have."""
    told = []
    for name, value in wide.items():
        without = [one.label for one in chosen if dict(one.params).get(name) != value]
        if without:
            told.append(f"{name}={value} does not apply to {', '.join(without)}.")
    return told


def check_anchors(chosen: Sequence[Variant], protocols: Sequence[ProtocolConfig]) -> None:
    """Raise UserError for a window on the question where that is read after the eviction."""
    for one in chosen:
        params, late = dict(one.params), any(each.name == "context" for each in protocols)
        if late and "window_anchor" in params and params["window"] is None:
            raise UserError(
                f"methods.{one.label} watches the question, which protocol=context reads after the "
                "eviction: use protocol=replay, or window_anchor=end with a window of as many last "
                "tokens of the context."
            )
        if late and params.get("window_anchor") == "question":
            raise UserError(
                f"methods.{one.label}.window_anchor=question watches the question, which "
                "protocol=context reads after the eviction: use window_anchor=end, or "
                "protocol=replay."
            )


def variant(label: str, node: Any) -> Variant:
    """One labelled method from a mapping {method, parameters...}, defaults filled in.

    Raises:
        UserError: an unknown method or parameter, or a value out of range.
    """
    import methods  # late: it brings torch, and most bad input is found without it

    check_name("methods", label)
    params = dict(node) if isinstance(node, Mapping) else {}
    name = params.pop("method", None)
    if name is None:
        raise UserError(
            f"methods.{label} does not say which method it is: choose it with 'method=[{label}]', "
            f"or give methods.{label}.method, one of {', '.join(methods.names())}."
        )
    if name not in methods.names():
        raise UserError(
            f"methods.{label}.method={shortened(name)} is not a method: use one of "
            f"{', '.join(methods.names())}."
        )
    known = methods.parameters(name)
    for key in params:
        if key not in known and key not in caches.NAMES:
            raise UserError(
                f"methods.{label}.{key} is not a parameter of {name}: it takes "
                f"{', '.join(known) or 'none'}."
            )
    try:
        params, cache = caches.parted(params)
        policy = methods.build(name, **params)
    except (TypeError, ValueError) as error:
        raise UserError(f"methods.{label}: {error}") from error
    stored = {} if cache is None else cache.params
    return Variant(label, name, tuple(sorted({**policy.params, **stored}.items())))


def titles(chosen: Sequence[Variant]) -> dict[str, str]:
    """How a method is written, such as ReST-KV, by label; labels of their own stay as they are."""
    import methods

    return {one.label: methods.title(one.method) for one in chosen if one.label == one.method}


def traits(chosen: Sequence[Variant]) -> dict[str, dict[str, bool]]:
    """What kind of method each label is: whether it looks at queries of the prompt (else it is
    query-agnostic), whether it is learned, and whether it was made for images.
    """
    import methods

    found = {}
    for one in chosen:
        policy = methods.build(one.method, **caches.parted(dict(one.params))[0])
        looks = policy.queries(0, 1) != 0 or policy.observes
        found[one.label] = {
            "queries": looks,
            "learned": policy.learned,
            "images": policy.made_for_images,
        }
    return found


def contrasts(
    chosen: Sequence[Variant], asked: Sequence[ContrastConfig]
) -> tuple[list[ContrastConfig], list[str]]:
    """The contrasts whose two labels were chosen and differ in nothing but what they may.

    Returns:
        The contrasts, and a sentence for each that was left out because the two differ in more.
    """
    known = {one.label: one for one in chosen}
    found, told = [], []
    for pair in asked:
        if not {pair.label, pair.against} <= known.keys():
            continue
        one, other = known[pair.label], known[pair.against]
        differ = {"method"} if one.method != other.method else _differing(one, other)
        names = sorted(differ - {*pair.varies})
        if not names:
            found.append(pair)
            continue
        told.append(
            f"What {pair.called} does is not told: {pair.label} and {pair.against} differ in "
            f"{', '.join(names)} as well; give both the same."
        )
    return found, told


def _differing(one: Variant, other: Variant) -> set[str]:
    mine, theirs = dict(one.params), dict(other.params)
    return {name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name)}


def factors(chosen: Sequence[Variant]) -> dict[str, dict[str, str]]:
    """The smoothing of every variant of ReST-KV that is like the first in all else.

    Returns:
        Label to `temporal` (ema or mean) and `spatial` (none, avg, adaptive at its published scale,
        or relative: adaptive at a share of the prompt); variants with other values are left out.
    """
    from harness.stats.contrasts import LEVELS

    smoothing = ("temporal", "spatial", "relative_scale")
    found: dict[str, dict[str, str]] = {}
    base: dict[str, object] | None = None
    for one in chosen:
        if one.method != "restkv":
            continue
        params = dict(one.params)
        spatial = str(params["spatial"])
        if spatial == "adaptive" and params["relative_scale"] is not None:
            spatial = "relative"
        level = {"temporal": str(params["temporal"]), "spatial": spatial}
        if any(level[name] not in LEVELS[name] for name in level):
            continue
        rest = {name: value for name, value in params.items() if name not in smoothing}
        base = rest if base is None else base
        if rest == base and level not in found.values():
            found[one.label] = level
    return found


def window_weights(chosen: Sequence[Variant]) -> dict[str, dict[str, object]]:
    """How much each query of an observation window counts, oldest first, by label.

    Returns:
        Label to `weights`, summing to 1, and `behind`: whether the window ends with the question,
        before the chat template's suffix. Methods without such a window, or one that differs from
        prompt to prompt, are left out.
    """
    import torch

    from methods.smoothing import temporal_weights

    found: dict[str, dict[str, object]] = {}
    for one in chosen:
        params = dict(one.params)
        if params.get("window") is None or "window_anchor" not in params:
            continue
        kind, alpha = params.get("temporal", "mean"), params.get("alpha", 0.0)
        weights = temporal_weights(
            str(kind), int(str(params["window"])), float(str(alpha)), torch.device("cpu")
        )
        found[one.label] = {
            "weights": [round(weight, 6) for weight in weights.tolist()],
            "behind": params["window_anchor"] == "question",
        }
    return found
