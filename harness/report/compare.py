"""Several runs side by side: what each lost, how two losses differ, which verdicts differ.

Turns studies into frames and rows of text; must not know files, HTML or wandb.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from harness import stats
from harness.report import tables
from harness.report.headline import headline
from harness.report.rulings import WORDS
from harness.report.study import Study
from harness.report.verdict_tables import Rows, evicted
from harness.report.words import DASH, difference, points, probability, span

PLACE = ["method", "ratio", "budget"]


@dataclass(frozen=True)
class Part:
    """One model, task and protocol of a run. label: what tells it from the other parts.

    data: the digest of its questions, by which two parts are known to have been asked the same.
    """

    run: str
    key: tuple[str, str, str]
    study: Study
    data: str
    label: str = ""

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The part's own rows of a frame of its study."""
        return stats.of(frame, self.key)


def parts(studies: Sequence[tuple[Study, dict[str, str]]]) -> list[Part]:
    """Every model, task and protocol of the runs, each with a label of its own.

    Args:
        studies: each with the digest of the data of its tasks.
    """
    found = [
        Part(study.name, key, study, data.get(key[1], ""))
        for study, data in studies
        for key, _ in tables.groups(study.cells)
    ]
    words = [(*map(tables.short, part.key), part.run) for part in found]
    differ = [place for place in range(3) if len({each[place] for each in words}) > 1]
    labels = [", ".join(each[place] for place in differ) or each[0] for each in words]
    labels = [
        label if labels.count(label) == 1 else f"{label} ({each[3]})"
        for label, each in zip(labels, words, strict=True)
    ]
    labels = [  # the same name in two folders
        label if labels.count(label) == 1 else f"{label} #{labels[:place].count(label) + 1}"
        for place, label in enumerate(labels)
    ]
    return [
        Part(part.run, part.key, part.study, part.data, label)
        for part, label in zip(found, labels, strict=True)
    ]


def losses(found: Sequence[Part]) -> pd.DataFrame:
    """Every compressed cell against its own full cache: `stats.compare` with the part's label."""
    frames = [part.of(part.study.comparisons).assign(part=part.label) for part in found]
    return pd.concat(frames, ignore_index=True)


def between(found: Sequence[Part]) -> pd.DataFrame:
    """How the losses of each two parts differ that were asked the same questions.

    Returns:
        `stats.LOSS_COLUMNS`, `one` and `other`: above 0 where `one` loses less than `other`.
    """
    known = {part.label: stats.losses(part.of(part.study.samples)) for part in found}
    frames = [pd.DataFrame(columns=["one", "other", *stats.LOSS_COLUMNS])]
    for one, other in combinations(found, 2):
        if one.data and (one.key[1], one.data) == (other.key[1], other.data):
            table = stats.between(known[one.label], known[other.label])
            frames.append(table.assign(one=one.label, other=other.label))
    return pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)


def verdicts(found: Sequence[Part]) -> pd.DataFrame:
    """The verdicts of every part; columns `part`, task, method, ratio, budget and verdict."""
    names = ["task", *PLACE, "verdict"]
    frames = [
        part.of(part.study.verdicts)[names].assign(part=part.label)
        for part in found
        if len(part.of(part.study.verdicts))
    ]
    return pd.concat(frames or [pd.DataFrame(columns=[*names, "part"])], ignore_index=True)


def unlike(frame: pd.DataFrame) -> pd.DataFrame:
    """The settings of one task that several parts judged, and not alike."""
    judged = frame.groupby(["task", *PLACE], dropna=False)["verdict"]
    return frame[judged.transform("nunique").gt(1)].drop_duplicates(["task", *PLACE])


def shared(frame: pd.DataFrame) -> int:
    """How many settings of one task several parts judged."""
    counts = frame.groupby(["task", *PLACE], dropna=False)["part"].nunique()
    return int(counts.gt(1).sum())


def said(found: Sequence[Part]) -> Iterator[tuple[str, str]]:
    """Each run's question with its verdict in plain sentences."""
    for study in {id(part.study): part.study for part in found}.values():
        yield study.name, f"{study.question} {' '.join(headline(study))}"


def loss_rows(frame: pd.DataFrame) -> Rows:
    """Points from the full cache: a line a method and setting, a column a part."""
    return _wide("What each loses", frame, difference)


def verdict_rows(frame: pd.DataFrame) -> Rows:
    """The verdict at each setting: a column a part, and whether they agree."""
    rows = _wide("Is the score kept?", frame, lambda row: WORDS.get(row["verdict"], ""))
    differ = {(one["method"], evicted(one)) for _, one in unlike(frame).iterrows()}
    for line in rows.body:
        line.append("differ" if (line[0], line[1]) in differ else "")
    return Rows(rows.title, [*rows.header, "Agree?"], rows.body, rows.notes)


def between_rows(frame: pd.DataFrame) -> Rows:
    """How two losses differ on the same questions."""
    body = [
        [
            str(row["method"]),
            evicted(row),
            f"{row['one']} less {row['other']}",
            f"{points(row['difference'])} {span(points(row['low']), points(row['high']))}".rstrip(),
            probability(row["p"]),
        ]
        for _, row in frame.iterrows()
    ]
    notes = [
        "Above 0 the first loses less. Paired by question, 95 % intervals; p tests a difference of "
        "0 and is not corrected for being one of several."
    ]
    header = ["Method", "Evicted", "Losses compared", "Points, 95 %", "p"]
    return Rows("How the losses differ", header, body, notes)


def _wide(title: str, frame: pd.DataFrame, text: Callable[[pd.Series], str]) -> Rows:
    """A line a method and setting, a column a part."""
    labels = list(dict.fromkeys(frame["part"]))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    order = frame.sort_values(["ratio", "budget"], kind="stable", na_position="last")
    ranks = {name: place for place, name in enumerate(dict.fromkeys(frame["method"]))}
    for _, row in order.sort_values("method", key=lambda x: x.map(ranks), kind="stable").iterrows():
        line = lines.setdefault((str(row["method"]), evicted(row)), {})
        line[row["part"]] = text(row)
    body = [[*place, *(line.get(label, DASH) for label in labels)] for place, line in lines.items()]
    return Rows(title, ["Method", "Evicted", *labels], body, [])
