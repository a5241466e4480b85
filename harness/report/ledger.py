"""The claims ledger: what the paper says, what here tests it, what was measured, and the verdict.

Claims are in claims.yaml. Reads tables of runs and rows of the end-to-end benchmark; what nothing
measured is untested, and so is what only a twin in a smaller world measured. Must not run anything.
"""

import json
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from harness import stats
from harness.report import tables
from harness.report.tables import points

CLAIMS = Path(__file__).with_name("claims.yaml")
SOURCE = "arXiv 2605.08840"
PUBLISHED, BENCH = Path("results"), Path("results/claims")
COLUMNS = ["claim", "published", "source", "command", "measured", "on", "verdict"]
UNTESTED = "untested"
METHOD = "restkv"


class Finding(NamedTuple):
    """What was measured, on what, and what that says of a claim."""

    measured: str = "nothing"
    on: str = "-"
    verdict: str = UNTESTED


Rule = Callable[[Mapping[str, Any], pd.DataFrame], Finding]


def rows(
    cells: pd.DataFrame, means: pd.DataFrame, published: Path = PUBLISHED, bench: Path = BENCH
) -> pd.DataFrame:
    """The ledger, a row a claim; columns `COLUMNS`.

    Args:
        cells: `stats.summarise` of this run. means: `stats.means` of it.
        published: folder of the folders of published tables, which count as well.
        bench: folder of the rows that scripts/bench_claims.py writes.
    """
    cells = _with(cells, published, "cells")
    means = _with(means, published, "means")
    timed = _bench(bench)
    found = []
    for claim in _claims():
        finding = _find(claim["evidence"], cells, means, timed)
        found.append({**claim, "source": SOURCE, **finding._asdict()})
    return pd.DataFrame(found, columns=COLUMNS)


@lru_cache(maxsize=1)
def _claims() -> list[dict[str, Any]]:
    return yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))


def _with(own: pd.DataFrame, published: Path, name: str) -> pd.DataFrame:
    """This run's table and the published ones; this run's rows stand for what both have."""
    keys = ["model", "task", "protocol"]
    paths = sorted(published.glob(f"*/{name}.parquet"))
    parts = [own, *(_table(path, path.stat().st_mtime_ns) for path in paths)]
    parts = [part for part in parts if len(part)]
    if not parts:
        return own
    every = pd.concat(parts, ignore_index=True)
    source = [place for place, part in enumerate(parts) for _ in range(len(part))]
    first = every.assign(_source=source).groupby(keys)["_source"].transform("min")
    return every[first == source]


@lru_cache(maxsize=64)
def _table(path: Path, written: int) -> pd.DataFrame:
    """A published table; read once, unless it is written anew."""
    return pd.read_parquet(path)


