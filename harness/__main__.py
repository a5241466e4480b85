"""`python -m harness`: Hydra composes the settings, every user error ends as one sentence.

Knows Hydra and its error texts; must not know what a run does.
"""

import os
import re
import sys
import traceback
from collections.abc import Sequence

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness import naming
from harness.config import CONF, as_config, register
from harness.errors import UserError
from harness.scoring import catalog

MULTIRUN = ("-m", "--multirun")  # argparse wants them before or after all settings, not between
HELP = "`python -m harness --help` shows what there is"

_failures: list[str] = []
_started: list[bool] = []


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(cfg: DictConfig) -> None:
    """Run one job; a user error is kept, so that the other jobs of a multirun go on."""
    _started.append(True)
    try:
        config = as_config(cfg)
        config.run.name = config.run.name or naming.default_name(cfg)
        from harness.sweep import run  # late: settings are checked before anything heavy loads

        run(config)
    except UserError as error:
        _fail(error, str(error))
    except OmegaConfBaseException as error:
        _fail(error, sentence(error))


def _fail(error: Exception, message: str) -> None:
    if os.environ.get("EVICTBENCH_TRACEBACK") == "1":
        traceback.print_exception(error)
    _failures.append(message)
    print(f"error: {message}", file=sys.stderr)


def sentence(error: BaseException) -> str:
    """Put an error of Hydra or OmegaConf in one sentence that names the value and the choices."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    if isinstance(error, OverrideParseException):
        return (
            f"The setting {error.override!r} cannot be read ({lines[0]}): write name=value, and "
            "lists in quotes, such as 'ratios=[0.5,0.9]'."
        )
    if missing := re.search(r"Could not (?:find|load) '(.+)/([^/']+)'", str(error)):
        return _unknown_choice(*missing.groups())
    if lines[0].startswith("Could not override"):
        return _unknown_setting(lines[0].split("'")[1])
    if lines[0].startswith("Error merging") and error.__cause__ is not None:
        return sentence(error.__cause__)
    key = next((f"{line[9:].strip()}: " for line in lines if line.startswith("full_key:")), "")
    return f"{key}{lines[0].rstrip('.')}: {HELP}."


def _unknown_choice(group: str, choice: str) -> str:
    options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    other = ", or name any task or group of lmms-eval" if group == "task" else ""
    return f"{group}={choice} is not there: choose from {', '.join(options) or 'nothing'}{other}."


def _name_lmms_tasks(arguments: Sequence[str]) -> None:
    """Make tasks of lmms-eval that have no file in conf/task choices of the group `task`."""
    typed = [text.partition("=")[2] for text in arguments if text.startswith("task=")]
    for name in re.findall(r"[\w.+-]+", " ".join(typed)):
        if not (CONF / "task" / f"{name}.yaml").is_file() and catalog.find(name) is not None:
            ConfigStore.instance().store(name, _named(name), "task", f"tasks.{name}")


def _free(typed: str) -> str:
    """A setting of a task that its file need not list; what takes it checks its name."""
    return (
        f"++{typed}" if re.match(r"tasks\.[^.=]+\.(overrides|generation|data)\.", typed) else typed
    )


def _named(name: str) -> dict[str, object]:
    """The settings of a task by its name; a member of one of our own families has its family's."""
    path = catalog.find(name)
    family = CONF / "task" / f"{path.parent.name if path else None}.yaml"
    ours = path is not None and path.is_relative_to(catalog.OURS) and family.is_file()
    given = OmegaConf.to_container(OmegaConf.load(family)) if ours else {}
    assert isinstance(given, dict)
    return {**{str(key): value for key, value in given.items()}, "lmms_task": name}


def _unknown_setting(name: str) -> str:
    """Name what is close by: the parameters of a method, else where all settings are listed."""
    found = re.fullmatch(r"methods\.([^.]+)\.([^.]+)", name)
    if found and (CONF / "method" / f"{found[1]}.yaml").is_file():
        source = (CONF / "method" / f"{found[1]}.yaml").read_text()
        label = re.search(r"^\s*- (\w+)@_here_", source, re.MULTILINE)  # an ablation's base
        node = OmegaConf.load(CONF / "method" / f"{label[1] if label else found[1]}.yaml")
        takes = ", ".join(str(key) for key in node if key != "method") or "no parameter"
        return (
            f"There is no setting {name}: {found[1]} takes {takes}, and must be among the methods "
            "chosen with 'method=[...]'."
        )
    return f"There is no setting {name}: {HELP}, and `--cfg job` every setting with its value."


def main() -> int:
    """Run the command line; returns the exit code: 0, 2 for a user error, 130 when stopped."""
    register()
    _failures.clear()
    _started.clear()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors its own way and exits with 1
    sys.argv[1:] = map(_free, sys.argv[1:])
    _name_lmms_tasks(sys.argv[1:])
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda typed: typed not in MULTIRUN)
    try:
        _job()
    except (HydraException, OmegaConfBaseException) as error:
        _fail(error, sentence(error))
    except OSError as error:
        if _started:
            raise
        _fail(
            error,
            f"{error.filename} cannot be written ({error.strerror}): choose another run.dir.",
        )
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        return 130
    return 2 if _failures else 0


if __name__ == "__main__":
    sys.exit(main())
