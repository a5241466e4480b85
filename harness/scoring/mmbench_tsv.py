r"""MMBench's official tables as a data set that the MMBench tasks read: the way to V1.1.

The hub repository that lmms-eval uses has V1.0 only; V1.1 comes as tables with images in base64
(https://github.com/open-compass/MMBench). To ask them:

    python -m harness.scoring.mmbench_tsv MMBench_DEV_EN_V11.tsv data/mmbench_v11 en dev
    evictbench task=mmbench_en_dev \
        tasks.mmbench_en_dev.overrides.dataset_path=data/mmbench_v11

Knows the tables and the layout of the hub repository; must not know tasks or models.
"""

import base64
import csv
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Value

from harness.errors import UserError
from harness.scoring.strict import present

TEXTS = (
    "question", "hint", "answer", "A", "B", "C", "D", "category", "source", "L2-category",
    "comment", "split",
)  # fmt: skip
NEEDED = ("index", "question", "a", "b", "category", "image")
HEAD = "---\nconfigs:"  # of the README that tells `datasets` what the folder holds
_REFERENCE = 64  # an image field this short names the row that holds the image


def convert(table: Path, folder: Path, config: str, split: str) -> Path:
    """Write `table` as a split of `folder` and let the folder list what it has.

    Args:
        table: a file of tab-separated values.
        folder: of the data set, such as data/mmbench_v11.
        config: en or cn.
        split: dev or test.

    Returns:
        The parquet file.

    Raises:
        UserError: the table is not there or is not one of MMBench's, or the folder holds a README
            that this did not write.
    """
    card = folder / "README.md"
    if card.exists() and not card.read_text(encoding="utf-8").startswith(HEAD):
        raise UserError(f"{card} is not of a data set made here: choose a folder of its own.")
    if not table.is_file():
        raise UserError(f"There is no table {table}: download it from open-compass/MMBench first.")
    texts = {name: Value("string") for name in TEXTS}
    features = Features({"index": Value("int64"), **texts, "image": Image()})
    rows = list(_rows(table))
    file = folder / config / f"{split}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(str(file))
    _list(folder)
    return file


def _rows(table: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    with table.open(encoding="utf-8-sig", newline="") as file:
        read = csv.DictReader(file, delimiter="\t")
        rows = [{str(name).lower(): value for name, value in row.items()} for row in read]
    missing = [name for name in NEEDED if name not in (rows or [{}])[0]]
    if missing:
        raise UserError(
            f"{table} lacks the columns {', '.join(missing)}: give one of MMBench's own tables."
        )
    images = {row["index"]: row["image"] for row in rows}
    for row in rows:
        values = {name: row.get(name.lower()) for name in TEXTS}
        yield {
            "index": int(row["index"]),
            **{name: value if present(value) else None for name, value in values.items()},
            "image": {"bytes": _image(row, images), "path": None},
        }


def _image(row: Mapping[str, str], images: Mapping[str, str]) -> bytes:
    held = row["image"]
    if len(held) <= _REFERENCE and held not in images:
        raise UserError(f"Row {row['index']} shows the image of row {held}, which is not there.")
    return base64.b64decode(images[held] if len(held) <= _REFERENCE else held)


def _list(folder: Path) -> None:
    """The README whose head tells `datasets` the configurations and splits of the folder."""
    lines = [HEAD]
    for config in sorted(path for path in folder.iterdir() if path.is_dir()):
        lines += [f"- config_name: {config.name}", "  data_files:"]
        for split in sorted(config.glob("*.parquet")):
            name = split.name.split("-")[0]
            lines += [f"  - split: {name}", f"    path: {config.name}/{name}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit("usage: python -m harness.scoring.mmbench_tsv TABLE.tsv FOLDER CONFIG SPLIT")
    try:
        print(convert(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
    except UserError as error:
        sys.exit(f"error: {error}")
