"""Which part of the questions a process answers: part i of n, told by hand or by its launcher.

Must not know what a question is.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import UserError

AUTO = "auto"
MOST = 100_000  # parts: more than any cluster has processes
#: (index, count) as launchers tell a process of several: torchrun and its like, then srun.
TOGETHER = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
LOCAL = ("LOCAL_RANK", "SLURM_LOCALID")  # a process's number on its machine


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, from 0."""

    index: int
    count: int

    def holds(self, turn: int) -> bool:
        """Whether the question that is asked at this turn belongs to this part."""
        return turn % self.count == self.index

    def __str__(self) -> str:
        """As settings give it, such as 2/8."""
        return f"{self.index}/{self.count}"


def shard_of(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard | None:
    """The part that `shard=` gives; None where nothing is set.

    Raises:
        UserError: it is no part, or `auto` finds no launcher.
    """
    if text is None:
        return None
    if text == AUTO:
        return _launched(environment)
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if found is None:
        raise UserError(
            f"shard={text} is no part of a run: give shard=i/n, such as shard=0/8, or shard=auto."
        )
    index, count = map(int, found.groups())
    if not 0 < count <= MOST or index >= count:
        last = f"{max(count, 1) - 1}/{max(count, 1)}"
        raise UserError(
            f"shard={text} is no part of a run: the parts are 0/{max(count, 1)} to {last}."
        )
    return Shard(index, count)


def local_number(environment: Mapping[str, str] = os.environ) -> int | None:
    """The number of this process among those of a launcher on its machine, if that is told."""
    given = next((environment[name] for name in LOCAL if name in environment), "")
    return int(given) if given.isdecimal() else None


def _launched(environment: Mapping[str, str]) -> Shard:
    """From a Slurm array, from processes that were started together, or from both."""
    parts = [part for part in (_array(environment), _together(environment)) if part]
    if not parts:
        names = ", ".join(["SLURM_ARRAY_TASK_ID", *(index for index, _ in TOGETHER)])
        raise UserError(f"shard=auto finds none of {names}: give shard=i/n, such as shard=0/8.")
    index, count = 0, 1
    for part in parts:
        index, count = index * part.count + part.index, count * part.count
    return Shard(index, count)


def _array(environment: Mapping[str, str]) -> Shard | None:
    names = ("ID", "MIN", "STEP", "COUNT")
    given = [environment.get(f"SLURM_ARRAY_TASK_{name}", "") for name in names]
    if not given[0]:
        return None
    try:
        number, first, step, count = int(given[0]), int(given[1]), int(given[2] or 1), int(given[3])
    except ValueError:
        raise UserError(
            "shard=auto needs SLURM_ARRAY_TASK_MIN and SLURM_ARRAY_TASK_COUNT beside "
            "SLURM_ARRAY_TASK_ID: give shard=i/n."
        ) from None
    return _checked((number - first) // step, count, "SLURM_ARRAY_TASK_ID")


def _together(environment: Mapping[str, str]) -> Shard | None:
    for index, count in TOGETHER:
        if index in environment and count in environment:
            try:
                return _checked(int(environment[index]), int(environment[count]), index)
            except ValueError:
                raise UserError(
                    f"shard=auto cannot read {index}={environment[index]} and "
                    f"{count}={environment[count]}: give shard=i/n."
                ) from None
    return None


def _checked(index: int, count: int, name: str) -> Shard:
    """UserError for an array with holes, of which some parts would never be answered."""
    if not 0 <= index < count:
        raise UserError(
            f"shard=auto makes part {index} of {count} from {name}: number the tasks of an array "
            "without holes, such as --array=0-7, or give shard=i/n."
        )
    return Shard(index, count)
