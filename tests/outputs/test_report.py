"""What a run leaves on disk and on the terminal."""

import os

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from harness import stats
from harness.report import honesty, plots, summary, tables

META = {
    "name": "demo", "command": "make sweep 'ratios=[0.5,0.9]'", "seed": 7,
    "versions": {"torch": "9.9.9"}, "caveat": "The model is a stand-in.",
}  # fmt: skip
HOSTILE = "a|b <script>alert(1)</script>\n![x](http://e.vil) `c` **d** [l](u) $x$ \x1b[31m"


def paragraph(text: str) -> str:
    """The first paragraph after the question."""
    return text.split("**Asked:**")[1].split("\n\n")[1]


def test_files_hold_the_tables(make_sweep, tmp_path, write_report):
    samples = make_sweep()
    paths = write_report(samples, tmp_path / "new" / "run", META)
    assert set(paths) == {
        "samples", "cells", "abilities", "comparisons", "ablation", "verdicts", "contrasts",
        "summary", "answer", "report", "curve",
    }  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "new" / "run").iterdir()) == [
        "abilities.parquet", "ablation.parquet", "answer.md", "cells.parquet",
        "comparisons.parquet", "contrasts.parquet", "curve.png", "report.html", "samples.parquet",
        "summary.md",
        "verdicts.parquet",
    ]  # fmt: skip
    pd.testing.assert_frame_equal(pd.read_parquet(paths["samples"]), samples, check_dtype=False)
    cells = pd.read_parquet(paths["cells"])
    pd.testing.assert_frame_equal(cells, stats.summarise(samples), check_dtype=False)
    assert cells["budget"].isna().all()
    assert len(pd.read_parquet(paths["abilities"])) == 8 * 3


@pytest.mark.usefixtures("whole_report")
def test_output_is_repeatable(make_sweep, tmp_path, write_report):
    for name in ("one", "two"):
        write_report(make_sweep(), tmp_path / name, META)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_summary_says_what_was_run(make_sweep, tmp_path, write_report):
    text = write_report(make_sweep(), tmp_path, META)["summary"].read_text()
    for part in (
        "Does ReST-KV's spatial-temporal smoothing keep mini accuracy",
        "![score against compression](curve.png)", "The model is a stand-in.",
        "| versions.torch | 9.9.9 |", "| command | make sweep 'ratios=\\[0.5,0.9\\]' |",
        "| full cache |", "| blank image |", "| ratio evicted | 0.5 | 0.9 |", "| ability | level |",
    ):  # fmt: skip
        assert part in text
    assert paragraph(text).startswith(
        "This table can say how 6 compressed cells of tiny fare on 12"
    )
    assert "vacuous" not in text


def test_vacuous_cells_are_never_a_result(make_sweep, tmp_path, write_report):
    empty = write_report(make_sweep(exposed_tokens=0), tmp_path, META)["summary"].read_text()
    assert paragraph(empty).startswith("This table cannot answer the question: all 6")
    assert "best " not in empty
    samples = make_sweep(questions=40)
    samples.loc[samples["method"].eq("restkv") & samples["ratio"].eq(0.9), "exposed_tokens"] = 0
    part = write_report(samples, tmp_path, META)["summary"].read_text()
    assert paragraph(part).startswith("This table answers only in part: 1 of 6")
    lines = [line for line in part.splitlines() if line.startswith("| restkv |")]
    assert [line.count("**v**") for line in lines if "[" in line].count(1) == 1
    assert "best restkv" not in part


@pytest.mark.parametrize(
    ("active", "inert"), [({"restkv": 0.0}, True), ({"restkv": 0.25}, False), ({}, False)]
)
def test_inert_window_is_named(make_sweep, active, inert):
    samples = make_sweep()
    for method, share in active.items():
        samples.loc[samples["method"] == method, "adaptive_active"] = share
    text = summary.text(
        samples, stats.summarise(samples), stats.abilities(samples), META, ["curve.png"]
    )
    assert (honesty.INERT in text) == inert
    assert ("restkv 25.0 %" in text) == (active == {"restkv": 0.25})


