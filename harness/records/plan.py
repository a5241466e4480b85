"""The plan of an analysis: from the settings, and on record before its questions are answered.

Knows settings, the store's plans and a run folder's plan.json; must not know samples.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.records.atomic import replacing
from harness.records.store import Store
from harness.settings.config import Config
from harness.settings.grid import DENSE, in_force

if TYPE_CHECKING:
    from harness.stats.plan import Plan

FILE = "plan.json"
# What changes the precision of the bootstrap or the words, not what is tested.
FREE = ("resamples", "question", "contrasts")


@dataclass(frozen=True)
class Asked:
    """What a plan is about beside the settings.

    settings: by task, what decides its answers (data, generation, dtype, ...). questions: by task,
    the number of questions and a function of the store that tells how many have an answer.
    parameters: by label, the method and every parameter, in force for the whole run. compared:
    labels of the variants that the method's smoothing is compared with.
    """

    settings: Mapping[str, Mapping[str, object]]
    questions: Mapping[str, tuple[int, Callable[[Store], int]]]
    parameters: Mapping[str, Mapping[str, object]]
    compared: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """A plan as the store has it: its number, what was answered before, what changed since."""

    number: str
    answered: Mapping[str, tuple[int, int]]
    changed: str

    @property
    def stands(self) -> bool:
        """Whether no plan with other rules was reported on the same questions before."""
        return not self.changed

    def sentence(self) -> str:
        """How this plan stands to the answers."""
        before = [
            f"{count:,} of {total:,} questions" + (f" of {task}" if len(self.answered) > 1 else "")
            for task, (count, total) in self.answered.items()
            if count
        ]
        said = (
            f"{', '.join(before)} had been answered before the plan was put on record."
            if before
            else "The plan was put on record before the first answer was computed."
        )
        return f"{self.changed} {said}" if self.changed else said


def plan_of(config: Config) -> "Plan":
    """The plan that the settings give; their margin is in points, the plan's a fraction."""
    from harness.stats.plan import Plan  # late: it brings pandas, and bad input is found without

    given = asdict(config.analysis)
    return Plan.of(given | {"margin": given["margin"] / 100, "seed": config.seed})


def subject(config: Config) -> dict[str, Any]:
    """What tells one question from another: plans of different subjects are no changes."""
    sparse = {**config.prefills} if {*config.prefills} - {DENSE} else {}
    return {
        "method": config.analysis.method,
        "tasks": sorted(config.tasks),
        "protocol": asdict(config.protocol),
        "seed": config.seed,
        **({"prefills": sparse} if sparse else {}),
    }


def rules(config: Config, asked: Asked) -> dict[str, Any]:
    """Everything else that decides the verdicts."""
    analysis = {k: v for k, v in asdict(config.analysis).items() if k not in (*FREE, "method")}
    pairs = [(pair.label, pair.against) for pair in config.analysis.contrasts]
    tested = {config.analysis.method, config.analysis.control, *asked.compared, *sum(pairs, ())}
    return {
        **analysis,
        "contrasts": sorted(" - ".join(pair) for pair in pairs),
        "ratios": sorted(set(config.ratios or ())) if config.budgets is None else [],
        "budgets": sorted(set(config.budgets or ())),
        "limit": config.limit,
        "reading": {
            name: task.extraction or config.extraction for name, task in config.tasks.items()
        },
        "settings": {
            task: {name: value for name, value in given.items() if name != "seed"}  # the subject's
            for task, given in asked.settings.items()
        },
        "parameters": {
            name: in_force(asked.parameters[name])
            for name in sorted(tested)
            if name in asked.parameters
        },
    }


def everything(config: Config, asked: Asked) -> dict[str, Any]:
    """All that the results of a folder are about, as JSON gives it back."""
    shown = {
        name: [task.scorer, task.blank_image, task.invalid] for name, task in config.tasks.items()
    }
    methods = {label: in_force(params) for label, params in asked.parameters.items()}
    beside = {"methods": methods, "blank_image": config.blank_image, "shown": shown}
    view = json.dumps({**subject(config), **rules(config, asked), **beside})
    return dict(json.loads(view))


