"""Another Python that finds this package; must not know what it runs."""

import os
import site
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """The variables for a process that imports this package, and not what its folder calls so."""
    changed = {"PYTHONSAFEPATH": "1"}
    if str(HOME) not in site.getsitepackages():
        given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        changed["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(HOME), *filter(None, given)]))
    return {**os.environ, **changed}
