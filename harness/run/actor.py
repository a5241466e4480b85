"""One worker of a run: it loads the model in a process of its own and answers the rows it is given.

Must not know Ray or the store.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from harness.errors import UserError
from harness.models.identity import identify
from harness.process import scratch
from harness.records import provenance
from harness.scoring.rows import Answered, Engine, Row, RowFailed, answered, ready
from harness.settings.config import Config

#: Loads a model: settings, the file for what libraries write, the settings in the cell keys.
Load = Callable[[Config, Path, Mapping[str, object]], Any]


@dataclass(frozen=True)
class Task:
    """What a worker is started for. share: of the CPU's threads, where engine.threads=auto. load:
    makes the engine.
    """

    config: Config
    folder: Path
    context: Mapping[str, object]
    share: int
    load: Load

    @property
    def kind(self) -> str:
        """The device, cpu or cuda."""
        return str(self.context["device"])


@dataclass(frozen=True)
class Refused:
    """A UserError as it travels between processes. row: whether it is about one row alone."""

    sentence: str
    row: bool = False


class Actor:
    """Answers rows one at a time; calls come from several threads."""

    def __init__(self, task: Task, number: int) -> None:
        """Keep what is to be done; nothing that can fail."""
        self.task, self.number = task, number
        self._one = Lock()
        self._engine: Engine | None = None

    def begin(self) -> Mapping[str, object] | Refused:
        """Load the model; what computes the answers here."""
        task = self.task
        import torch

        torch.set_num_threads(task.share)  # the engine may set another number, or one
        device, dtype = task.kind, str(task.context["dtype"])
        config = replace(task.config, device=device, dtype=dtype)
        folder = task.folder if task.folder.is_dir() else Path(scratch.folder())
        try:
            self._same_weights(config)
            self._engine = task.load(config, folder / f"worker-{self.number}.log", task.context)
            return provenance.origin(task.context)
        except UserError as error:
            return Refused(str(error))

    def answer(self, row: Row) -> Answered | Refused:
        """Answer a row; its prompt is made while another row is answered."""
        assert self._engine is not None
        try:
            made = ready(self._engine, row)
            with self._one:
                return answered(self._engine, row, made)
        except UserError as error:
            return Refused(str(error), isinstance(error, RowFailed))

    def _same_weights(self, config: Config) -> None:
        """UserError where this machine has another checkpoint under the same name."""
        if identify(config.model.pretrained, config.model.revision) != self.task.context["weights"]:
            raise UserError(
                f"model.pretrained={config.model.pretrained} holds other weights on a worker's "
                "machine: put the same files on every machine."
            )
