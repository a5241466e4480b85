"""The folders that a run writes to, and a sentence for one that cannot be written.

Must not know what is written there.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import UserError
from harness.records.atomic import STAGE

SPEAKING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG),
    *(errno.EIO, errno.EFBIG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
}
FULL = 1 << 20  # bytes: a disk with less than this is as good as full
ANSWERS = "all answers so far are kept"


@contextmanager
def speaking(folder: Path) -> Iterator[None]:
    """UserError in place of an OSError that says which folder cannot be written.

    Args:
        folder: the run folder; whatever goes wrong inside it is about run.dir and run.name.
    """
    try:
        yield
    except Exception as error:
        said = sentence(error, folder)
        if said is None:
            raise
        raise UserError(said) from error


def sentence(error: BaseException, folder: Path) -> str | None:
    """What to do about an error of the file system, or None where it is none.

    Args:
        error: itself, or what it came from, may be the OSError: libraries wrap it.
        folder: the run folder.
    """
    if isinstance(error, UserError):
        return None
    cause = _cause(error)
    if cause is None:
        return None
    if "temporary directory" in str(cause):  # tempfile's own; it has no file name
        return f"No temporary folder can be written ({cause.strerror}): set TMPDIR to one that can."
    name = cause.filename2 or cause.filename
    place = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else None
    if place is not None and place.parent.name.startswith(STAGE):
        place = place.parent.parent / place.name
    inside = place is not None and _within(place, folder)
    if cause.errno not in SPEAKING and not inside:
        return None
    if cause.errno == errno.ENAMETOOLONG:
        return (
            f"The path {_short(place or folder)} is too long for this file system: choose a "
            "shorter run.dir or run.name."
        )
    if place is None:
        place = _full(folder)
    remedy = _remedy(place, folder)
    return f"{_short(place)} cannot be written ({cause.strerror or cause}): {remedy}."


def _cause(error: BaseException) -> OSError | None:
    """The OSError that an error is or came from."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if isinstance(one, OSError) and (one.errno is not None or "temporary" in str(one)):
            return one
        one = one.__cause__ or one.__context__
    return None


def _folders(folder: Path) -> dict[str, Path]:
    """What each of the folders that a run writes to is set with, the innermost first."""
    from huggingface_hub import constants

    home = Path.home() if os.environ.get("HOME") else Path("/")
    cache = os.environ.get("EVICTBENCH_CACHE")
    datasets = os.environ.get("HF_DATASETS_CACHE")
    found = {
        "run.dir": folder,
        "EVICTBENCH_CACHE": Path(cache).expanduser() if cache else home / ".cache" / "evictbench",
        "HF_DATASETS_CACHE": Path(datasets) if datasets else Path(constants.HF_HOME) / "datasets",
        "HF_HUB_CACHE": Path(constants.HF_HUB_CACHE),
        "HF_HOME": Path(constants.HF_HOME),
        "TMPDIR": _temporary(),
        "HOME": home,
    }
    return found


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return Path(os.environ.get("TMPDIR", "/tmp"))


def _full(folder: Path) -> Path:
    """The first of the folders whose disk is full; the run folder where none is."""
    for place in _folders(folder).values():
        there = next((p for p in (place, *place.parents) if p.exists()), None)
        if there is not None and shutil.disk_usage(there).free < FULL:
            return place
    return folder


def _remedy(place: Path, folder: Path) -> str:
    names = [name for name, root in _folders(folder).items() if _within(place, root)]
    if not names or names[0] == "run.dir":
        return f"free that path or space there, or choose another run.dir; {ANSWERS}"
    return (
        f"free that path or space there, or set {names[0]} to a folder that can be written; "
        f"{ANSWERS}"
    )


def _within(place: Path, root: Path) -> bool:
    return Path(os.path.abspath(place)).is_relative_to(os.path.abspath(root))


def _short(place: Path, most: int = 120) -> str:
    text = str(place)
    return text if len(text) <= most else f"{text[:60]}...{text[-50:]}"
