"""Rows whose answer eviction changed: which to show, and who said what.

Works on the samples of one (model, task, protocol) group; must not know the page.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from harness import stats

SHOWN = 20
USED = {
    "row", "cell_key", "method", "control", "failed", "parsed", "text", "answer", "question",
    "options",
}  # fmt: skip


@dataclass(frozen=True)
class Said:
    """An answer, how it was read, and the methods that gave it.

    `read` is "" where no answer was found; `changed`: it is not read as the full cache's.
    """

    text: str
    read: str
    methods: tuple[str, ...]
    changed: bool


@dataclass(frozen=True)
class Flip:
    """A row with the full cache's answer and those of all methods, each text once.

    options: letter to text, where the task has any.
    """

    row: int
    question: str
    answer: str
    full: str
    said: tuple[Said, ...]
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> frozenset[str]:
        """The methods whose answer is not read as the full cache's."""
        return frozenset(name for one in self.said if one.changed for name in one.methods)


def flips(samples: pd.DataFrame, labels: Mapping[str, str], most: int = SHOWN) -> list[Flip]:
    """Rows where a method's parsed answer differs from the full cache's, at most `most`.

    Methods take turns in giving their next row that is not there yet, so that one which changes
    everything does not fill the list.

    Args:
        samples: one group.
        labels: name of the method of each cell_key, in the order to show them; the cells of one
            setting.
    """
    if not {"text", "answer", "question"} <= set(samples.columns):
        return []
    samples = samples[[name for name in samples if name in USED]]
    samples = samples.assign(parsed=samples["parsed"].fillna("").astype(str))
    full = samples[stats.roles(samples).eq("full")].drop_duplicates("row").set_index("row")
    cells = samples[samples["cell_key"].isin(list(labels)) & samples["row"].isin(full.index)]
    cells = cells[~stats.failed(cells)]  # what they say means nothing
    changed = cells["parsed"].ne(cells["row"].map(full["parsed"]))
    cells = cells.assign(changed=changed, label=cells["cell_key"].map(dict(labels)))
    queues = [
        cells.loc[changed & cells["cell_key"].eq(key), "row"].sort_values().tolist()
        for key in labels
    ]
    rows = sorted(_in_turn(queues, most))
    answers = cells.loc[cells["row"].isin(rows), ["row", "text", "parsed", "changed", "label"]]
    said = {row: part for row, part in answers.groupby("row")}
    order = {label: place for place, label in reversed([*enumerate(labels.values())])}
    return [_flip(full.loc[row], said[row], order) for row in rows]


def _in_turn(queues: list[list[int]], most: int) -> list[int]:
    chosen: list[int] = []
    waiting = [queue[::-1] for queue in queues]
    while any(waiting) and len(chosen) < most:
        for queue in waiting:
            while queue and queue[-1] in chosen:
                queue.pop()
            if queue and len(chosen) < most:
                chosen.append(queue.pop())
    return chosen


def _flip(full: pd.Series, cells: pd.DataFrame, order: Mapping[str, int]) -> Flip:
    said: dict[tuple[str, str, bool], list[str]] = {}
    columns = (cells[name].tolist() for name in ("text", "parsed", "changed", "label"))
    found = [*zip(*columns, strict=True)]
    for text, parsed, changed, label in sorted(found, key=lambda one: (not one[2], order[one[3]])):
        said.setdefault((str(text), str(parsed), bool(changed)), []).append(label)
    return Flip(
        row=int(full.name),
        question=str(full["question"]),
        answer=str(full["answer"]),
        full=str(full["text"]),
        options=_options(full.get("options")),
        said=tuple(Said(*answer[:2], tuple(names), answer[2]) for answer, names in said.items()),
    )


def _options(text: object) -> dict[str, str]:
    """Letter to text, from JSON; nothing where there is none."""
    found = json.loads(text) if isinstance(text, str) else {}
    return {str(letter): str(option) for letter, option in found.items()}
