"""The program with the scripted engine in a fresh interpreter: driver FOLDER PAUSE arguments...

Nothing of the campaign is imported before the program, so that a signal in the first tenths of a
second finds it where it would be otherwise.
"""

import runpy
import sys


class _Late:
    """Replaces the engine once the module that loads it has been imported; finds nothing itself."""

    def __init__(self, folder: str, pause: float) -> None:
        self.folder, self.pause = folder, pause

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if not hasattr(sys.modules.get("harness.run.collect"), "load_engine"):
            return
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        from pathlib import Path

        from scripts.campaign import child, engine

        child.install(engine.Scripted(), Path(self.folder), self.pause)


if __name__ == "__main__":
    folder, pause = sys.argv[1:3]
    sys.argv[1:] = sys.argv[3:]
    sys.meta_path.insert(0, _Late(folder, float(pause)))  # type: ignore[arg-type]
    open(f"{folder}/begun", "w").close()
    runpy.run_module("harness", run_name="__main__", alter_sys=True)