def register(store: Store, config: Config, asked: Asked, folder: Path) -> Record:
    """Put the plan on record, in the store and in the run folder, unless it is there.

    A folder may grow: more questions and more methods are no other plan.

    Raises:
        UserError: the folder holds the results of another plan.
    """
    about, decided, view = subject(config), rules(config, asked), everything(config, asked)
    refuse_other(folder, view)
    found = _on_record(store, about, decided)
    if found is None:
        found = {
            "plan": _digest({"subject": about, "rules": decided}),
            "subject": _digest(about),
            "rules": json.dumps(decided, sort_keys=True),
            "answered": json.dumps(
                {task: (tell(store), total) for task, (total, tell) in asked.questions.items()}
            ),
            "changed": _changed(store, _digest(about), decided),
            "folder": str(folder),
            "reported": 0,
        }
        store.put_plan(found)
    answered = {task: tuple(pair) for task, pair in json.loads(found["answered"]).items()}
    record = Record(found["plan"], answered, found["changed"])
    with replacing(folder / FILE) as part:
        told = {"plan": record.number, "said": record.sentence(), "settings": view}
        part.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return record


def reported(store: Store, record: Record, config: Config, asked: Asked) -> None:
    """Note that results of this plan were shown, if it judged anything."""
    if config.analysis.method not in asked.parameters and not config.analysis.contrasts:
        return
    for found in store.plans(plan=record.number):
        if not found["reported"]:
            store.put_plan({**found, "reported": 1})


def refuse_other(folder: Path, view: Mapping[str, Any]) -> None:
    """Raise UserError where the folder holds results that were made by other settings."""
    if not (folder / "manifest.json").is_file() or not (folder / FILE).is_file():
        return
    try:
        told = json.loads((folder / FILE).read_text(encoding="utf-8"))
        before = _normal(told["settings"])
        changes = differences(_grown(before, view), view)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / FILE} is damaged ({error}): move that folder away, or choose another "
            "run.name."
        ) from error
    if changes:
        raise UserError(
            f"{folder} holds the results of another plan ({'; '.join(changes[:4])}): choose "
            "another run.name, or move that folder away; stored answers are used again."
        )


def _on_record(
    store: Store, about: Mapping[str, Any], decided: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The store's plan with this subject and these rules."""
    now = json.loads(json.dumps(decided))
    same = (
        found
        for found in store.plans(subject=_digest(about))
        if _normal(json.loads(found["rules"])) == now
    )
    return next(same, None)


def _normal(view: Mapping[str, Any]) -> dict[str, Any]:
    """Rules or settings as they are recorded now: earlier ones name idle parameters too."""
    lists = {name: view[name] for name in ("methods", "parameters") if name in view}
    return {
        **view,
        **{
            name: {label: in_force(params) for label, params in given.items()}
            for name, given in lists.items()
        },
    }


def _changed(store: Store, about: str, decided: Mapping[str, Any]) -> str:
    """A sentence where results of the same subject were reported under other rules; else empty."""
    now = json.loads(json.dumps(decided))
    for earlier in store.plans(subject=about):
        before = _grown(_normal(json.loads(earlier["rules"])), now) | {"limit": now["limit"]}
        changes = differences(*_shared(before, now))
        if earlier["reported"] and changes:
            return (
                f"The plan was changed after results had been reported in {earlier['folder']} "
                f"({'; '.join(changes[:4])}), so the verdicts are exploratory."
            )
    return ""


def _grown(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The earlier settings with what was only added since: more questions, more methods."""
    grown = {"contrasts": [], **before}
    if {*grown["contrasts"]} <= {*now["contrasts"]}:
        grown["contrasts"] = now["contrasts"]
    for name in ("methods", "parameters"):
        if name in before:
            grown[name] = {**now[name], **before[name]}
    if before["limit"] is not None and (now["limit"] is None or now["limit"] > before["limit"]):
        grown["limit"] = now["limit"]
    return grown


def _shared(before: dict[str, Any], now: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both without what only one of them is about: pairs and labels of another experiment."""
    if not {*before["contrasts"]} & {*now["contrasts"]}:
        before = before | {"contrasts": now["contrasts"]}
    known = before["parameters"].keys() & now["parameters"].keys()
    own = [{**rules, "parameters": {name: rules["parameters"][name] for name in known}}
           for rules in (before, now)]  # fmt: skip
    return own[0], own[1]


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """ "margin 2.0 -> 5.0" for every value that differs, nested ones with dotted names."""
    found = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            nested = isinstance(old, Mapping) or isinstance(new, Mapping)
            found.append(prefix + (f"{name} changed" if nested else f"{name} {old} -> {new}"))
    return found


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
