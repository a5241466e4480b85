"""Rows of figures: where they are kept, how they are printed and drawn.

One JSON object a line, one line for each operation, model, length and dtype on a device.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_KEY = ("operation", "model", "length", "dtype")
_VERSIONS = ("commit", "torch", "triton", "driver")
_FOLDER = Path("results/kernels")


def path_of(device: str, suffix: str = ".jsonl") -> Path:
    """results/kernels/<device>.jsonl."""
    slug = "-".join("".join(c if c.isalnum() else " " for c in device.lower()).split())
    return _FOLDER / f"{slug}{suffix}"


class Store:
    """Rows of one device in a file. A row replaces that of the same operation and shape."""

    def __init__(self, path: Path) -> None:
        """Read what is there."""
        self.path = path
        self.rows: dict[tuple[Any, ...], Row] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.rows[self._key(row)] = row

    def put(self, row: Row) -> None:
        """Add or replace a row and write the file, which is whole at any moment."""
        self.rows[self._key(row)] = {name: _rounded(value) for name, value in row.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_suffix(".part")
        scratch.write_text("".join(json.dumps(each) + "\n" for each in self.rows.values()))
        os.replace(scratch, self.path)

    def has(self, row: Row) -> bool:
        """Whether the same figure stands there, right and by the same committed code."""
        held = self.rows.get(self._key(row))
        if held is None or held["verdict"] != "ok" or row["commit"].endswith("+"):
            return False
        return all(held[name] == row[name] for name in _VERSIONS)

    @staticmethod
    def _key(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in _KEY)


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Columns as wide as they need; the first two on the left, numbers on the right."""
    every = [list(header), *map(list, lines)]
    widths = [max(len(line[i]) for line in every) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in every
    )


def figures(rows: Iterable[Row], baselines: Sequence[str]) -> str:
    """Measured rows as a table: time, what it is of the ceilings, memory, and the baselines."""
    header = ["operation", "model", "L", "ms", "p20", "p80", "GB", "GFLOP", "memory", "matrix"]
    header += ["roofline", "temp MB"]
    for name in baselines:
        header += [f"{name} ms", f"x {name}"]
    lines = []
    for row in rows:
        line = [row["operation"], row["model"], str(row["length"])]
        line += [_number(row.get(name)) for name in ("ms", "ms_p20", "ms_p80")]
        line += [_number(row["bytes"], 1e9), _number(row["flops"], 1e9)]
        line += [_percent(row.get(f"{name}_roofline")) for name in ("memory", "matrix")]
        line += [_percent(row.get("roofline")), _number(row.get("temporary_bytes"), 1e6)]
        for name in baselines:
            ratio = row.get(f"speedup_{name}", row.get(f"ratio_{name}"))
            shown = row["verdict"] if row["verdict"] != "ok" else _number(ratio)
            line += [_number(row.get(f"{name}_ms")), shown]
        lines.append(line)
    return table(header, lines)


def counts(rows: Iterable[Row]) -> str:
    """Counted costs of the kernels beside those of the counted baseline."""
    header = ["operation", "model", "L", "launches", "GB", "GFLOP", "temp MB"]
    header += ["eager GB", "eager GFLOP", "eager temp MB", "bytes x", "temp x"]
    lines = []
    for row in rows:
        line = [row["operation"], row["model"], str(row["length"])]
        line.append(str(row["launches"] or "-"))
        units = (("bytes", 1e9), ("flops", 1e9), ("temporary_counted", 1e6))
        line += [_number(row[name], unit) for name, unit in units]
        line += [_number(row.get(f"eager_{name}"), unit) for name, unit in units]
        for name in ("bytes", "temporary_counted"):
            eager = row.get(f"eager_{name}")
            line.append(_number(eager / row[name]) if eager and row[name] else "-")
        lines.append(line)
    return table(header, lines)


def _number(value: float | None, unit: float = 1.0) -> str:
    """Three significant digits."""
    if value is None:
        return "-"
    shown = value / unit
    return f"{shown:.0f}" if shown >= 100 else f"{shown:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Time and roofline fraction against length, a line an operation, a row of axes a model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    timed = [row for row in rows if row["verdict"] == "ok"]
    models = sorted({row["model"] for row in timed})
    sides: tuple[tuple[str, Callable[[Row], float]], ...] = (
        ("time, ms", lambda row: row["ms"]),
        ("part of the roofline", lambda row: row["roofline"]),
    )
    figure, axes = pyplot.subplots(
        len(models), 2, figsize=(13, 4.5 * len(models)), squeeze=False, layout="constrained"
    )
    for line, model in enumerate(models):
        own = [row for row in timed if row["model"] == model]
        for axis, (label, value) in zip(axes[line], sides, strict=True):
            for number, name in enumerate(sorted({row["operation"] for row in own})):
                points = sorted(
                    (row["length"], value(row)) for row in own if row["operation"] == name
                )
                style = ("-", "--", ":")[number // 10 % 3]
                axis.plot(*zip(*points, strict=True), style, marker=".", label=name)
            axis.set(xscale="log", xlabel="prompt length, tokens", ylabel=label, title=model)
            lengths = sorted({row["length"] for row in own})
            axis.set_xticks(lengths, [f"{length:,}" for length in lengths], minor=False)
            axis.minorticks_off()
        axes[line][0].set_yscale("log")
        axes[line][1].set_ylim(0, 1.05)
        axes[line][1].legend(fontsize="small", bbox_to_anchor=(1, 1))
    dtypes = ", ".join(sorted({row["dtype"] for row in timed}))
    figure.suptitle(f"{timed[0]['device']}, {dtypes}, torch {timed[0]['torch']}")
    figure.savefig(path, dpi=120)
