"""The table at the end of a check: each stage with its main figures, what failed, what to tune.

`python -m scripts.gpu_check.table FOLDER`. Needs nothing but what the stages wrote.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.gpu_check.output import Row, read

_LOW = 0.4  # of the roofline: below it there is something to gain
_HOST = 1.5  # times of the device's part: above it a step waits for the host
DECODE = ("ragged_attention", "append_entries", "move_entries", "decode_step")


class Found:
    """What a check wrote: rows by stage and figure, the benches' rows, the ends of stages."""

    def __init__(self, folder: Path) -> None:
        every = read(folder)
        self.ends = [row for row in every if "status" in row]
        self.rows = [row for row in every if "figure" in row]
        self.kernels, self.claims = (_lines(folder / f"{n}.jsonl") for n in ("kernels", "claims"))

    def of(self, stage: str) -> dict[str, Row]:
        """Rows of a stage by their figure."""
        return {row["figure"]: row for row in self.rows if row["stage"] == stage}

    def timed(self, decode: bool) -> list[Row]:
        """Rows of a bench that have times."""
        own = (row for row in self.kernels if row["operation"].startswith(DECODE) == decode)
        return [row for row in own if "ms" in row]


def _lines(path: Path) -> list[Row]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _versions(found: Found) -> str:
    rows = found.of("versions")
    own, device = rows.get("versions", {}), rows.get("device", {})
    said = [f"{name} {own.get(name)}" for name in ("torch", "triton", "transformers", "driver")]
    said += [f"{name} {row.get('chosen')}" for name, row in rows.items() if "sdpa" in name]
    return ", ".join([str(device.get("name")), *said])


def _operations(found: Found) -> str:
    rows = found.of("operations").values()
    return f"{sum(row['verdict'] == 'ok' for row in rows)} of {len(rows)} right"


def _answers(found: Found) -> str:
    rows = found.of("answers")
    same = [f"{name}: {row['same_answers']} of {row['cells']}" for name, row in rows.items()
            if "same_answers" in row]  # fmt: skip
    waits = [f"{name} {row['waits']:g}" for name, row in rows.items() if "waits" in row]
    return "; ".join(same + waits)


def _bench(decode: bool) -> Callable[[Found], str]:
    def said(found: Found) -> str:
        parts = [row["roofline"] for row in found.timed(decode) if "roofline" in row]
        if not parts:
            return "nothing was timed"
        return (f"{len(parts)} figures, {100 * statistics.median(parts):.0f} % of the roofline in "
                f"the median, {100 * min(parts):.0f} to {100 * max(parts):.0f} %")  # fmt: skip

    return said


def _sweep(found: Found) -> str:
    rows = found.of("sweep")
    said = []
    if "rows_per_s" in (row := rows.get("rows", {})):
        said.append(f"{row['rows_per_s']:g} rows/s of {row['cells']} cells")
        said.append(f"peak {row['peak_gb']} GB")
        said.append(", ".join(f"{name} {ms:.4g} ms" for name, ms in row["parts_ms"].items()))
    said += [f"{name} {row['ms']} ms, {row['device_ms']} of them on the device"
             for name, row in rows.items() if "device_ms" in row]  # fmt: skip
    return "; ".join(said)


def _claims(found: Found) -> str:
    said = [f"{row['method']} at {row['length']}: first token {row['ttft_ms']} ms, further "
            f"{row['decode_ms']} ms, peak {(row['peak_bytes'] or 0) / 1e9:.1f} GB"
            for row in found.claims if "ttft_ms" in row]  # fmt: skip
    return "; ".join(said)


FIGURES: dict[str, Callable[[Found], str]] = {
    "versions": _versions, "operations": _operations, "answers": _answers, "sweep": _sweep,
    "decode": _bench(True), "kernels": _bench(False), "claims_32k": _claims,
}  # fmt: skip


def failures(found: Found) -> list[str]:
    """What is wrong, a line each."""
    said = [f"{row['stage']}: {row['figure']}: {row.get('why') or 'failed'}"
            for row in found.rows if row["verdict"] == "failed"]  # fmt: skip
    for row in found.kernels:
        if row["verdict"] in ("failed", "wrong"):
            why = row.get("why") or f"off by {row['error']:.1e}"
            said.append(f"bench: {row['operation']} at {row['length']}: {why}")
    return said


def tuning(found: Found) -> list[str]:
    """Where there is something to gain, a line each, the furthest from its limit first."""
    timed = found.timed(True) + found.timed(False)
    low = sorted((row for row in timed if row.get("roofline", 1.0) < _LOW), key=_part)
    said = [f"{row['operation']} at {row['length']}: {row['ms']:.3g} ms, {100 * _part(row):.0f} % "
            f"of the roofline" for row in low]  # fmt: skip
    for row in timed:
        for name, value in row.items():
            if name.startswith("speedup_") and value is not None and value < 1:
                other = name.removeprefix("speedup_")
                said.append(f"{row['operation']} at {row['length']}: {value:.2f} x {other}'s speed")
    for name, row in found.of("sweep").items():
        if row.get("device_ms") and row["ms"] > _HOST * row["device_ms"]:
            said.append(f"{name}: waits for the host, {row['ms']} ms where the device works "
                        f"{row['device_ms']} ms ({row['kernels']:.0f} kernels)")  # fmt: skip
    for name, row in found.of("answers").items():
        if row.get("waits", 0) > 1:
            said.append(f"{name}: {row['waits']:g}, at {row['places']}")
    return said


def _part(row: Row) -> float:
    return row["roofline"]


def text(folder: Path) -> str:
    """All of it."""
    found = Found(folder)
    lines = [f"{'stage':12}{'status':13}{'s':>4}  main figures"]
    for end in found.ends:
        figures = FIGURES.get(end["stage"], lambda _: "")(found)
        lines.append(f"{end['stage']:12}{end['status']:13}{end['seconds']:4}  {figures}".rstrip())
    parts = ["\n".join(lines)]
    for title, said in (("failed", failures(found)), ("to tune", tuning(found))):
        if said:
            parts.append("\n".join([f"{title}:", *(f"  {line}" for line in said)]))
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    print(text(parser.parse_args(argv).folder))


if __name__ == "__main__":
    main()