def _bench(folder: Path) -> pd.DataFrame:
    lines = [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return pd.DataFrame(lines)


def _find(
    evidence: Mapping[str, Any], cells: pd.DataFrame, means: pd.DataFrame, timed: pd.DataFrame
) -> Finding:
    rule = evidence["rule"]
    if rule == "tasks_won":
        return _either(evidence, cells, _tasks_won)
    if rule == "gain":
        return _either(evidence, means, _gain)
    if rule == "models_won":
        return _either(evidence, means, _models_won)
    if rule == "bench":
        return _benched(evidence, timed)
    if rule == "growth":
        return _growth(evidence, timed)
    return Finding()


def _either(evidence: Mapping[str, Any], frame: pd.DataFrame, rule: Rule) -> Finding:
    """The group that the claim is about, by its protocol, budgets and models; else what there is of
    it or of its twin, which decides nothing.
    """
    if "group" not in frame:
        return Finding()
    for name in (evidence["group"], evidence["twin"]):
        about = frame["group"].eq(name).fillna(False).astype(bool)
        if not about.any():
            continue
        every = tables.compressed(stats.chosen(frame, about))
        meant = every["protocol"].eq(evidence["protocol"])
        meant &= every["budget"].isin(evidence["budgets"]).fillna(False).astype(bool)
        meant &= every["model"].isin(evidence.get("models", every["model"]))
        for rows, decides in ((every[meant], name == evidence["group"]), (every, False)):
            finding = rule(evidence, rows) if METHOD in set(rows["method"]) else Finding()
            if finding.verdict != UNTESTED:
                return finding if decides else _undecided(finding, evidence, name)
    return Finding()


def _undecided(finding: Finding, evidence: Mapping[str, Any], group: str) -> Finding:
    own = "protocol, budgets and models" if "models" in evidence else "protocol and budgets"
    where = "on a small twin only" if group == evidence["twin"] else f"not at the claim's {own}"
    return Finding(f"{where}: {finding.measured}", finding.on, UNTESTED)


def _tasks_won(evidence: Mapping[str, Any], rows: pd.DataFrame) -> Finding:
    """In how many tasks the method is best, at each setting; all rivals must be there."""
    rows = rows[rows["method"].isin([METHOD, *evidence["rivals"]])]
    rows = rows.assign(setting=tables.settings(rows))
    wide = rows.pivot_table(
        index=["setting", "model", "task", "protocol"], columns="method", values="accuracy"
    )
    if not {METHOD, *evidence["rivals"]} <= set(wide.columns) or wide.dropna().empty:
        return Finding()
    wide = wide.dropna()
    rivals = wide.drop(columns=METHOD)
    won = (wide[METHOD] > rivals.max(axis=1)).groupby("setting", sort=False)
    level = (wide[METHOD] == rivals.max(axis=1)).groupby("setting", sort=False).sum()
    parts = [
        f"{place}: {int(one.sum())} of {len(one)} ({int(level[place])} level)" for place, one in won
    ]
    most = won.mean() > 0.5
    verdict = "supported" if most.all() else ("in part" if most.any() else "not supported")
    return Finding(f"best alone in, at {'; '.join(parts)} tasks", _where(rows), verdict)


def _models_won(evidence: Mapping[str, Any], rows: pd.DataFrame) -> Finding:
    """On how many models the method's mean is above every rival's, at each setting.

    Models that were not measured leave the claim supported in part at most.
    """
    rows = rows[rows["method"].isin([METHOD, *evidence["rivals"]])]
    rows = rows.assign(setting=tables.settings(rows))
    index = ["setting", "protocol", "model"]
    wide = rows.pivot_table(index=index, columns="method", values="accuracy", sort=False)
    if not {METHOD, *evidence["rivals"]} <= set(wide.columns) or wide.dropna().empty:
        return Finding()
    wide = wide.dropna()
    won = wide[METHOD] > wide.drop(columns=METHOD).max(axis=1)
    said = [
        f"{setting}: {int(one.sum())} of {len(one)}"
        for setting, one in won.groupby("setting", sort=False)
    ]
    measured = set(wide.index.get_level_values("model"))
    every = bool(won.all()) and measured >= set(evidence["models"])
    verdict = "supported" if every else ("in part" if won.any() else "not supported")
    return Finding(f"best mean on, at {'; '.join(said)} models", _where(rows), verdict)


def _gain(evidence: Mapping[str, Any], rows: pd.DataFrame) -> Finding:
    """The mean's distance to the rival, at each setting; the smallest one decides."""
    rows = rows.assign(setting=tables.settings(rows))
    wide = rows.pivot_table(
        index=["model", "protocol", "setting"], columns="method", values="accuracy", sort=False
    )
    if not {METHOD, evidence["rival"]} <= set(wide.columns):
        return Finding()
    gains = (wide[METHOD] - wide[evidence["rival"]]).dropna()
    if gains.empty:
        return Finding()
    text = ", ".join(f"{points(value)} at {place[-1]}" for place, value in gains.items())
    verdict = _reached(100 * gains.min(), evidence["points"])
    return Finding(f"points to {evidence['rival']}: {text}", _where(rows), verdict)


def _reached(value: float, claimed: float) -> str:
    """Supported from nine tenths of what is claimed on, in part above nothing."""
    if value >= 0.9 * claimed:
        return "supported"
    return "in part" if value > 0 else "not supported"


def _where(rows: pd.DataFrame) -> str:
    models = ", ".join(map(tables.short, rows["model"].unique()))
    return f"{models}, protocol {', '.join(rows['protocol'].unique())}"


def _benched(evidence: Mapping[str, Any], timed: pd.DataFrame) -> Finding:
    """A figure of the method beside the full cache's, or a rival's, at the longest prompt of the
    claim's model and budget, else of whatever was measured.
    """
    figure, rival = evidence["figure"], evidence.get("rival", "full")
    method = evidence.get("method", METHOD)
    if timed.empty or figure not in timed:
        return Finding()
    keys = ["device", "model", "length", "budget"]
    wide = timed.pivot_table(index=keys, columns="method", values=figure, aggfunc="last")
    if not {method, rival} <= set(wide.columns):
        return Finding()
    both = wide[[method, rival]].dropna().reset_index()
    if both.empty:
        return Finding()
    both["meant"] = both["model"].str.startswith(evidence["model"]) & both["budget"].eq(
        evidence["budget"]
    )
    last = both.sort_values(["meant", "length"], kind="stable").iloc[-1]
    ratio = last[method] / last[rival]
    faster = (1 / ratio, f"{1 / ratio:.2f} times as fast as {rival}")
    value, said = {
        "peak_bytes": (1 - ratio, f"peak memory {100 * (ratio - 1):+.1f} %"),
        "decode_ms": faster,
        "ttft_ms": (ratio - 1, f"first token {100 * (ratio - 1):+.1f} % against {rival}"),
    }[figure]
    if figure == "ttft_ms" and "least" in evidence:
        value, said = faster[0], f"first token {faster[1]}"
    measured = f"{said} at {int(last['length']):,} tokens"
    on = f"{last['model']}, {last['device']}"
    cpu = str(last["device"]).startswith("cpu")
    if cpu or last["length"] < evidence["length"] or not last["meant"]:
        return Finding(f"{measured}; not the claim's model, length or kind of device", on, UNTESTED)
    if "most" in evidence:
        return Finding(measured, on, "supported" if value <= evidence["most"] else "not supported")
    return Finding(measured, on, _reached(value, evidence["least"]))


def _growth(evidence: Mapping[str, Any], timed: pd.DataFrame) -> Finding:
    """How the scoring's operations grow with the prompt: the exponent between two lengths."""
    if timed.empty or evidence["figure"] not in timed:
        return Finding()
    powers = {
        method: power
        for method in (METHOD, evidence["rival"])
        if (power := _exponent(timed[timed["method"] == method], evidence["figure"])) is not None
    }
    if METHOD not in powers:
        return Finding()
    lengths = timed.loc[timed["method"] == METHOD, "length"]
    text = ", ".join(f"length^{power:.2f} for {name}" for name, power in powers.items())
    measured = f"counted operations grow with {text}"
    on = f"{lengths.min():,} to {lengths.max():,} tokens, {', '.join(timed['model'].unique())}"
    return Finding(measured, on, "supported" if powers[METHOD] < 1.1 else "not supported")


def _exponent(rows: pd.DataFrame, figure: str) -> float | None:
    """Of the largest span of lengths of one model."""
    found = rows.dropna(subset=[figure]).sort_values("length")
    found = found[found["model"] == found["model"].iloc[-1]] if len(found) else found
    if found["length"].nunique() < 2:
        return None
    first, last = found.iloc[0], found.iloc[-1]
    return math.log(last[figure] / first[figure]) / math.log(last["length"] / first["length"])
