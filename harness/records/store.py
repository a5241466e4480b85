"""The answers of one model: every cell's answer to every question row, computed once, in SQLite.

All runs of a run.dir share it, several at a time. Knows rows and keys; must not know models,
methods, tasks or how an answer is scored.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.records import schema
from harness.records.database import Database
from harness.records.schema import Table

FOLDER = "answers"
WHOLE = 65_520  # a share of 1; shares of most numbers of layers and heads are whole then

Values = Mapping[str, Mapping[str, object]]


def place_of(run_dir: Path, weights: str) -> Path:
    """The store of a checkpoint, told by its fingerprint."""
    return run_dir / FOLDER / f"{weights[:16]}.sqlite"


class Store(Database):
    """The answers of one model; several processes may hold it open and write."""

    _origin = ""

    def done(self, keys: Iterable[str]) -> dict[int, set[str]]:
        """For every row with answers: which of the given cells have one.

        Raises:
            UserError: one of them is not what was written.
        """
        rows: dict[int, set[str]] = {}
        for key in keys:
            for found in self._rows(schema.RESPONSES, cell_key=key):
                rows.setdefault(found["row"], set()).add(key)
        return rows

    def have(self, row: int, keys: Iterable[str]) -> set[str]:
        """Which of the given cells have an answer to one row by now."""
        wanted = list(keys)
        marks = ", ".join("?" * len(wanted))
        query = f"SELECT cell_key FROM responses WHERE row = ? AND cell_key IN ({marks})"
        with self._reading():
            return {key for (key,) in self._db.execute(query, (row, *wanted))}

    def answered(self) -> dict[str, set[int]]:
        """Which rows of which cells it holds."""
        with self._reading():
            return schema.answered(self._db)

    def computed_by(self, origin: Mapping[str, object]) -> None:
        """Say what computes the answers that are written from now on."""
        description = json.dumps(dict(origin), sort_keys=True)
        self._origin = hashlib.sha256(description.encode()).hexdigest()[:16]
        values = {"origin": self._origin, "description": description}
        with self._transaction():
            self._insert(schema.ORIGINS, [values])

    def origins(self) -> dict[str, dict[str, Any]]:
        """What computed answers, by the `origin` of a row."""
        found = self._rows(schema.ORIGINS)
        return {row["origin"]: json.loads(row["description"]) for row in found}

    def write(
        self,
        row: int,
        answers: Values,
        prompts: Values | None = None,
        kept: Mapping[str, Sequence[float] | bytes] | None = None,
        prefills: Values | None = None,
        fetches: Values | None = None,
    ) -> None:
        """Store one sample in one transaction; what is there already stays.

        Args:
            row: the question row in the whole data set.
            answers: cell key -> the values named in `schema.FIELDS`.
            prompts: key of the full cache -> the values named in `schema.PROMPT_FIELDS`.
            kept: cell key -> a share from 0 to 1 for each token, kept to 5 digits, or what was
                stored of them.
            prefills: key of the full cache -> the values named in `schema.PREFILL_FIELDS`.
            fetches: cell key -> the values named in `schema.FETCH_FIELDS`.
        """
        shares = {
            key: {"shares": each if isinstance(each, bytes) else _packed(each)}
            for key, each in (kept or {}).items()
        }
        own = {
            key: {
                **each,
                "origin": self._origin,
                "traces": (key in (prompts or {})) + (key in shares),
            }
            for key, each in answers.items()
        }
        with self._transaction():
            self._insert(schema.RESPONSES, _keyed(row, own))
            self._insert(schema.PROMPTS, _keyed(row, prompts or {}))
            self._insert(schema.KEPT, _keyed(row, shares))
            self._insert(schema.PREFILLS, _keyed(row, prefills or {}))
            self._insert(schema.FETCHES, _keyed(row, fetches or {}))

    def read(self, key: str) -> dict[int, dict[str, Any]]:
        """All answers of a cell: row -> the values named in `schema.FIELDS`, `origin`, `traces`.

        Raises:
            UserError: an answer, or what was recorded with it, is not what was written.
        """
        lost = f"SELECT cell_key, row FROM responses WHERE cell_key = ? AND {schema.UNTRACED}"
        with self._reading():
            for row in self._db.execute(lost, (key,)):
                raise self._damaged(schema.KEPT, row)
        return self._by_row(schema.RESPONSES, key)

    def prompts(self, key: str) -> dict[int, dict[str, Any]]:
        """The recorded prompts under a full cache's key: row -> the values of PROMPT_FIELDS."""
        return self._by_row(schema.PROMPTS, key)

    def prefills(self, key: str) -> dict[int, dict[str, Any]]:
        """The sparse prefills under a full cache's key: row -> the values of PREFILL_FIELDS."""
        return self._by_row(schema.PREFILLS, key)

    def fetches(self, key: str) -> dict[int, dict[str, Any]]:
        """What a cell had on the host and fetched: row -> the values of FETCH_FIELDS."""
        return self._by_row(schema.FETCHES, key)

    def kept(self, key: str) -> dict[int, NDArray[np.float32]]:
        """What a cell kept of the rows that were traced: row -> a share of each token."""
        found = self._by_row(schema.KEPT, key)
        return {row: _unpacked(values["shares"]) for row, values in found.items()}

    def _by_row(self, table: Table, key: str) -> dict[int, dict[str, Any]]:
        rows = self._rows(table, cell_key=key)
        return {one["row"]: {name: one[name] for name in table.fields} for one in rows}

    def describe(self, cells: Values) -> None:
        """Record what each cell key stands for, so that the file can be read on its own."""
        texts = {key: json.dumps(what, sort_keys=True) for key, what in cells.items()}
        with self._transaction():
            rows = [{"cell_key": key, "description": text} for key, text in texts.items()]
            self._insert(schema.CELLS, rows)

    def get(self, name: str) -> str | None:
        """A note, or None."""
        return next((row["value"] for row in self._rows(schema.NOTES, name=name)), None)

    def put(self, name: str, value: str) -> None:
        """Keep a note, replacing an earlier one."""
        self._replace(schema.NOTES, {"name": name, "value": value})

    def plans(self, **where: str) -> list[dict[str, Any]]:
        """The plans on record with these values, see `schema.PLANS`."""
        return list(self._rows(schema.PLANS, **where))

    def put_plan(self, values: Mapping[str, object]) -> None:
        """Put a plan on record, or change what is said of it."""
        self._replace(schema.PLANS, values)

    def count(self) -> tuple[int, int]:
        """How many cells and how many answers the file holds."""
        query = "SELECT count(DISTINCT cell_key), count(*) FROM responses"
        with self._reading():
            cells, answers = self._db.execute(query).fetchone()
        return cells, answers


def _keyed(row: int, values: Values) -> list[dict[str, object]]:
    """The values of each cell with its key and row."""
    return [{**each, "cell_key": key, "row": row} for key, each in values.items()]


def _packed(shares: Sequence[float]) -> bytes:
    return zlib.compress(np.round(np.asarray(shares) * WHOLE).astype("<u2").tobytes(), level=1)


def _unpacked(blob: bytes) -> NDArray[np.float32]:
    return (np.frombuffer(zlib.decompress(blob), dtype="<u2") / WHOLE).astype(np.float32)
