"""Hydra's own sweeper with a launcher that is watched, see `harness.run.watch`.

It lies in this package, since Hydra takes plugins from nowhere else.
"""

from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore

from harness.errors import UserError
from harness.run.watch import Watched


@dataclass
class EvictbenchSweeperConf(BasicSweeperConf):
    """What the basic sweeper takes."""

    _target_: str = "hydra_plugins.evictbench_sweeper.EvictbenchSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="evictbench", node=EvictbenchSweeperConf)


class EvictbenchSweeper(BasicSweeper):
    """Every combination of the values given, each a job; a failed one does not end the others."""

    def setup(self, **given: Any) -> None:
        """Put a watch on the launcher that is chosen."""
        most = self.max_batch_size
        if most is not None and (not isinstance(most, int) or most < 1):
            raise UserError(f"hydra.sweeper.max_batch_size={most} runs no job: use at least 1.")
        super().setup(**given)
        self.launcher = Watched(self.launcher, self, **given)
