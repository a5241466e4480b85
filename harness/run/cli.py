"""The command line: Hydra composes the settings, every user error ends as one sentence.

Knows Hydra; must not know what a run does.
"""

import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.errors import UserError
from harness.process import scratch, stopping
from harness.process.console import fall_silent
from harness.run.jobs import Failure, Program, Work, run_sweep
from harness.scoring import catalog
from harness.settings.config import CONF, register
from harness.settings.wording import HELP, sentence, unknown_choice

GROUPS = ("model", "task", "protocol", "prefill", "method")  # of conf/, chosen by name
#: Settings that no file need list.
FREE = re.compile(
    r"tasks\.[^.=]+\.(overrides|generation|data)\.|hydra\.launcher\.additional_parameters\."
)
MULTIRUN = ("-m", "--multirun")  # argparse wants them before or after all settings, not between


def _name_lmms_tasks(arguments: Sequence[str]) -> None:
    """Make tasks of lmms-eval that have no file in conf/task choices of the group `task`."""
    typed = [text.partition("=")[2] for text in arguments if text.startswith("task=")]
    for name in re.findall(r"[\w.+-]+", " ".join(typed)):
        if not (CONF / "task" / f"{name}.yaml").is_file() and catalog.find(name) is not None:
            ConfigStore.instance().store(name, _named(name), "task", f"tasks.{name}")


def _free(typed: str) -> str:
    """Such a setting as Hydra takes it; what it is for checks its name."""
    return f"++{typed}" if FREE.match(typed) else typed


def _check_typed(arguments: Sequence[str], one: bool) -> None:
    """UserError for what Hydra would answer with its usage, or in words of its own, and for several
    jobs where there may be `one`.
    """

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}: {HELP}.")

    parser = get_args_parser()
    parser.error = refuse
    several = parser.parse_args(arguments).multirun
    if several and one:
        raise UserError("This command takes one value of each setting: leave -m out.")
    if "hydra/launcher=slurm" in arguments and not (several or "hydra.mode=MULTIRUN" in arguments):
        raise UserError("hydra/launcher=slurm is for jobs of -m: give -m too, also for one job.")
    for typed in arguments:
        group, _, choice = typed.partition("=")
        if group in GROUPS and choice in ("null", "~"):
            raise UserError(unknown_choice(group, choice))
        if group == "prefill" and choice.strip("[] ") == "":
            raise UserError("prefill=[] reads no prompt: name at least one, such as prefill=dense.")
        if group in GROUPS and "[[" in choice.replace(" ", ""):
            raise UserError(f"{typed} is a list in a list: give one, such as '{group}=[a,b]'.")
        drawn = re.match(r"\+*tasks\.([^.=]+)\.data\.", typed)
        if drawn and not _draws(drawn[1]):
            raise UserError(
                f"{typed.lstrip('+')} is for data drawn here, and task={drawn[1]} has none: set "
                "EVICTBENCH_DATA or tasks.<name>.overrides.dataset_path, as Network in "
                "docs/benchmarks.md says."
            )


def _draws(name: str) -> bool:
    """Whether a task has a generator of data; true for what is not known, which others refuse."""
    path = CONF / "task" / f"{name}.yaml"
    if not path.is_file() and catalog.find(name) is None:
        return True
    given = OmegaConf.load(path) if path.is_file() else _named(name)
    return given.get("data") is not None


def _named(name: str) -> dict[str, object]:
    """The settings of a task by its name; a member of one of our own families has its family's."""
    path = catalog.find(name)
    family = CONF / "task" / f"{path.parent.name if path else None}.yaml"
    ours = path is not None and path.is_relative_to(catalog.OURS) and family.is_file()
    given = OmegaConf.to_container(OmegaConf.load(family)) if ours else {}
    assert isinstance(given, dict)
    return {**{str(key): value for key, value in given.items()}, "lmms_task": name}


def main(work: Work = run_sweep) -> int:
    """Run the command line.

    Args:
        work: what is done with the settings; only a sweep may be several, with -m.

    Returns:
        The exit code: 0, 2 for a user error, 1 for a fault of the program in some job, and 128 and
        the number of the signal when stopped: 130, 143, 129, or 141 where nobody reads.
    """
    try:
        with stopping.heard():
            failures = _run(work)
            for failure in failures:
                _tell(f"error: {failure}")
            sys.stdout.flush()
    except BrokenPipeError:  # nobody reads the help any more
        fall_silent()
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as error:
        stopping.tell(error)
        scratch.remove()
        return stopping.code(error)
    return min((failure.code for failure in failures), default=0)


def _run(work: Work) -> list[Failure]:
    """Let Hydra compose and run what was typed; returns how it failed."""
    register()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors its own way and exits with 1
    sys.argv[1:] = map(_free, sys.argv[1:])
    _name_lmms_tasks(sys.argv[1:])
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda typed: typed not in MULTIRUN)
    program = Program(work=work)
    try:
        _check_typed(sys.argv[1:], one=work is not run_sweep)
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(program)()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get("EVICTBENCH_TRACEBACK") == "1":
            traceback.print_exception(error)
        return [*program.failures, Failure(sentence(error))]
    except OSError as error:
        if program.began or isinstance(error, BrokenPipeError):
            raise
        why = f"{error.filename} cannot be written ({error.strerror}): choose another run.dir."
        return [Failure(why)]
    except (ValueError, TypeError, AttributeError, RecursionError, ArithmeticError) as error:
        if program.began:
            raise
        if place := re.search(r"full_key: (\S+)", str(error)):  # what is null takes no mapping
            key = place[1]
            return [Failure(f"{key} is nothing yet: set {key}.<name>=<value> one by one.")]
        why = " ".join(str(error).split()).replace("NoneType", "null") or type(error).__name__
        return [Failure(f"The settings cannot be read ({why[:200]}): {HELP}.")]
    return program.failures


def _tell(text: str) -> None:
    with suppress(OSError):  # the terminal is gone
        print(text, file=sys.stderr)