def test_only_the_labels_that_never_left_the_pool_are_called_inert(make_sweep):
    def sentence(**active: float) -> str:
        samples = make_sweep(methods=("restkv", "restkv_mean", "restkv_relative"))
        for method, share in active.items():
            samples.loc[samples["method"] == method, "adaptive_active"] = share
        cells = stats.summarise(samples)
        text = summary.text(samples, cells, stats.abilities(samples), META, ["curve.png"])
        return text.split("in this share of heads: ")[1].split("\n")[0]

    mixed = sentence(restkv=0.0, restkv_mean=0.0, restkv_relative=0.739)
    assert "restkv_relative 73.9 %" in mixed
    assert mixed.endswith(f"It never did for restkv, restkv_mean: {honesty.INERT}.")
    # a share that rounds to 0.0 % is not never
    assert honesty.INERT not in sentence(restkv=0.0001)
    # nothing is said of the published scale: the labels' parameters can be overridden
    assert "published" not in mixed


def test_a_fallback_is_named_with_its_share(make_sweep):
    samples = make_sweep(methods=("lacache", "snapkv"), ratios=(0.5, 0.9))
    cell = samples["method"].eq("lacache") & samples["ratio"].eq(0.9)
    samples.loc[samples.index[cell][: cell.sum() // 2], "fallback"] = "streaming_llm"
    cells = stats.summarise(samples)
    assert cells.loc[cells["fallback_rate"] > 0, ["method", "ratio"]].values.tolist() == [
        ["lacache", 0.9]
    ]
    text = summary.text(samples, cells, stats.abilities(samples), META, ["curve.png"])
    assert "lacache at 0.9 did not fit so few tokens in 50.0 % of the rows; streaming_llm's" in text
    assert "lacache at 0.5 did not fit" not in text


@pytest.mark.parametrize(("tokens", "said"), [(0, False), (1, True), (2, False)])
def test_one_token_answers_cannot_show_what_happens_while_generating(make_sweep, tokens, said):
    samples = make_sweep(methods=("h2o",), exposed_tokens=tokens)
    cells = stats.summarise(samples)
    text = summary.text(samples, cells, stats.abilities(samples), META, ["curve.png"])
    assert ("cannot show what holding a budget while generating costs" in text) == said


def test_methods_whose_answers_are_short_are_named(make_sweep):
    samples = make_sweep(methods=("h2o", "tova"), exposed_tokens=1)
    samples.loc[samples["method"].eq("tova"), "exposed_tokens"] = 3
    cells = stats.summarise(samples)
    text = summary.text(samples, cells, stats.abilities(samples), META, ["curve.png"])
    assert "No answer of h2o has more than one scored token" in text


def test_what_a_run_was_told_is_said_in_full_beside_the_caveat(make_sweep):
    samples = make_sweep(methods=("h2o",))
    cells = stats.summarise(samples)
    meta = {**META, "caveat": "c" * 590, "told": ["decode=grow does not apply to one.", "b" * 500]}
    text = summary.text(samples, cells, stats.abilities(samples), meta, ["curve.png"])
    assert "c" * 590 + " decode=grow does not apply to one. " + "b" * 500 in text
    assert "| told |" not in text


def test_a_pyramid_without_a_slope_is_named(make_sweep):
    samples = make_sweep(methods=("snapkv",), ratios=(0.3, 0.9))
    samples.loc[samples["ratio"].eq(0.3), "fallback"] = "uniform"
    cells = stats.summarise(samples)
    text = summary.text(samples, cells, stats.abilities(samples), META, ["curve.png"])
    assert "The pyramid of snapkv at 0.3 was uniform in 100.0 % of the rows" in text
    assert "snapkv at 0.9 was uniform" not in text
    assert "was used" not in text


def test_text_that_exceeds_the_budget_is_named_with_what_was_kept(make_sweep):
    samples = make_sweep(methods=("h2o", "snapkv"), ratios=(0.5, 0.9))
    cell = samples["method"].eq("snapkv") & samples["ratio"].eq(0.9)
    some = samples.index[cell][: cell.sum() // 4]
    # 11 of 101 were asked for; (3 * 11 + 51) / 4 are 20.8 %
    samples.loc[some, ["fallback", "kept_tokens"]] = ["all_text", 51.0]
    cells = stats.summarise(samples)
    text = summary.text(samples, cells, stats.abilities(samples), META, ["curve.png"])
    said = "more is kept than was asked for: "
    assert f"{said}snapkv at 0.9 (20.8 % kept, 25.0 % of the rows)." in text
    assert "At 0.9: h2o " in text  # snapkv keeps more and is not compared
    assert "was used" not in text  # no other method's pattern stood in


def test_shared_times_are_not_taken_for_a_methods_own(make_sweep, tmp_path, write_report):
    text = write_report(make_sweep(), tmp_path, META)["summary"].read_text()
    assert "not what a method costs by itself" in text.split("### Measured cells")[1]


def test_focus_is_the_strongest_setting(make_sweep, make_cell):
    def focus(samples: pd.DataFrame) -> str:
        return summary.focus(stats.summarise(samples))

    assert focus(make_sweep(ratios=(0.5, 0.9, 0.95))) == "0.9"
    assert focus(make_sweep(ratios=(0.8, 0.5))) == "0.8"
    assert focus(make_sweep(methods=())) == ""
    budgets = [make_cell("h2o", [1], index=[0], ratio=float("nan"), budget=n) for n in (8, 32, 16)]
    assert focus(pd.concat(budgets)) == "n=8"
    assert focus(pd.concat([make_sweep(ratios=(0.5,)), *budgets])) == "0.5"


def test_doubts_are_spelled_out(make_sweep, make_cell):
    def text(samples: pd.DataFrame) -> str:
        return paragraph(
            summary.text(
                samples,
                stats.summarise(samples),
                stats.abilities(samples),
                {"question": "?"},
                ["c.png"],
            )
        )

    samples = make_sweep()
    assert "blank image was not run" in text(samples[samples["control"] != "blank_image"])
    assert "full cache was not run" in text(samples[samples["method"] != "full"])
    assert "Cells hold between 35 and 36 rows" in text(samples.iloc[:-1])
    blind = samples.copy()
    blind.loc[blind["method"] == "full", "correct"] = False
    assert "does not demonstrably use the image" in text(blind)
    partly = samples.copy()
    partly.loc[partly["method"].eq("restkv") & partly["row"].lt(18), "exposed_tokens"] = 0
    assert "In cells that are not vacuous 16.7 % of the rows" in text(partly)
    full = make_cell("full", [1, 0], index=[0, 1])
    assert text(full).startswith("This table holds no compressed cell")


@pytest.mark.usefixtures("whole_report")
def test_hostile_text_cannot_change_the_page(make_sweep, tmp_path, write_report):
    samples = make_sweep(methods=("a|b<i>", "$x_1^"))
    method = stats.roles(samples) == "method"
    samples.loc[method, "text"] = HOSTILE
    samples = samples.assign(question=HOSTILE, model="m|<b>", category="<u>|ocr")
    paths = write_report(samples, tmp_path, {"name": HOSTILE, "note": HOSTILE})
    text = paths["summary"].read_text()
    tokens = [
        child.type
        for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
        for child in [token, *(token.children or [])]
    ]
    allowed = {"image": 1, "html_inline": 0, "html_block": 0, "link_open": 0, "code_inline": 0}
    assert {kind: tokens.count(kind) for kind in allowed} == allowed
    assert "\x1b" not in text
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in rows}) <= 1, block
    assert tables.escape("x" * 200, 10) == "x" * 9 + "…"
    assert tables.escape("a|b\n<c>") == r"a\|b &lt;c&gt;"


def test_a_failed_write_leaves_the_earlier_file(make_sweep, tmp_path, monkeypatch, write_report):
    paths = write_report(make_sweep(), tmp_path, META)
    before = {path: path.read_bytes() for path in paths.values()}

    def half(cells, path):
        path.write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(plots, "curve", half)
    with pytest.raises(OSError, match="disk full"):
        write_report(make_sweep(), tmp_path, META)
    with pytest.raises(ValueError, match="no rows"):
        write_report(make_sweep().iloc[:0], tmp_path, META)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_each_group_gets_its_curve(make_sweep, tmp_path, write_report):
    one = make_sweep(ratios=(0.5,))
    write_report(one, tmp_path, META)
    several = pd.concat([one, one.assign(task="other/task"), one.assign(model="x/tiny")])
    paths = write_report(several, tmp_path, META)
    curves = {name for name in paths if name.startswith("curve")}
    assert curves == {"curve-tiny-mini-replay", "curve-tiny-other_task-replay",
                      "curve-tiny-mini-replay~2"}  # fmt: skip
    assert {p.name for p in tmp_path.glob("curve*")} == {f"{name}.png" for name in curves}
    text = paths["summary"].read_text()
    assert text.count("\n## tiny on") == 2
    assert text.count("](curve-") == 3
    assert len(tables.console_table(stats.summarise(several)).split("\n\n\n")) >= 1


def test_console_table_by_hand(make_cell):
    cells = stats.summarise(
        pd.concat(
            [
                make_cell("full", [1, 1, 1, 1], index=range(4)),
                make_cell("blank_image", [1, 0, 0, 0], index=range(4), control="blank_image"),
                make_cell("restkv", [1, 1, 1, 0], index=range(4), ratio=0.5),
                make_cell("restkv", [1, 1, 1, 1], index=range(4), ratio=0.9, exposed_tokens=0),
                make_cell("h2o", [1, 0, 1, 0], index=range(4), ratio=0.9),
            ]
        )
    )
    lines = tables.console_table(cells).splitlines()
    assert lines[0] == "tiny · mini · replay · 4 questions, 4 rows"
    assert lines[1].split()[:3] == ["full", "cache", "100.0"]
    assert lines[2].split()[:3] == ["blank", "image", "25.0"]
    assert lines[4].split() == ["accuracy", "%", "0.5", "0.9"]
    assert lines[5].split() == ["restkv", "75.0", "100.0v"]
    assert lines[6].split() == ["h2o", "50.0"]
    assert lines[6].endswith("50.0")
    assert lines[-1] == tables.VACUOUS_NOTE


def test_console_table_fits_100_columns(make_sweep):
    ratios = [round(x, 3) for x in np.linspace(0.05, 0.995, 21)]
    names = ("restkv_with_an_uncommonly_long_label_of_a_variant", "h2o")
    samples = make_sweep(methods=names, ratios=ratios, exposed_tokens=0)
    samples = samples.assign(model="organisation/" + "long" * 30)
    table = tables.console_table(stats.summarise(samples))
    assert max(map(len, table.splitlines())) <= 100
    shown = [word for line in table.splitlines() if "accuracy" in line for word in line.split()]
    assert [f"{ratio:g}" for ratio in ratios] == [w for w in shown if w[0] == "0"]


def test_no_temporary_file_is_left(make_sweep, tmp_path, write_report):
    write_report(make_sweep(), tmp_path, META)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_the_factor_of_a_strong_compression_reads_as_a_number(make_cell, make_sweep):
    tight = make_cell("h2o", [1, 0], index=[0, 1], ratio=float("nan"), budget=1)
    cells = stats.summarise(pd.concat([make_sweep(methods=()), tight]))
    (label,) = plots.figure(cells).axes[0].get_xticklabels()
    assert label.get_text().endswith("\n101\N{MULTIPLICATION SIGN}")


def test_methods_that_score_alike_have_no_best_and_worst(make_sweep, write_report, tmp_path):
    samples = make_sweep(questions=6).assign(correct=True)
    text = write_report(samples, tmp_path, META)["summary"].read_text()
    assert "At 0.9: every method 100.0 %" in text
    assert "worst" not in text


def test_a_text_task_has_no_columns_of_images(make_sweep, write_report, tmp_path):
    samples = make_sweep(questions=6)
    named = "| image % | text % |"
    assert named in write_report(samples, tmp_path / "a", META)["summary"].read_text()
    text = samples.assign(image_tokens=0, kept_image=0.0)
    assert named not in write_report(text, tmp_path / "b", META)["summary"].read_text()
