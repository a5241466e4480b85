"""The chosen ways to prefill with every parameter filled in, checked before any model loads.

Knows settings, the patterns of a sparse prefill and the methods; must not know models or the
engine.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.errors import UserError
from harness.settings import caches
from harness.settings.bounds import check_name, shortened
from harness.settings.grid import Prefill, Variant


def prefills(chosen: Mapping[str, Any]) -> list[Prefill]:
    """Turn the `prefills` mapping, a label to {pattern, parameters...}, into what cells hold.

    Settings that an earlier version wrote have none: they are dense.

    Raises:
        UserError: an unknown pattern or parameter, a value out of range, or two labels alike.
    """
    if not chosen:
        return [Prefill()]
    found = [_prefill(label, node) for label, node in chosen.items()]
    seen: dict[tuple[object, ...], str] = {}
    for one in found:
        other = seen.setdefault(one.pattern, one.label)
        if other != one.label:
            raise UserError(
                f"prefills.{other} and prefills.{one.label} are the same: leave one out, or change "
                "a parameter."
            )
    return found


def _prefill(label: str, node: Any) -> Prefill:
    from harness import sparse  # late: it brings torch, and most bad input is found without it

    check_name("prefills", label)
    params = dict(node) if isinstance(node, Mapping) else {}
    name = params.pop("pattern", None)
    known = ", ".join(sparse.names())
    if name is None:
        raise UserError(
            f"prefills.{label} does not say which pattern it is: choose it with 'prefill=[{label}]'"
            f", or give prefills.{label}.pattern, one of {known}."
        )
    if name not in sparse.names():
        raise UserError(
            f"prefills.{label}.pattern={shortened(name)} is not a pattern: use one of {known}."
        )
    if (label == sparse.DENSE) != (name == sparse.DENSE):
        raise UserError(
            f"prefills.{label}.pattern={name} would be confused with another: the label "
            f"{sparse.DENSE} and the pattern {sparse.DENSE} go together."
        )
    try:
        pattern = sparse.build(name, **params)
    except ValueError as error:
        raise UserError(f"prefills.{label}: {error}") from error
    return Prefill(label, () if pattern is None else (("pattern", name), *pattern.params.items()))


def built(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The patterns of checked settings by label; None for dense."""
    from harness import sparse

    given = {label: dict(node) for label, node in chosen.items()}
    return {label: sparse.build(node.pop("pattern"), **node) for label, node in given.items()}


def check_rows(chosen: Sequence[Prefill], variants: Sequence[Variant]) -> None:
    """Raise UserError for methods that need attention which some of these do not compute."""
    import methods

    for prefill in chosen:
        pattern = dict(prefill.pattern)
        for one in variants if pattern else ():
            policy = methods.build(one.method, **caches.parted(dict(one.params))[0])
            if policy.needs_all_rows:
                raise UserError(
                    f"methods.{one.label} needs the attention of all queries, which "
                    f"prefill={prefill.label} does not compute: leave it out of 'method=[...]', or "
                    "give prefill=dense."
                )
            if policy.window is None:
                raise UserError(
                    f"methods.{one.label} watches the whole question, and prefill={prefill.label} "
                    "leaves a number of queries dense that is set before: give "
                    f"methods.{one.label}.window, or prefill=dense."
                )
            window, last = policy.window, int(str(pattern["last"]))
            if window > last:
                raise UserError(
                    f"methods.{one.label}.window={window} watches more queries than "
                    f"prefill={prefill.label} leaves dense: give prefills.{prefill.label}."
                    f"last={window}."
                )
