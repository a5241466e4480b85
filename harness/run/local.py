"""Answers rows in this process: the model runs here, a thread makes the next prompts meanwhile.

Must not know the store.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from harness.scoring.rows import Answered, Engine, Row, RowFailed, answered, ready, refuse

AHEAD = 2  # prompts that wait, images and all

T = TypeVar("T")
U = TypeVar("U")


class Local:
    """The workers of a run with one device."""

    def __init__(self, engine: Engine) -> None:
        """Take the loaded model."""
        self.engine = engine

    def run(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Answered]]:
        """Yields each row with its answers, in the order of the rows.

        Raises:
            UserError: a row cannot be answered; at the end also for rows that failed by themselves.
        """
        failed: list[str] = []
        for row, made in ahead(partial(ready, self.engine), rows, AHEAD):
            try:
                found = answered(self.engine, row, made)
            except RowFailed as error:
                failed.append(str(error))  # the error itself would keep the row's tensors
                continue
            yield row, found
        refuse(failed)


def ahead(make: Callable[[T], U], items: Iterable[T], count: int) -> Iterator[tuple[T, U]]:
    """Yields each item with what `make` makes of it, in their order.

    A thread makes up to `count` of them before they are asked for. What it raises is raised here
    when the turn of that item comes.
    """
    waiting: deque[tuple[T, Future[U]]] = deque()
    pool = ThreadPoolExecutor(1, "evictbench-prompts")
    try:
        for item in items:
            waiting.append((item, pool.submit(make, item)))
            if len(waiting) > count:
                first, made = waiting.popleft()
                yield first, made.result()
        for first, made in waiting:
            yield first, made.result()
    finally:
        pool.shutdown(cancel_futures=True)
