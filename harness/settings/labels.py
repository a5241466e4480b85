"""The labels of conf/method by name, such as restkv_nospatial: a method and its parameters.

For entries that Hydra does not compose. Must not know Hydra or the methods.
"""

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "method"
HERE = "@_here_"


def resolve(label: str, folder: Path = FOLDER) -> tuple[str, dict[str, Any]]:
    """The method of a label and the parameters that it sets.

    A name without a file stands for itself: it is left to the registry of methods. What refers to
    a setting of a run, as a seed does, is left at the method's default.
    """
    if not label.replace("_", "").isalnum() or not (folder / f"{label}.yaml").is_file():
        return label, {}
    given = yaml.safe_load((folder / f"{label}.yaml").read_text(encoding="utf-8"))
    method, found = label, dict[str, Any]()
    for base in given.pop("defaults", []):
        if base.endswith(HERE):
            method, found = resolve(base.removesuffix(HERE), folder)
    found |= {name: value for name, value in given.items() if not str(value).startswith("${")}
    return str(found.pop("method", method)), found
