"""LongBench-E's length buckets; must not know prompts or metrics."""

from typing import Any


def bucket(length: int) -> str:
    """The bucket in which the release reports a row of `length` words (or Chinese characters)."""
    if length < 4000:
        return "0-4k"
    return "4-8k" if length < 8000 else "8k+"


def with_length_buckets(rows: Any) -> Any:
    """A split with the column `length_bucket` added, as lmms-eval's process_docs."""
    return rows.add_column("length_bucket", [bucket(length) for length in rows["length"]])
