"""The parts of a run: a folder for each process that answers one, which nobody else writes to.

Such a folder holds a store of its own, the settings, a log, and a head that says who made it and
whether it ended. Must not know models or lmms-eval.
"""

import json
import os
import platform
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.records import copies, schema
from harness.records.atomic import replacing
from harness.records.plan import differences
from harness.records.provenance import software
from harness.records.store import Store

FOLDER, HEAD, ANSWERS = "shards", "shard.json", "answers.sqlite"
FORCE = "--mixed"


class ShardStore(Store):
    """A process's own store, which also knows what others have answered."""

    def __init__(self, path: Path, known: copies.Pairs) -> None:
        """Make it; `known` are answers that need none from here."""
        super().__init__(path, own=True)
        self.known = known

    def done(self, keys: Iterable[str]) -> dict[int, set[str]]:
        """As a store tells, with what others have answered."""
        wanted = list(keys)
        rows = super().done(wanted)
        for key in wanted:
            for row in self.known.get(key, ()):
                rows.setdefault(row, set()).add(key)
        return rows

    def have(self, row: int, keys: Iterable[str]) -> set[str]:
        """As a store tells, with what others have answered."""
        wanted = list(keys)
        others = {key for key in wanted if row in self.known.get(key, ())}
        return super().have(row, wanted) | others


@dataclass(frozen=True)
class Attempt:
    """A process that answered a part, as its folder tells.

    command: what was typed, the part aside. plan: all that its results are about. software:
    versions that can change an answer.
    """

    folder: Path
    shard: str
    host: str
    pid: int
    began: str
    ended: str | None
    command: str
    plan: Mapping[str, Any]
    software: Mapping[str, str]

    @property
    def store(self) -> Path:
        """Its answers."""
        return self.folder / ANSWERS

    @property
    def title(self) -> str:
        """Such as "2/8 on node7"."""
        return f"{self.shard} on {self.host}"

    def absorbed(self, note: Callable[[str], str | None]) -> bool:
        """Whether the run's store, whose notes these are, holds all of its answers already."""
        return not self.store.exists() or note(self._note) == self._state

    def fold(self, store: Store) -> tuple[int, int]:
        """Add its answers to the run's store; how many were new, and how many were damaged."""
        state = self._state
        with copies.sound_copy(self.store) as (db, lost):
            new = copies.fold(db, store)
        if not lost:
            store.put(self._note, state)
        return new, lost

    @property
    def _note(self) -> str:
        return f"absorbed {self.folder.parent.parent.name}/{self.folder.name}"

    @property
    def _state(self) -> str:
        stat = self.store.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    def write(self) -> None:
        """Write the head, whole or not at all."""
        told = {name: value for name, value in vars(self).items() if name != "folder"}
        with replacing(self.folder / HEAD) as part:
            part.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def attempt(run: Path, shard: str, plan: Mapping[str, Any], command: str) -> Attempt:
    """What this process is; nothing is written before `begin`."""
    now, host, pid = _now(), platform.node(), os.getpid()
    name = f"{shard.replace('/', '-of-')}-{host}-{pid}-{now.replace(':', '').replace('-', '')}"
    return Attempt(run / FOLDER / name, shard, host, pid, now, None, command, plan, software())


def begin(attempt: Attempt) -> None:
    """Make the folder of a process."""
    try:
        attempt.folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{attempt.folder} cannot be made ({error.strerror}): free or correct that path, or "
            "choose another run.dir or run.name."
        ) from error
    attempt.write()


def end(attempt: Attempt) -> None:
    """Note that a process has answered its part."""
    Attempt(**{**vars(attempt), "ended": _now()}).write()


def attempts(run: Path) -> list[Attempt]:
    """Everything that answered a part of a run, the earliest first.

    Raises:
        UserError: a head is damaged.
    """
    found = []
    for head in (run / FOLDER).glob(f"*/{HEAD}"):
        try:
            found.append(Attempt(folder=head.parent, **json.loads(head.read_text("utf-8"))))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{head} is damaged ({error}): move its folder away; its part is answered anew by "
                "the sweep's command."
            ) from error
    return sorted(found, key=lambda one: (one.began, one.folder.name))


@dataclass(frozen=True)
class Known:
    """What a process finds when it begins: answers and plans of the run's store and of others.

    notes: of the run's store.
    """

    notes: Mapping[str, str]
    answers: copies.Pairs
    plans: Sequence[Mapping[str, object]]

    def has(self, wanted: copies.Pairs) -> bool:
        """Whether all of this is answered."""
        return all(rows <= self.answers.get(key, set()) for key, rows in wanted.items())


def known(store: Path, others: Iterable[Attempt]) -> Known:
    """Read the run's store and those of its parts, each from a copy."""
    found: dict[str, set[int]] = defaultdict(set)
    notes: dict[str, str] = {}
    plans: dict[str, dict[str, object]] = {}
    for path in (store, *(one.store for one in others)):
        if not path.exists():
            continue
        with copies.sound_copy(path) as (db, _):
            for key, rows in schema.answered(db).items():
                found[key] |= rows
            for plan in copies.plans(db):
                plans.setdefault(str(plan["plan"]), plan)
            if path == store:
                notes = dict(db.execute("SELECT name, value FROM notes"))
    return Known(notes, found, list(plans.values()))


def refuse_unequal(every: Sequence[Attempt], mixed: bool = False) -> None:
    """UserError unless all are about the same, and computed by the same software or `mixed`."""
    for one in every[1:]:
        about = differences(every[0].plan, one.plan)
        if about:
            raise UserError(
                f"{every[0].folder} and {one.folder.name} are parts of different runs "
                f"({'; '.join(about[:4])}): move one of them away, or choose another run.name."
            )
        other = differences(every[0].software, one.software)
        if other and not mixed:
            raise UserError(
                f"{every[0].folder} and {one.folder.name} were computed by different software "
                f"({'; '.join(other[:4])}): fold them with evictbench merge {FORCE}, and the "
                "report says which answers come from which."
            )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
