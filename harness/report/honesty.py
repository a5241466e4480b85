"""What the tables of a run can and cannot say, in sentences of plain text, not escaped.

Knows samples and their cells; must not know how the summary is laid out.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from harness import stats
from harness.models import precision
from harness.report import tables
from harness.report.tables import percent, plain

INERT = (
    "their spatial smoothing was the same pool for every token, so this run says nothing about its "
    "adaptive part"
)
UNIFORM = "uniform"  # the fallback of a pyramid without room for a slope
RULES = {
    "lmms_eval": "lmms-eval's permissive rule (extraction=lmms_eval)",
    "strict": "VLMEvalKit's exact matching (extraction=strict)",
}
LITTLE = 0.05  # a score with nothing to lose
ALL_TEXT = "all_text"  # the fallback of a policy that keeps all text, though it exceeds the budget


def sentences(samples: pd.DataFrame, cells: pd.DataFrame, meta: Mapping[str, Any]) -> Iterator[str]:
    """What the table can and cannot say; the first sentence carries the weight."""
    rows = tables.compressed(cells)
    total, empty = len(rows), int(rows["vacuous"].sum())
    failed = tables.count_failed(rows)
    model, task, protocol = (plain(cells.iloc[0][name]) for name in stats.GROUP)
    if total == 0:
        yield "This table holds no compressed cell, so it cannot say anything about eviction."
    elif failed == total:
        yield (
            f"This table cannot answer the question: each of the {total} compressed cells has rows "
            "that failed."
        )
    elif empty == total:
        yield (
            f"This table cannot answer the question: all {total} compressed cells are vacuous, "
            f"because under protocol {protocol} no scored token came from a compacted cache; they "
            "repeat the full cache by construction and are no result of any method."
        )
    elif empty:
        yield (
            f"This table answers only in part: {empty} of {total} compressed cells are vacuous "
            f"(marked {tables.VACUOUS}; no scored token came from a compacted cache), are no "
            "result of their method, and only the others can be compared."
        )
    else:
        yield (
            f"This table can say how {total - failed} compressed cells of {model} fare on "
            f"{cells['n_questions'].max():,} questions of {task} under protocol {protocol}, for in "
            "every cell scored tokens came from the compacted cache; it cannot say how other "
            "models, other tasks or other prompt lengths fare."
        )
    yield from _failed(cells, meta)
    yield from _readings(samples)
    if "caveat" in meta:
        yield plain(meta["caveat"], 600)
    yield from (plain(sentence, 600) for sentence in meta.get("told", ()))
    yield from _doubts(samples, cells)


def _doubts(samples: pd.DataFrame, cells: pd.DataFrame) -> Iterator[str]:
    """Findings in the numbers themselves that weaken a comparison."""
    by_label = tables.references(cells).set_index("label")
    full, blank = (by_label.reindex([name]).iloc[0] for name in tables.REFERENCES.values())
    if full["accuracy"] < LITTLE:
        yield (
            f"With the full cache the model scores {percent(full['accuracy'])} %: there is next to "
            "nothing for eviction to lose, and this table cannot tell methods apart."
        )
    if full.isna().all():
        yield "The full cache was not run, so losses cannot be read off."
    elif not samples["image_tokens"].any():
        pass  # a text task has no blank image to compare with
    elif not stats.roles(samples).eq("blank").any():
        yield "The blank image was not run, so it is unknown how much the answers need the image."
    elif full["accuracy_low"] <= blank["accuracy_high"]:
        yield (
            f"With the full cache the model scores {percent(full['accuracy'])} %, with a blank "
            f"image {percent(blank['accuracy'])} %, and the intervals overlap: it does not "
            "demonstrably use the image, and eviction of image tokens cannot show."
        )
    if cells["n_rows"].nunique() > 1:
        yield (
            f"Cells hold between {cells['n_rows'].min():,} and {cells['n_rows'].max():,} rows: the "
            "run is incomplete, and cells are not on equal ground."
        )
    yield from whole(cells)
    rows = tables.compressed(cells)
    yield from _truncated(samples)
    yield from _short_answers(samples, rows)
    yield from _fallbacks(samples, rows)
    real = set(rows.loc[~rows["vacuous"].astype(bool), "cell_key"])
    share = float((samples.loc[samples["cell_key"].isin(real), "exposed_tokens"] == 0).mean())
    if share > 0:
        yield (
            f"In cells that are not vacuous {percent(share)} % of the rows still had no scored "
            "token from the compacted cache."
        )


def whole(cells: pd.DataFrame) -> Iterator[str]:
    """What a ratio is of the cache where some layers stay whole; nothing where none do."""
    rows = tables.whole_layers(cells)
    if rows.empty:
        return
    kept = rows.assign(setting=tables.settings(rows))
    shares = kept.groupby("setting", sort=False)["bytes"].mean()
    said = [f"{percent(share)} % at {setting}" for setting, share in shares.items()]
    yield (
        "Some layers of the model have a window or a state of their own and stay whole. A ratio is "
        f"of the other layers; of all bytes of the cache a cell keeps {tables.listed(said)}."
    )


def _failed(cells: pd.DataFrame, meta: Mapping[str, Any]) -> Iterator[str]:
    """Cells without a score because their numbers were none."""
    failed = tables.failures(cells)
    if failed:
        dtype = str(meta.get("settings", {}).get("dtype", ""))
        where = f" in {dtype}" if dtype else ""
        yield (
            f"In some rows of these cells the logits, or the scores that chose what is kept, were "
            f"not finite (NaN or infinite){where}, so they have no score and are compared with "
            f"nothing: {failed}; {precision.rerun(dtype)}."
        )


def _readings(samples: pd.DataFrame) -> Iterator[str]:
    """What the score leaves open: secret answers, and another published reading of them."""
    if "score" not in samples:
        return
    samples = samples[~stats.failed(samples)]
    if samples["score"].isna().any():
        yield (
            "The right answers of this split are secret, so no accuracy is claimed: the files for "
            "its server are in the folder submissions."
        )
    if "score_other" not in samples or samples["score_other"].isna().all():
        return
    differ = samples["score"] != samples["score_other"]
    full = samples[stats.roles(samples).eq("full")]
    whole = percent(full["score_other"].mean())
    ours, other = (RULES[name] for name in _rules(samples))
    yield (
        f"Answers are read by {ours}; read by {other}, {percent(differ.mean())} % of them score "
        f"otherwise, and the full cache {whole} %."
    )


def _rules(samples: pd.DataFrame) -> list[str]:
    """The extraction in use and the other one."""
    chosen = str(samples["extraction"].iloc[0])
    return [chosen, *(name for name in RULES if name != chosen)]


def _truncated(samples: pd.DataFrame) -> Iterator[str]:
    """Prompts that did not fit the model and lost their middle, for all cells alike."""
    if "truncated_tokens" not in samples:
        return
    lost = samples.drop_duplicates("row")["truncated_tokens"]
    if lost.any():
        yield (
            f"{percent((lost > 0).mean())} % of the prompts were longer than the model's context "
            f"allows and lost tokens in the middle of their text, {lost[lost > 0].mean():,.0f} on "
            "average, before any method saw them."
        )


def _short_answers(samples: pd.DataFrame, rows: pd.DataFrame) -> Iterator[str]:
    """Methods whose answers end before what they evict while generating could matter."""
    longest = samples.groupby("cell_key")["exposed_tokens"].max()
    longest = rows["cell_key"].map(longest).groupby(rows["label"], sort=False).max()
    short = longest.index[longest == 1]
    if short.empty:
        return
    whose = "" if len(short) == len(longest) else f" of {', '.join(map(plain, short))}"
    yield (
        f"No answer{whose} has more than one scored token from a compacted cache, so this run "
        "cannot show what holding a budget while generating costs: nothing that is scored reads "
        "what those evictions leave."
    )


def _fallbacks(samples: pd.DataFrame, rows: pd.DataFrame) -> Iterator[str]:
    """Cells whose figures are, in part, not those of the method or the setting they stand under."""
    full: dict[str, list[str]] = {}
    for _, cell in rows[rows["fallback_rate"] > 0].iterrows():
        used = samples.loc[samples["cell_key"] == cell["cell_key"], "fallback"].dropna().iloc[0]
        name, place = plain(cell["method"]), tables.setting(cell)
        share = percent(cell["fallback_rate"])
        if used == UNIFORM:
            yield (
                f"The pyramid of {name} at {place} was uniform in {share} % of the rows: its first "
                "layers have no more to give, or each layer has but one token to choose."
            )
            continue
        if used == ALL_TEXT:
            kept = percent(cell["kept_fraction"])
            full.setdefault(name, []).append(f"{place} ({kept} % kept, {share} % of the rows)")
            continue
        yield (
            f"The pattern of {name} at {place} did not fit so few tokens in {share} % of the "
            f"rows; {plain(used)}'s was used."
        )
    if full:
        yield (
            "Where the text and the protected window exceed the budget, they are kept whole, every "
            "other image token is evicted whatever its score, and more is kept than was asked for: "
            f"{'; '.join(f'{name} at ' + ', '.join(places) for name, places in full.items())}."
        )


def window(cells: pd.DataFrame) -> str:
    """How often the adaptive window of ReST-KV was at work."""
    active = tables.compressed(cells).groupby("label", sort=False)["adaptive_active"].mean()
    active = active.dropna()
    if active.empty:
        return "No method here has an adaptive window."
    names = ", ".join(f"{plain(name)} {percent(share)} %" for name, share in active.items())
    text = f"The adaptive window differed from the fixed pool in this share of heads: {names}."
    never = ", ".join(plain(name) for name in active.index[active == 0])
    return f"{text} It never did for {never}: {INERT}." if never else text
