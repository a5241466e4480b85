"""Workers through Ray: a process a GPU, on this machine or on the machines of a cluster.

Must not know the store.
"""

import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.process import scratch
from harness.process.console import say
from harness.process.python import environment
from harness.run.actor import Actor, Load, Task
from harness.run.pool import IN_HAND, Computed, Pool
from harness.scoring.rows import Row
from harness.settings.config import Config
from harness.settings.workers import count_of, share_of

HERE = "local"  # as an address: Ray is started
SHORT = "/tmp"  # where Ray's sockets lie: their paths may have 107 bytes
CONNECT = 10.0  # seconds to reach a cluster


@contextmanager
def started(
    config: Config, folder: Path, context: Mapping[str, object], load: Load, computed: Computed
) -> Iterator[Pool]:
    """Start Ray or join a cluster, and the workers; everything is ended at the end.

    Raises:
        UserError: Ray is not installed or not there, or lacks the devices.
    """
    ray = imported()
    kind = str(context["device"])
    join(ray, config)
    try:
        count = count_of(config.workers, _devices(ray, kind), kind)
        share = share_of(_devices(ray, "cpu"), count)
        task = Task(config, folder, dict(context), share, load)
        say(f"{count} workers are loading {config.model.name} through Ray {ray.__version__}")
        yield Pool(Remote(ray, kind), task, count, computed)
    finally:
        ray.shutdown()


def imported() -> Any:
    """Ray; UserError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "workers= needs Ray, which is not installed: pip install 'evictbench[ray]', or leave "
            "workers out."
        ) from error
    return ray


def join(ray: Any, config: Config) -> None:
    """Connect to the cluster that is named, or start Ray on this machine."""
    os.environ.update(environment())  # workers import this package
    address = config.ray.address
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    silent = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address not in (None, HERE):
            _knock(address)
            ray.init(address=address, **silent)
        else:
            wanted = config.workers if isinstance(config.workers, int) else 1
            slots = max(os.cpu_count() or 1, wanted)
            place = {"include_dashboard": False, "_temp_dir": scratch.folder(SHORT)}
            ray.init(address=HERE, num_cpus=slots, **place, **silent)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        where = "on this machine" if address in (None, HERE) else f"at ray.address={address}"
        why = " ".join(str(error).split())[:300]
        raise UserError(f"Ray does not start {where}: {why}") from error
    finally:
        for number, handler in usual.items():  # Ray takes SIGTERM for itself
            signal.signal(number, handler)


def _knock(address: str) -> None:
    """OSError where nothing listens at host:port: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=CONNECT).close()


def _devices(ray: Any, kind: str) -> int:
    """GPUs of the cluster, or CPU slots."""
    return int(ray.cluster_resources().get("GPU" if kind == "cuda" else "CPU", 0))


class Remote:
    """Ray's actors, see `harness.run.pool.Launcher`."""

    watch = "`ray status` tells what is free"
    logs = "worker-N.log in the run folder and ray logs"

    def __init__(self, ray: Any, kind: str) -> None:
        """Take Ray, connected; every worker gets a device of this kind."""
        self.ray = ray
        resources = {"num_gpus": 1} if kind == "cuda" else {"num_cpus": 1}
        self._actor = ray.remote(Actor).options(max_concurrency=IN_HAND, **resources)
        known = ray.exceptions
        self.deaths = (known.RayActorError, known.OutOfMemoryError, known.NodeDiedError)

    def start(self, task: Task, number: int) -> Any:
        """An actor, which begins when Ray has a device for it."""
        return self._actor.remote(task, number)

    def begin(self, worker: Any) -> Any:
        """Ask it to load its model."""
        return worker.begin.remote()

    def answer(self, worker: Any, row: Row) -> Any:
        """Ask it to answer a row."""
        return worker.answer.remote(row)

    def ended(self, asked: Sequence[Any], seconds: float) -> list[Any]:
        """What has come back by then."""
        found: list[Any] = self.ray.wait(list(asked), num_returns=1, timeout=seconds)[0]
        return found

    def result(self, asked: Any) -> Any:
        """What came back, or one of `deaths`."""
        return self.ray.get(asked)
