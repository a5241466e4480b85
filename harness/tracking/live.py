"""A run in wandb that is seen while a sweep goes on.

Must not know tasks, cells or where scores come from.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from harness.tracking import keys, session

PAUSE = 10.0  # seconds between two points

Log = Callable[[int, Mapping[str, float]], None]


@contextmanager
def live(
    folder: Path, mode: str, total: int, *, project: str, group: str, pause: float = PAUSE
) -> Iterator[Log]:
    """Open a run "<group> live" of the job type "live" until the block ends.

    Its points hold `rows`, `rows_left`, `rows_per_minute` and `so_far/<name>` for each score.

    Args:
        folder: where wandb writes.
        mode: "offline" or "online".
        total: rows that are to come.
        project: wandb project.
        group: the sweep's name.
        pause: seconds from one point to the next.

    Yields:
        What takes the rows done in this session, and the scores so far by name.

    Raises:
        UserError: wandb refuses the project or cannot go online.
    """
    with session.environment(folder.resolve(), offline=mode == "offline"):
        if mode == "online":
            session.reach("wandb.mode=online")
        with session.run(
            folder,
            session.MODES[mode],
            name=f"{group[: session.NAME - 5]} live",
            tags=["live"],
            project=project,
            group=group[: session.NAME],
            job_type="live",
        ) as run:
            began = time.monotonic()
            last = float("-inf")

            def log(rows: int, scores: Mapping[str, float]) -> None:
                nonlocal last
                now = time.monotonic()
                if now - last < pause and rows < total:
                    return
                last = now
                point = {
                    "rows": rows,
                    "rows_left": total - rows,
                    "rows_per_minute": 60 * rows / max(now - began, 1e-9),
                }
                named = keys.names(scores)
                run.log(point | {f"so_far/{named[name]}": scores[name] for name in scores})

            yield log
