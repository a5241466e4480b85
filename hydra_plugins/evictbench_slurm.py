"""The launcher `hydra/launcher=slurm`, see `harness.run.slurm`.

It lies in this package, since Hydra takes plugins from nowhere else.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from harness.run import slurm
from harness.settings.slurm import options


class SlurmLauncher(Launcher):
    """Jobs as an array of Slurm's."""

    def __init__(self, **settings: Any) -> None:
        """Keep the settings of conf/hydra/launcher/slurm.yaml."""
        self.settings = settings

    def setup(self, **given: Any) -> None:
        """Refuse what could not be submitted; `given` is what any launcher is set up with."""
        self.options = options(self.settings)
        slurm.refuse_unsuited()
        self.given = given

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Submit the jobs and wait for them."""
        jobs = dict(enumerate(job_overrides, initial_job_idx))
        return slurm.launch(jobs, self.options, self.given)
