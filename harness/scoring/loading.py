"""A task of lmms-eval with the rows that can be scored: settings, data, validation.

Knows lmms-eval's task API; must not know how answers are scored, nor models.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from huggingface_hub import get_token
from lmms_eval import utils
from lmms_eval.api.task import ConfigurableMessagesTask, ConfigurableTask
from lmms_eval.tasks import TaskManager

from harness.errors import UserError
from harness.process import scratch
from harness.scoring import catalog, datafiles, mmbench, taskfields
from harness.scoring.hub import require_dataset
from harness.scoring.validation import faults, files, pictures, texts
from harness.scoring.validation import mmbench as options
from harness.scoring.validation.faults import Asked, Fault
from harness.scoring.validation.texts import TooLong
from harness.settings.config import TaskConfig

PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors of the disk, not of the data


class CheckedTask(ConfigurableMessagesTask):
    """A task whose data set holds only rows that can be asked and scored.

    whole: the split with every row; positions: of the rows that are left in it. left_out: why the
    others are not there.
    """

    def __init__(
        self,
        asked: Asked,
        config: dict[str, Any],
        scorer: str = "auto",
        too_long: TooLong | None = None,
    ) -> None:
        """Load and check the data, then let lmms-eval build the task on what is left.

        Args:
            asked: how the task is called and what to do with bad rows.
            config: the task's YAML as lmms-eval takes it.
            scorer: as in the task's settings.
            too_long: why the model cannot take a prompt's text, where that is known.

        Raises:
            UserError: the data cannot be loaded, or has rows that cannot be scored.
        """
        self.asked, self.scorer, self.too_long = asked, scorer, too_long
        self.ids: list[int] = []
        self.indexes: list[int | None] | None = None
        self.left_out: list[Fault] = []
        self.positions: list[int] = []
        super().__init__(config=config, model_name="evictbench")

    @property
    def split(self) -> str:
        """The split that is asked."""
        return str(self.config.test_split or self.config.validation_split)

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Load the data set; local data is not tried five times, as lmms-eval does."""
        folder = Path(str(self.DATASET_PATH))
        load = super().download
        if folder.is_dir() or (dataset_kwargs or {}).get("data_files"):
            load = ConfigurableTask.download.__wrapped__.__get__(self)
        with _in_words(self.asked, folder, self.config.dataset_name, dataset_kwargs):
            load(dataset_kwargs)
        listed = (dataset_kwargs or {}).get("data_files")
        mixed = [c for s in self.dataset.values() for c in s.features.values() if _any_json(c)]
        if mixed and listed and (why := files.of_lines(listed)):
            raise self.asked.error(why)
        if self.split not in self.dataset:
            raise self.asked.error(
                f"its data has no split {self.split} (it has {', '.join(self.dataset)}); list it "
                f"in {files.CARD}, or set tasks.{self.asked.label}.overrides.test_split"
            )
        self._validate()

    def _validate(self) -> None:
        """Keep the rows that can be scored."""
        self.whole = self.dataset[self.split]
        self.features = list(self.whole.features)  # lmms-eval sets them later, for its functions
        if not len(self.whole):
            raise self.asked.error(f"split {self.split} of its data has no row; build it anew")
        if self.scorer == "mmbench" or mmbench.fits(self):
            examined = options.examine(self.asked, self, self.whole)
            self.whole, self.ids, found = examined.dataset, examined.ids, examined.faults
            self.indexes = examined.indexes
            self._show(self.whole)
        else:
            self.ids = list(range(len(self.whole)))
            found = texts.examine(self.asked, self, self.whole)
        rows = sorted({*range(len(self.whole))} - {fault.row for fault in found})
        documents = self.dataset_no_image[self.split]
        documents = documents if len(rows) == len(documents) else documents.select(rows)
        self.leave_out([*found, *texts.unasked(self, rows, documents, self.too_long)])
        while damaged := self.damaged([0]):  # lmms-eval decodes the first row by itself
            self.leave_out(damaged)

    def leave_out(self, found: Sequence[Fault]) -> None:
        """Take the questions of faulty rows out of the data set.

        Raises:
            UserError: there are some and the settings refuse them, or nothing would be left.
        """
        if self.indexes is not None:
            found = [replace(fault, index=self.indexes[fault.row]) for fault in found]
        self.left_out = sorted([*self.left_out, *found], key=_row)
        self.positions = faults.settle(self.asked, self.left_out, self.ids)
        kept = self.whole
        if len(self.positions) < len(self.whole):
            kept = self.whole.select(self.positions)
        self._show(kept)
        self.task_docs = kept

    def damaged(self, places: Sequence[int]) -> list[Fault]:
        """The images of some of the rows that are left that cannot be decoded.

        Args:
            places: of the rows in the data set as it is now.
        """
        rows = [self.positions[place] for place in places]
        return pictures.damaged(self.whole, rows)

    def doc_to_messages(self, doc: Any, **rounds: Any) -> Any:
        """As lmms-eval's, with images of 16 bits a pixel brought to 8."""
        return super().doc_to_messages(pictures.eight_bit(doc), **rounds)

    def _show(self, rows: Any) -> None:
        same = self.dataset_no_image is self.dataset
        self.dataset[self.split] = rows
        if not same:
            free = {*self.dataset_no_image[self.split].column_names} - {*pictures.columns(rows)}
            self.dataset_no_image[self.split] = rows.select_columns(
                [name for name in rows.column_names if name in free]
            )


