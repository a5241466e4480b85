"""Every test and every process that a test starts: one CPU thread, no wandb server.

Without a GPU the kernels run in Triton's interpreter, which has to be said before they are defined.
"""

import gc
import glob
import os

# Before torch is imported. Tiny tensors on several threads mostly wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not glob.glob("/dev/nvidia[0-9]*"):
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_finish() -> None:
    """Spare the collector what the imports left: it would walk a million objects at every round."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # nanobind calls what is frozen at the end a leak
