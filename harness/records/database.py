"""One SQLite file of ours: opened whole, written whole, read row by row with a checksum each.

Must not know what a row means.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from harness.errors import UserError
from harness.records import repair, schema
from harness.records.claims import Claims, Unshared
from harness.records.schema import Table

PLACES = ("FULL", "CANTOPEN", "READONLY", "IOERR", "BUSY", "LOCKED", "PERM", "AUTH")  # not the file
MOUNTS = Path("/proc/self/mountinfo")
#: File systems of several machines; SQLite's write-ahead log is for one (sqlite.org/wal.html).
REMOTE = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "gluster", "9p", "fuse.")


class Database:
    """The file; several processes of a machine may hold it open and write, unless it is `own`."""

    def __init__(self, path: Path, mend: bool = False, own: bool = False) -> None:
        """Open or create it.

        Args:
            path: the file; its folder is made.
            mend: keep what is sound of a damaged file. `lost` and `aside` then say how many rows
                were dropped and where the damaged file was moved.
            own: no other process opens it, so it takes no locks of ours.

        Raises:
            UserError: the place cannot be written, the file is not sound and is left as it is, or
                another run uses a file that is to be mended.
        """
        self.path = path
        self.lost = 0
        self.aside: Path | None = None
        self.journal = "DELETE" if own or is_remote(path) else "WAL"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.claims = Unshared() if own else Claims(path.with_suffix(".lock"))
        except OSError as error:
            raise self._unwritable(str(error.strerror)) from error
        try:
            with self.claims.opening():
                if mend:
                    self._mend()
                self._db = self._open()
                self.claims.share()
        except BaseException:
            self.claims.close()
            raise

    def _mend(self) -> None:
        if not self.claims.alone():
            raise UserError(
                f"Another run uses the store {self.path}, which store.repair=true would replace: "
                "wait until it ends."
            )
        try:
            self.lost, self.aside = repair.repair(self.path)
        except (sqlite3.Error, OSError) as error:
            raise self._unwritable(str(error)) from error

    def _open(self) -> sqlite3.Connection:
        db = None
        try:
            db = schema.connect(self.path)
            fresh = schema.is_fresh(db)
            if not fresh:
                schema.check(db)
                schema.add_later(db)
            db.execute(f"PRAGMA journal_mode={self.journal}")
            db.execute("PRAGMA synchronous=NORMAL")
            if fresh:
                schema.create(db)
        except sqlite3.DatabaseError as error:
            if db is not None:
                db.close()
            if _at_fault(error):
                raise self._unwritable(str(error)) from error
            raise UserError(
                f"The store {self.path} cannot be used ({error}); nothing was changed: "
                "store.repair=true keeps what is sound in it and computes the rest anew, or choose "
                "another run.dir."
            ) from error
        return db

    def _unwritable(self, why: str) -> UserError:
        return UserError(
            f"The store {self.path} cannot be written ({why}); what it holds is kept: free space "
            "there, correct that path, or choose another run.dir."
        )

    def close(self) -> None:
        """Fold the write-ahead log into the file and close it; nothing is lost where it cannot."""
        with suppress(sqlite3.Error):  # a full disk: the log stays beside the file
            self._db.execute("PRAGMA busy_timeout=0")  # others may read: they fold it in later
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with suppress(sqlite3.Error):
            self._db.close()
        self.claims.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close it."""
        self.close()

    def take(self, tables: Iterable[tuple[Table, Iterable[Sequence[object]]]]) -> None:
        """Add rows as another file holds them, checksums included; what is there already stays."""
        with self._transaction():
            for table, rows in tables:
                self._db.executemany(table.add, rows)

    def _insert(self, table: Table, rows: Iterable[Mapping[str, object]]) -> None:
        self._db.executemany(table.add, [table.sealed(row) for row in rows])

    def _replace(self, table: Table, row: Mapping[str, object]) -> None:
        with self._transaction():
            self._db.execute(table.replace, table.sealed(row))

    def _rows(self, table: Table, **where: str) -> Iterator[dict[str, Any]]:
        """The rows with these values in the order of their keys, each as it was written.

        Raises:
            UserError: a row does not match its checksum.
        """
        test = " AND ".join(f"{name} = ?" for name in where) or "1"
        query = f"SELECT * FROM {table.name} WHERE {test} ORDER BY {', '.join(table.keys)}"
        with self._reading():
            for row in self._db.execute(query, tuple(where.values())):
                if not table.holds(row):
                    raise self._damaged(table, row)
                yield dict(zip(table.columns, row, strict=False))

    def _damaged(self, table: Table, row: Sequence[object]) -> UserError:
        said = zip(table.keys, row, strict=False)
        place = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in said)
        return UserError(
            f"In the store {self.path} the entry of {table.name} at {place} is not what was "
            "written: give store.repair=true to drop what is damaged and compute it anew."
        )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"The store {self.path} cannot be read ({error}): give store.repair=true to keep "
                "what is sound in it and compute the rest anew."
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All statements inside, or none; UserError where the file cannot grow or be written."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk ended it already
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            raise self._unwritable(str(error)) from error


def _at_fault(error: sqlite3.Error) -> bool:
    """Whether the place is at fault, not the content of the file."""
    name = getattr(error, "sqlite_errorname", None) or ""
    return name.removeprefix("SQLITE_").startswith(PLACES)


def is_remote(path: Path, mounts: Path = MOUNTS) -> bool:
    """Whether a path is on a file system that several machines share."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        return False
    place = path.absolute()
    found = [line.split(" - ") for line in lines if " - " in line]
    kinds = {Path(left.split()[4]): right.split()[0] for left, right in found}
    above = next((one for one in (place, *place.parents) if one in kinds), None)
    return above is not None and kinds[above].startswith(REMOTE)
