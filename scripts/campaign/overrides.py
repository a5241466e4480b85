"""Overrides, valid and absurd: of every key, of groups, in every syntax, alone and in multiruns."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from scripts.campaign import multiruns, override_cases, scene
from scripts.campaign.bench import Bench, seeded
from scripts.campaign.engine import Scripted
from scripts.campaign.outcome import RIGHT, WRONG, Outcome, Verdict, raw, refused

ANY_KEY = 150  # odd values for keys of `--cfg job`, drawn by seed
Case = Callable[[Bench], tuple[str, Verdict]]


def prepare(shared: Path) -> None:
    """The data, and every key that a run has."""
    scene.prepare(shared)
    bench = Bench(shared / "made", shared, seeded("overrides", -1))
    told = bench.call("--cfg", "job", engine=Scripted())
    (shared / "job.yaml").write_text(told.out)


def run(number: int, bench: Bench) -> tuple[str, Verdict]:
    """Run a case of the lists, or an odd value for a key."""
    if number < len(CASES):
        return CASES[number](bench)
    return _odd(bench)


def _typed(line: str) -> list[str]:
    """The words of a line; blanks inside quotes part nothing, and Hydra takes the quotes away."""
    return re.findall(r"(?:'[^']*'|[^\s'])+", line)


def _refused(line: str, words: str) -> Case:
    def case(bench: Bench) -> tuple[str, Verdict]:
        argv = _typed(line)
        outcome = _call(bench, argv)
        return line, refused(outcome, words, count=2 if len(outcome.errors) == 2 else 1)

    return case


def _accepted(line: str) -> Case:
    def case(bench: Bench) -> tuple[str, Verdict]:
        argv = _typed(line)
        return line, _judge(bench, _call(bench, argv), argv, must=True)

    return case


def _either(line: str) -> Case:
    def case(bench: Bench) -> tuple[str, Verdict]:
        argv = _typed(line)
        return line, _judge(bench, _call(bench, argv), argv, must=False)

    return case


def _odd(bench: Bench) -> tuple[str, Verdict]:
    """An odd value for one of all keys."""
    job = yaml.safe_load((bench.shared / "job.yaml").read_text())
    key = bench.random.choice(_keys(job, ""))
    value = bench.random.choice(override_cases.ODD)
    argv = [f"{key}={value}"]
    more = [] if not key.startswith("methods.") else [f"method=[random,restkv,{key.split('.')[1]}]"]
    if "restkv]" in "".join(more) and key.split(".")[1] in ("restkv", "random"):
        more = []
    said = f"{key}={value!r:.60}"
    return said, _judge(bench, _call(bench, [*more, *argv]), argv, must=False)


def _keys(node: Mapping[str, Any], prefix: str) -> list[str]:
    found = []
    for name, value in node.items():
        found.append(f"{prefix}{name}")
        if isinstance(value, Mapping):
            found += _keys(value, f"{prefix}{name}.")
    return found


def _call(bench: Bench, argv: list[str]) -> Outcome:
    """The small run with more settings behind its own, which they may take the place of."""
    runs = bench.folder / "runs"
    typed = {text.partition("=")[0].lstrip("+~") for text in argv}
    usual = [
        text
        for text in scene.settings(bench.shared, runs)
        if text.partition("=")[0] not in typed
        and not (text.startswith("ratios=") and typed & {"budgets", "experiment"})
        and not (text.startswith("method=") and typed & {"experiment"})
        and not (text.startswith("model.pretrained") and "model" in typed)
        and not (text.startswith("tasks.mmbench_mini") and typed & {"task", "tasks"})
    ]
    return bench.call(*usual, *argv, engine=Scripted(), patience=60)


def _judge(bench: Bench, outcome: Outcome, argv: list[str], must: bool) -> Verdict:
    """Right where it ran and its tables hold what was said; a refusal counts unless it must run."""
    bad = raw(outcome)
    if bad is not None:
        return bad
    if outcome.code:
        if must:
            return Verdict(WRONG, f"refused: {outcome.errors!r:.300}")
        return refused(outcome, count=max(1, len(outcome.errors)))
    found = scene.folders(bench.folder)
    if not found and not outcome.loaded:
        return Verdict(RIGHT, "told something and ran nothing")
    for folder in found:
        bad = _scored(bench, folder) or _held(folder, argv)
        if bad is not None:
            return bad
    return Verdict(RIGHT) if found else Verdict(WRONG, "exit 0 and no run folder")


def _scored(bench: Bench, folder: Path) -> Verdict | None:
    """Whether the tables say what was said; rows of whole questions where fewer were asked."""
    frame = scene.samples(folder)
    data = bench.shared / "data"
    if set(frame["metric"]) != {"accuracy"} or set(frame["task"]) != {scene.TASK}:
        return None
    if str(data) not in (folder / "config.yaml").read_text():  # the case asks about other data
        return None
    return scene.checked(folder, scene.asked(folder, data))


def _held(folder: Path, argv: list[str]) -> Verdict | None:
    """Whether the settings on record are those that were typed: nothing may be dropped."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    taken_back = {text.lstrip("~").partition("=")[0] for text in argv if text.startswith("~")}
    last = {text.partition("=")[0]: text for text in argv}
    for key, text in last.items():
        value = text.partition("=")[2]
        node: Any = config
        for name in key.lstrip("+").split("."):
            node = node.get(name, KeyError) if isinstance(node, Mapping) else KeyError
        if "=" not in text or node is KeyError or key in taken_back:
            continue
        if key in ("method", "task", "protocol", "model"):
            continue
        try:
            meant = yaml.safe_load(value)
        except yaml.YAMLError:
            continue
        if isinstance(meant, (int, float, bool, list)) and not _alike(node, meant):
            return Verdict(WRONG, f"{text} became {node!r:.60}")
    return None


def _alike(held: Any, meant: Any) -> bool:
    """Whether what is on record is what was typed; 2 is taken as true."""
    if isinstance(held, bool) and isinstance(meant, int | float):
        return held == bool(meant)
    if isinstance(meant, list):
        return isinstance(held, list) and len(set(map(str, meant))) == len(set(map(str, held)))
    return held == meant or str(held) == str(meant)


CASES: tuple[Case, ...] = (
    *(_refused(*line) for line in override_cases.REFUSED),
    *(_accepted(line) for line in override_cases.ACCEPTED),
    *(_either(line) for line in override_cases.EITHER),
    *multiruns.CASES,
)
COUNT = len(CASES) + ANY_KEY
SAMPLE = (0, 60, 340, len(CASES) - 35)
