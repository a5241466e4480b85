"""The embedded questions as tasks of lmms-eval's own command line, `--tasks mmbench_mini`.

Knows the files in conf/task, so that both ways of asking use one definition.
"""

from typing import Any, ClassVar

from lmms_eval.api.task import ConfigurableMessagesTask
from omegaconf import OmegaConf

from harness.scoring.loading import settings
from harness.settings.config import CONF, TaskConfig, register


class MMBenchMini(ConfigurableMessagesTask):
    """mmbench_en_dev_static on the embedded data."""

    name: ClassVar[str] = "mmbench_mini"

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        """Build the task; `config` is its YAML, which only names this class."""
        register()
        node = OmegaConf.load(CONF / "task" / f"{self.name}.yaml")
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TaskConfig), node))
        assert isinstance(typed, TaskConfig)
        super().__init__(config=settings(typed), model_name="evictbench")


class MMBenchMiniLong(MMBenchMini):
    """The same on pictures of 36 tiles; give the model `tile=128`."""

    name = "mmbench_mini_long"
