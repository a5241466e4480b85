"""The settings of `hydra/launcher=slurm`, as submitit takes them; must not know what a job does."""

import math
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from harness.errors import UserError
from harness.settings.bounds import check_count, seconds, shortened

GROUP = "hydra.launcher"
#: Ours, and the same in submitit; the others are called alike.
CALLED = {"name": "job_name", "gpus": "gpus_per_node", "cpus": "cpus_per_task"}
COUNTS = ("cpus", "array_parallelism", "signal_delay_s")
MOST = 1_000_000


def options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What submitit is given, made of conf/hydra/launcher/slurm.yaml.

    Raises:
        UserError: a setting is none, or its value is out of range.
    """
    given = OmegaConf.to_container(OmegaConf.create(dict(settings)), resolve=True)
    assert isinstance(given, dict)
    for name in COUNTS:
        check_count(f"{GROUP}.{name}", given[name], MOST, "")
    again = given["max_num_timeout"]
    if isinstance(again, bool) or not isinstance(again, int) or not 0 <= again <= MOST:
        raise UserError(f"{GROUP}.max_num_timeout={shortened(again)} is no count: use 0 or more.")
    extra = given.pop("additional_parameters") or {}
    if not isinstance(extra, dict):
        raise UserError(
            f"{GROUP}.additional_parameters={shortened(extra)} holds no options of sbatch: give "
            f"'{GROUP}.additional_parameters={{qos: high}}'."
        )
    found = {CALLED.get(name, str(name)): value for name, value in given.items()}
    found["gpus_per_node"] = None if given["gpus"] in (0, "0") else given["gpus"]
    return {
        **found,
        "time": minutes(given["time"]),
        "setup": [str(line) for line in given["setup"] or ()] or None,
        "nodes": 1,
        "ntasks_per_node": 1,
        "srun_args": [f"--cpus-per-task={given['cpus']}"],  # srun does not take sbatch's any more
        "stderr_to_stdout": True,
        "wckey": None,
        "additional_parameters": {"requeue": True, **extra},
    }


def minutes(value: object) -> int:
    """A limit in whole minutes: 90m, 4h, 1d, Slurm's 4:00:00 and 1-12:00:00, or minutes."""
    found = re.fullmatch(r"(?:(\d{1,3})-)?(\d{1,4}):([0-5]\d):([0-5]\d)", str(value))
    if found:
        days, hours, rest, last = (int(part or 0) for part in found.groups())
        whole = ((days * 24 + hours) * 60 + rest) * 60 + last
    elif re.fullmatch(r"\d{1,6}", str(value)):
        whole = int(str(value)) * 60
    else:
        whole = math.ceil(seconds(f"{GROUP}.time", str(value)) or 0)
    if not whole:
        raise UserError(f"{GROUP}.time={shortened(value)} leaves no time: give a time such as 4h.")
    return math.ceil(whole / 60)
