"""wandb itself: where it writes, whether it can be reached, a run from begin to end.

Everything wandb writes, table media and staged artifacts included, goes under `<folder>/wandb`, so
that `wandb sync` can upload it later from there. Must not know what is logged.
"""

import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import wandb

from harness.errors import UserError

Mode = Literal["offline", "online", "disabled"]
MODES: dict[str, Mode] = {"offline": "offline", "online": "online", "disabled": "disabled"}
LOG_IN = "log in with `wandb login`"
LATER = f"{LOG_IN}, or use wandb.mode=offline and `wandb sync` later."
NEVER = "mend that, or use wandb.mode=disabled."
NAME, TAG = 128, 64  # characters of names and of tags that wandb takes


@contextmanager
def environment(folder: Path, *, offline: bool) -> Iterator[None]:
    """wandb's folders, which it reads from the environment alone; restored afterwards.

    Its service leaves an empty folder in TMPDIR, and the path of its socket there must be short: a
    temporary folder of its own serves both.
    """
    home = folder / "wandb"
    changed: dict[str, str | None] = {
        "WANDB_DIR": str(folder),
        "WANDB_DATA_DIR": str(home / "data"),
        "WANDB_CACHE_DIR": str(home / "cache"),
        "WANDB_ARTIFACT_DIR": str(home / "artifacts"),
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
    }
    if offline:  # online, the person's own login and server count
        changed["WANDB_CONFIG_DIR"] = str(home / "config")
        changed["WANDB_API_KEY"] = None  # what is not known cannot be logged
    before = {key: os.environ.get(key) for key in [*changed, "TMPDIR"]}
    home.mkdir(parents=True, exist_ok=True)
    holder = tempfile.TemporaryDirectory(prefix="wandb-", ignore_cleanup_errors=True)
    with holder as scratch:
        try:
            _set(changed | {"TMPDIR": scratch})
            yield
        finally:
            if wandb.run is None:  # a run of the caller's own still needs the service
                wandb.teardown()
            _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for key, value in variables.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


@contextmanager
def run(
    folder: Path, mode: Mode, *, name: str, tags: list[str], **told: Any
) -> Iterator[wandb.Run]:
    """A run that ends with the block, as failed where the block raises.

    Args:
        folder: the run folder.
        mode: "offline" or "online".
        name: shown for the run; cut to what wandb takes, as the tags are.
        tags: to filter by; empty ones and repetitions are left out.
        told: further arguments of `wandb.init`.

    Raises:
        UserError: wandb refuses a setting or cannot go online.
    """
    settings = wandb.Settings(
        mode=mode,
        root_dir=str(folder.resolve()),
        silent=True,
        console="off",
        disable_git=True,  # a remote's address may hold a token
        disable_code=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_machine_info=True,
    )
    short = [tag[:TAG] for tag in tags if tag]
    try:
        current = wandb.init(
            name=name[:NAME], tags=list(dict.fromkeys(short)), settings=settings,
            reinit="create_new", **told,
        )  # fmt: skip
    except wandb.Error as error:
        remedy = LATER if mode == "online" else NEVER
        raise UserError(f"wandb.mode={mode} failed ({error}); {remedy}") from error
    try:
        yield current
    except BaseException:
        with suppress(Exception):  # what went wrong before counts
            current.finish(exit_code=1)
        raise
    current.finish(exit_code=0)


def reach(asked: str, remedy: str = LATER) -> None:
    """Fail within seconds where wandb itself would retry for minutes.

    Args:
        asked: what was asked for, which the message begins with.
        remedy: what to do instead, which it ends with.
    """
    address = str(wandb.setup().settings.base_url)
    try:
        urllib.request.urlopen(address, timeout=10).close()
    except urllib.error.HTTPError:
        return  # an answer, whatever it says
    except (OSError, ValueError) as error:
        raise UserError(f"{asked} cannot reach {address} ({error}); {remedy}") from error
