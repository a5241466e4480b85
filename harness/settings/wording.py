"""An error as one sentence that names the value and what to do instead.

Knows Hydra's and OmegaConf's error texts and the choices in conf/; must not know what a run does.
"""

import re
from collections.abc import Sequence

from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from harness.errors import UserError
from harness.settings.config import CONF

LONGEST = 400  # characters of a word that are shown
COMMANDS = "run, check, report and compare"
HELP = "`evictbench --help` shows what there is"


def sentence(error: BaseException) -> str:
    """Put an error of Hydra or OmegaConf in one sentence that names the value and the choices."""
    return re.sub(
        rf"\S{{{LONGEST},}}", lambda word: f"{word[0][:60]}...{word[0][-10:]}", _said(error)
    )


def _said(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    if isinstance(error, OverrideParseException):
        why = (
            "" if re.match(r"\w+Exception: |Error parsing override", lines[0]) else f" ({lines[0]})"
        )
        commands = "" if "=" in error.override else f"; the commands are {COMMANDS}"
        _, _, value = error.override.partition("=")
        remedy = "write name=value, and lists in quotes, such as 'ratios=[0.5,0.9]'"
        if "=" in value:
            remedy = "put a value that holds = in quotes of its own, such as 'run.name=\"a=b\"'"
        return f"The setting {error.override!r} cannot be read{why}: {remedy}{commands}."
    if missing := re.search(r"Could not (?:find|load) '(.+)/([^/']+)'", str(error)):
        offered = re.findall(r"^\t(\S+)$", str(error), re.MULTILINE)
        return unknown_choice(missing[1], missing[2], offered)
    if lines[0].startswith("Could not override"):
        return _unknown_setting(lines[0].split("'")[1])
    if lines[0].startswith("Error merging") and error.__cause__ is not None:
        return _said(error.__cause__)
    key = next((f"{line[9:].strip()}: " for line in lines if line.startswith("full_key:")), "")
    first = re.sub(r"^\w+(Error|Exception) raised while resolving interpolation: ", "", lines[0])
    return f"{key}{first.rstrip('.')}: {HELP}."


def unknown_choice(group: str, choice: str, offered: Sequence[str] = ()) -> str:
    """That there is no such choice of a group, and which there are: `offered`, those in conf/."""
    options = sorted({*offered, *(path.stem for path in (CONF / group).glob("*.yaml"))})
    other = ", or name any task or group of lmms-eval" if group == "task" else ""
    return f"{group}={choice} is not there: choose from {', '.join(options) or 'nothing'}{other}."


def _unknown_setting(name: str) -> str:
    if name == "analysis.contrasts":
        return f"{name} takes pairs of label, against, called, varies and asks: {HELP}."
    return _unknown_parameter(name)


def _unknown_parameter(name: str) -> str:
    """Name what is close by: the parameters of a method or prefill, else where all settings are
    listed.
    """
    found = re.fullmatch(r"(method|prefill)s\.([^.]+)\.([^.]+)", name)
    if found and (CONF / found[1] / f"{found[2]}.yaml").is_file():
        folder = CONF / found[1]
        source = (folder / f"{found[2]}.yaml").read_text()
        label = re.search(r"^\s*- (\w+)@_here_", source, re.MULTILINE)  # an ablation's base
        node = OmegaConf.load(folder / f"{label[1] if label else found[2]}.yaml")
        takes = ", ".join(str(key) for key in node if key not in ("method", "pattern"))
        return (
            f"There is no setting {name}: {found[2]} takes {takes or 'no parameter'}, and must be "
            f"among the {found[1]}s chosen with '{found[1]}=[...]'."
        )
    return f"There is no setting {name}: {HELP}, and `--cfg job` every setting with its value."
