"""Builds any task of lmms-eval by its name on local data in the real schema of its data set."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from datasets import Dataset, Features
from lmms_eval import utils
from lmms_eval.api.task import ConfigurableMessagesTask
from PIL import Image

from harness.scoring import catalog


def write(
    folder: Path, config: str, split: str, rows: Sequence[Mapping[str, Any]], features: Features
) -> Path:
    """A folder in the layout of a hub repository: `<config>/<split>` and a README that says so."""
    (folder / config).mkdir(parents=True)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {config}\n  data_files:\n  - split: {split}\n"
        f"    path: {config}/{split}-*\n---\n"
    )
    table = Dataset.from_list([dict(row) for row in rows], features=features)
    table.to_parquet(str(folder / config / f"{split}-00000-of-00001.parquet"))
    return folder


def build(name: str, folder: Path) -> Any:
    """The real task of that name, its data set replaced by a folder."""
    found = catalog.find(name)
    assert found is not None
    settings = utils.load_yaml_config(str(found), mode="full")
    settings["dataset_path"] = str(folder)
    settings["dataset_kwargs"] = {"cache_dir": mkdtemp(dir=folder)}
    return ConfigurableMessagesTask(config=settings, model_name="evictbench")


def results(task: Any, texts: Sequence[str]) -> list[dict[str, Any]]:
    """What the task makes of one answer a row, its filters first, as lmms-eval's evaluator does."""
    task.build_all_requests()
    for instance in task.instances:
        instance.resps = [texts[instance.doc_id]]
    task.apply_filters()
    filtered = {i.doc_id: str(next(iter(i.filtered_resps.values()))) for i in task.instances}
    rows = enumerate(task.eval_docs_no_media)
    return [task.process_results(document, [filtered[row]]) for row, document in rows]


def picture(number: int) -> dict[str, Any]:
    """A small image of its own colour, as parquet stores it."""
    file = io.BytesIO()
    Image.new("RGB", (12, 8), (number % 256, 0, 0)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}
