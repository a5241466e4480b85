"""The stand-in model and benchmarks that run with no network: made here, trained here."""

from pathlib import Path

HOME = Path(__file__).resolve().parent
TINY_VLM = HOME / "tiny_vlm"
TINY_VLM_LONG = HOME / "tiny_vlm_long"
TINY_LISTS = HOME / "tiny_lists"
MMBENCH_MINI = HOME / "mmbench_mini"
MMBENCH_MINI_LONG = HOME / "mmbench_mini_long"
SCENES_MINI = HOME / "scenes_mini"
SMOL_VLM = HOME / "smol_vlm"  # an adapter, see harness/models/parts.py
