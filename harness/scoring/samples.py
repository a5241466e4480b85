"""The samples table: one row a cell and question row, scored from the stored text.

Knows the store, the cells and the benchmark; must not know models or how tables are shown.
"""

import json
from collections.abc import Mapping, Sequence
from math import nan

import pandas as pd

from harness.records.schema import FETCH_FIELDS
from harness.records.store import Store
from harness.scoring.benchmark import Benchmark
from harness.scoring.judgement import Judgement
from harness.settings.grid import Cell, full_cells

COLUMNS = (
    "model", "task", "group", "protocol", "prefill", "method", "ratio", "budget", "control",
    "cell_key", "row", "index", "question_id", "category", "l2_category", "question", "options",
    "answer",
    "text", "parsed", "unparsed", "parsed_other", "unparsed_other", "metric", "extraction", "score",
    "score_other", "correct", "failed",
    "exposed_tokens", "prompt_tokens", "truncated_tokens", "nonfinite_tokens", "image_tokens",
    "evictable_tokens", "kept_tokens", "kept_image", "kept_text", "cache_bytes", "full_cache_bytes",
    "window_effective", "adaptive_active", "fallback", "letter_logits",
    "prefill_s", "score_s", "compact_s", "decode_s", "search_s", "computed_blocks",
    *FETCH_FIELDS, "origin",
)  # fmt: skip
FAILED = Judgement(None, nan)


def table(
    store: Store,
    benchmark: Benchmark,
    cells: Mapping[str, Cell],
    names: Mapping[str, str | None],
) -> pd.DataFrame:
    """Score every cell of a complete store.

    Args:
        store: holds an answer for each cell and each of the benchmark's rows.
        benchmark: reads and scores the answers.
        cells: by cell key, in the order of the table.
        names: the constant columns model, task and group.

    Returns:
        The columns `COLUMNS`, sorted by cell and row. protocol: with the label of a sparse prefill
        behind it, such as "replay+flexprefill"; prefill: that label alone. ratio is 0 for the
        full cache and its control and NaN where a budget was given; budget is null where a ratio
        was given. computed_blocks: of a sparse prefill, JSON: layer -> the share of the causal
        blocks that it computed; search_s: of its full cache, seconds of prefill_s in which they
        were chosen. host_bytes, fetched_bytes, passes: what the cell had on the host and what came
        from there, null where all is on the device. An
        answer of which the task tells no reading stands as it is under `parsed`. failed: some of
        its tokens were chosen by logits or scores that are no numbers, so its text means nothing
        and it has neither reading nor score.
    """
    asked = pd.DataFrame([vars(question) for question in benchmark.questions])
    asked = asked.drop(columns="letters").rename(columns={"text": "question"})
    asked["options"] = [json.dumps(q, ensure_ascii=False) if q else None for q in asked["options"]]
    asked.insert(0, "row", benchmark.rows)
    read = {cell.under: store.prefills(key) for key, cell in full_cells(cells).items()}
    parts = [
        _cell(store, benchmark, key, cell, asked, read[cell.under]) for key, cell in cells.items()
    ]
    frame = pd.concat(parts, ignore_index=True).assign(**names, metric=benchmark.metric)
    frame["extraction"] = benchmark.config.extraction
    return _typed(frame)[list(COLUMNS)]


def _cell(
    store: Store,
    benchmark: Benchmark,
    key: str,
    cell: Cell,
    asked: pd.DataFrame,
    prefills: Mapping[int, Mapping[str, object]],
) -> pd.DataFrame:
    answers, fetches = store.read(key), store.fetches(key)
    found = pd.DataFrame([answers[row] for row in benchmark.rows]).drop(
        columns=["token_ids", "traces"]
    )
    failed = found["nonfinite_tokens"] > 0
    judged = [
        FAILED if fails else one
        for one, fails in zip(benchmark.judge(list(found["text"])), failed, strict=True)
    ]
    ratio = cell.ratio if cell.evicts else 0.0
    read = [prefills.get(row, {}) if cell.control == "none" else {} for row in benchmark.rows]
    return pd.concat([asked, found], axis=1).assign(
        method=cell.label,
        ratio=float("nan") if ratio is None else ratio,
        budget=cell.budget,
        control=cell.control,
        protocol=cell.under,
        prefill=cell.prefill,
        cell_key=key,
        search_s=[None if cell.evicts else one.get("search_s") for one in read],
        computed_blocks=[one.get("computed") for one in read],
        **{
            name: [fetches.get(row, {}).get(name) for row in benchmark.rows]
            for name in FETCH_FIELDS
        },
        parsed=[_reading(j, text) for j, text in zip(judged, found["text"], strict=True)],
        unparsed=[judgement.unparsed for judgement in judged],
        score=[float(judgement.score) for judgement in judged],
        **_other(judged),
        correct=[judgement.correct for judgement in judged],
        failed=failed,
    )


def _other(judged: Sequence[Judgement]) -> dict[str, list[object]]:
    """The second reading of each answer; null where the task has none."""
    others = [judgement.other for judgement in judged]
    return {
        "parsed_other": [None if each is None else each.parsed for each in others],
        "unparsed_other": [None if each is None else each.unparsed for each in others],
        "score_other": [None if each is None else float(each.score) for each in others],
    }


def _reading(judgement: Judgement, text: str) -> str | None:
    if judgement is not FAILED and judgement.parsed is None and not judgement.unparsed:
        return text.strip()
    return judgement.parsed


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """One type a column, whatever the cells hold: nulls in one cell must not change it."""
    return frame.astype(
        {
            "budget": "Int64",
            "window_effective": "Int64",
            "adaptive_active": "Float64",
            "fallback": "string",
            "search_s": "Float64",
            "computed_blocks": "string",
            **dict.fromkeys(FETCH_FIELDS, "Int64"),
            "ratio": "float64",
            "parsed": "string",
            "group": "string",
            "parsed_other": "string",
            "unparsed_other": "boolean",
            "score_other": "Float64",
            "extraction": "string",
            "options": "string",
        }
    )
