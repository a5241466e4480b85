"""The entry point through which lmms-eval finds this harness as the model `evictbench`.

Must stay light: lmms-eval imports it whenever it lists its models.
"""

from typing import Any


def manifest() -> Any:
    """The ModelManifest that lmms-eval's registry asks for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="evictbench", chat_class_path="harness.scoring.single.EvictBench")