def _any_json(feature: Any) -> bool:
    """Whether a column's values have several types, which the datasets library calls Json."""
    return type(feature).__name__ == "Json"


def _row(fault: Fault) -> int:
    return fault.row


@contextmanager
def _in_words(
    asked: Asked, folder: Path, config: str | None, settings: dict[str, Any] | None
) -> Iterator[None]:
    """Turn whatever a library raises while it loads data into one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        for cause in _causes(error):
            if isinstance(cause, OSError) and cause.errno in PLACE:
                raise cause from None
        listed = (settings or {}).get("data_files")
        why = files.of_folder(folder, config) if folder.is_dir() else None
        why = why or (files.of_lines(listed) if listed else None)
        last = _causes(error)[-1]
        raise asked.error(why or f"its data cannot be loaded ({files.said(last)})") from error


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what led to it, the first cause last."""
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) and cause not in found:
        found.append(cause)
    return found


def load(
    name: str, config: TaskConfig, label: str | None = None, too_long: TooLong | None = None
) -> CheckedTask:
    """The task that settings name, on its data.

    Args:
        name: what tables call the task.
        config: its settings.
        label: what settings call it; None: as tables do.
        too_long: why the model cannot take a prompt's text, where that is known.

    Raises:
        UserError: the task or its data is not there or does not fit.
    """
    asked = Asked(name, label or name, config.invalid)
    taskfields.check(asked.label, config.overrides)
    merged = settings(config)
    if (merged.get("dataset_kwargs") or {}).get("data_files"):
        merged["dataset_kwargs"] = datafiles.local(name, merged["dataset_kwargs"])
    else:
        require_dataset(name, str(merged["dataset_path"]))
    task = CheckedTask(asked, merged, config.scorer, too_long)
    if task.OUTPUT_TYPE != "generate_until" or (task.config.repeats or 1) != 1:
        raise UserError(
            f"task={name} asks for {task.OUTPUT_TYPE}, {task.config.repeats} times a row: only "
            "generate_until tasks with one answer a row can be answered from an evicted cache."
        )
    return task


def index_of(lmms_task: str) -> TaskManager:
    """lmms-eval's index of the folder that defines a task: all of them would take 8 seconds."""
    return TaskManager(include_path=str(_yaml_of(lmms_task).parent), include_defaults=False)


def settings(config: TaskConfig) -> dict[str, Any]:
    """The task's own YAML with this project's overrides, as lmms-eval takes it.

    Raises:
        UserError: lmms-eval has no such task.
    """
    try:
        merged = {**utils.load_yaml_config(str(_yaml_of(config.lmms_task)), mode="full")}
    except ImportError as error:
        cause = error.__cause__ or error
        raise UserError(
            f"The task {config.lmms_task} of lmms-eval cannot be loaded ({cause}): install what it "
            "needs, or choose another task."
        ) from error
    merged |= config.overrides
    own = dict(merged.get("dataset_kwargs") or {})
    if own.get("token") is True and get_token() is None:
        del own["token"]  # it fails without a login, for public data as well
    merged["dataset_kwargs"] = own
    if Path(str(merged["dataset_path"])).is_dir():
        # datasets caches a local folder under its name alone and would serve an earlier content.
        own["cache_dir"] = mkdtemp(dir=scratch.folder())
    merged["generation_kwargs"] = {**(merged.get("generation_kwargs") or {}), **config.generation}
    return merged


def _yaml_of(lmms_task: str) -> Path:
    found = catalog.find(lmms_task)
    if found is None:
        raise UserError(f"{lmms_task} is not a task of lmms-eval: `lmms-eval tasks` lists them.")
    return found
