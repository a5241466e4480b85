"""Every figure on the page is the frame's: points, intervals, cells of heatmaps and tables."""

import re

import numpy as np
import pandas as pd
import pytest

from harness import stats
from tests.page import studies

MINUS = "\N{MINUS SIGN}"
NUMBER = re.compile(rf"(?<![\w.])[+{MINUS}-]?\d[\d,]*(?:\.\d+)?")


def numbers(cell: str) -> list[float]:
    return [float(n.replace(MINUS, "-").replace(",", "")) for n in NUMBER.findall(cell)]


def by_key(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.set_index("cell_key")


def test_curves_are_the_cells(demo_page, demo):
    cells = by_key(demo[0].cells)
    drawn = demo_page.figures("Score against eviction")
    assert [figure["title"] for figure in drawn] == ["methods", "variants of restkv"]
    seen = check_lines(drawn, cells, "accuracy")
    assert seen == set(cells.index[stats.roles(demo[0].cells).eq("method").to_numpy()])
    for figure in drawn:
        for name, method in (("full cache", "full"), ("blank image", "blank_image")):
            cell = demo[0].cells.set_index("method").loc[method]
            band, line = (t for t in figure["data"] if t.get("legendgroup") == name)
            assert line["y"] == pytest.approx([100 * cell["accuracy"]] * 2)
            low, high = (100 * cell[f"accuracy_{end}"] for end in ("low", "high"))
            assert band["y"] == pytest.approx([low, low, high, high])


def test_differences_are_the_comparisons(demo_page, demo):
    study = demo[0]
    drawn = demo_page.figures("Difference from the full cache")
    seen = check_lines(drawn, by_key(study.comparisons), "difference")
    assert seen == set(study.comparisons["cell_key"])
    for figure in drawn:
        band = next(s for s in figure["layout"]["shapes"] if s["type"] == "rect")
        assert [band["y0"], band["y1"]] == [-100 * study.plan.margin, 0]


def check_lines(drawn, frame, value):
    """Points and intervals of all lines; returns the cells seen."""
    seen = set()
    for figure in drawn:
        for trace in (t for t in figure["data"] if "customdata" in t):
            rows = frame.loc[trace["customdata"]]
            assert set(rows["method"]) == {trace["name"]}
            middle, low, high = (100 * rows[n] for n in (value, f"{value}_low", f"{value}_high"))
            assert trace["y"] == pytest.approx(middle.tolist())
            (bars,) = (
                t for t in figure["data"]
                if "error_y" in t and t["legendgroup"] == trace["legendgroup"]
            )  # fmt: skip
            assert bars["y"] == trace["y"]
            assert bars["error_y"]["array"] == pytest.approx((high - middle).tolist())
            assert bars["error_y"]["arrayminus"] == pytest.approx((middle - low).tolist())
            evicted = 1 - 0.5 ** np.array(trace["x"])
            assert evicted == pytest.approx(rows["ratio"].to_numpy(float))
            for text, (_, row) in zip(trace["hovertext"], rows.iterrows(), strict=True):
                assert f"<b>{row['method']}</b> at ratio {row['ratio']:g}" in text
                assert f"accuracy {100 * row['accuracy']:.1f} %" in text
            seen |= set(trace["customdata"])
    return seen


def test_the_glance_is_the_cells_in_the_order_of_their_means(demo_page, demo):
    header, *lines = demo_page.table("tiny on mini")
    cells = demo[0].cells[stats.roles(demo[0].cells).eq("method")]
    of_methods = [line for line in lines if line[0] not in ("full cache", "blank image")]
    assert {line[0] for line in of_methods} == set(cells["method"])
    for line in of_methods:
        own = cells[cells["method"].eq(line[0])]
        for ratio, score in zip(own["ratio"], own["accuracy"], strict=True):
            assert line[header.index(f"{ratio:g}")] == f"{100 * score:.1f}"
        beyond = own[own["ratio"] > demo[0].plan.above]
        assert numbers(line[1])[0] == pytest.approx(100 * beyond["accuracy"].mean(), abs=0.051)
    means = [numbers(line[1])[0] for line in of_methods]
    assert means == sorted(means, reverse=True)
    assert of_methods[0][2] == "best"


def test_heatmap_is_the_abilities(demo_page, demo):
    frame = demo[0].abilities
    (figure,) = demo_page.figures("Abilities")
    methods = figure["layout"]["xaxis"]["ticktext"]
    kinds = figure["layout"]["yaxis"]["ticktext"]
    seen = set()
    for trace in figure["data"]:
        for line, ability in zip(range(len(kinds)), kinds, strict=True):
            for column, method in enumerate(methods):
                key = trace["customdata"][line][column]
                rows = frame[frame["cell_key"].eq(key) & frame["ability"].eq(ability)]
                row = rows.iloc[0]
                shown = {"full": "full cache", "blank_image": "blank image"}
                assert method == shown.get(row["method"], row["method"])
                assert trace["z"][line][column] == pytest.approx(100 * row["accuracy"])
                hover = trace["hovertext"][line][column]
                assert f"{row['n_rows']} rows" in hover
                if pd.notna(row["difference"]):
                    found = numbers(hover.split("full cache ")[1])
                    names = ("difference", "difference_low", "difference_high")
                    assert found == pytest.approx([100 * row[n] for n in names], abs=0.051)
                seen.add((key, ability))
    assert seen == set(zip(frame["cell_key"], frame["ability"], strict=True))


def test_forest_is_the_ablation(demo_page, demo):
    frame = demo[0].ablation
    (figure,) = demo_page.figures("What the smoothing does")
    names = figure["layout"]["yaxis"]["ticktext"]
    count = 0
    for trace in figure["data"]:
        for place, middle in enumerate(trace["x"]):
            effect, rest = names[round(trace["y"][place])].split(": ")
            contrast, _, given = rest.partition("<br>")
            row = frame[
                frame["effect"].eq(effect) & frame["contrast"].eq(contrast)
                & frame["given"].eq(given) & frame["ratio"].eq(numbers(trace["name"])[0])
            ].iloc[0]  # fmt: skip
            assert middle == pytest.approx(100 * row["difference"])
            high, low = (trace["error_x"][name][place] for name in ("array", "arrayminus"))
            assert [middle - low, middle + high] == pytest.approx(
                [100 * row["low"], 100 * row["high"]]
            )
            assert trace["marker"]["symbol"][place].endswith("-open") == row["inert"]
            assert ("cannot tell" in trace["hovertext"][place]) == row["inert"]
            count += 1
    assert count == len(frame)


def test_bars_are_the_weights(demo_page):
    frame = studies.weights()
    (figure,) = demo_page.figures("Where the temporal weight fell")
    methods = figure["layout"]["yaxis"]["ticktext"]
    found = {
        (methods[y], trace["name"]): x
        for trace in figure["data"]
        for x, y in zip(trace["x"], trace["y"], strict=True)
    }
    want = {(row["method"], row["segment"]): 100 * row["share"] for _, row in frame.iterrows()}
    assert found == pytest.approx(want)


def test_paired_table_is_the_comparisons(demo_page, demo):
    frame = demo[0].comparisons
    header, *body = demo_page.table("Every compressed cell")
    assert len(body) == len(frame)
    for line, (_, row) in zip(body, frame.iterrows(), strict=True):
        cell = dict(zip(header, line, strict=True))
        percents = [
            ("Score %", ["accuracy"]),
            ("Points from full", ["difference", "difference_low", "difference_high"]),
            ("Answers changed %", ["flip_rate", "flip_low", "flip_high"]),
            ("Retained %", ["retained", "retained_low", "retained_high"]),
            ("Detectable loss", ["detectable"]),
        ]
        assert cell["Method"] == row["method"]
        assert numbers(cell["Ratio"]) == [row["ratio"]]
        for name, columns in percents:
            want = [100 * row[column] for column in columns]
            assert numbers(cell[name]) == pytest.approx(want, abs=0.051), name
        want = [row["kl"], row["kl_low"], row["kl_high"]]
        assert numbers(cell["KL nats"]) == pytest.approx(want, abs=6e-4)
        want = [row["p_noninferior"], row["p_noninferior_holm"]]
        assert numbers(cell["p not worse (Holm)"]) == pytest.approx(want, abs=6e-4)
        want = [row["p_equivalent"], row["p_equivalent_holm"]]
        assert numbers(cell["p equivalent (Holm)"]) == pytest.approx(want, abs=6e-4)
        assert numbers(cell["Lost / gained"]) == [row["lost"], row["gained"]]
        p = numbers(cell["p McNemar (Holm)"])
        assert p == pytest.approx([row["p_mcnemar"], row["p_mcnemar_holm"]], abs=1.1e-3)
        assert cell["p McNemar (Holm)"].endswith("(<\xa00.001)")
        assert (cell["In the plan"] == "yes") == row["family"]


def test_verdict_table_is_the_verdicts(demo_page, demo):
    frame, compared = demo[0].verdicts, demo[0].comparisons
    header, *body = demo_page.table("Does restkv keep the score?")
    assert header == ["Evicted", "Full cache %", "Score %", "Points from the full cache, 95 %",
                      "random, points", "Score kept?"]  # fmt: skip
    assert len(body) == len(frame) == 3
    at = compared.set_index(["method", "ratio"])
    words = {
        "supported": "✓ kept",
        "not supported": "\N{MULTIPLICATION SIGN} lost",
        "cannot tell": "? cannot tell",
    }
    for line, (_, row) in zip(body, frame.iterrows(), strict=True):
        own = at.loc["restkv", row["ratio"]]
        assert line[0] == f"{100 * row['ratio']:g} %"
        want = [100 * own["full_accuracy"], 100 * own["accuracy"]]
        assert [*numbers(line[1]), *numbers(line[2])] == pytest.approx(want, abs=0.051)
        names = ("difference", "difference_low", "difference_high")
        assert numbers(line[3]) == pytest.approx([100 * own[n] for n in names], abs=0.051)
        control = 100 * at.loc["random", row["ratio"]]["difference"]
        assert numbers(line[4]) == pytest.approx([control], abs=0.051)
        assert line[5] == words[row["verdict"]]
    notes = demo_page.page.locator(".notes li").all_text_contents()
    assert "At 95 % eviction: It loses less than the margin." in notes  # why it cannot tell


def test_contrast_table_is_the_contrasts(demo_page, demo):
    frame = demo[0].contrasts
    header, *body = demo_page.table("What smoothing does")
    assert header == ["Evicted", "Compared", "Points, 95 %", "p (Holm)", "Effect"]
    for line, (_, row) in zip(body, frame.iterrows(), strict=True):
        assert line[:2] == [f"{100 * row['ratio']:g} %", "restkv against restkv_neither"]
        assert numbers(line[2]) == [-1.1, -3.2, 1.3]
        assert numbers(line[3]) == [0.25]
        assert line[4][2:] == row["effect"]


def test_ablation_table_is_the_ablation(demo_page, demo):
    frame = demo[0].ablation
    _, *body = demo_page.table("Effects of the smoothing")
    assert len(body) == len(frame)
    for line, (_, row) in zip(body, frame.iterrows(), strict=True):
        assert numbers(line[0]) == [row["ratio"]]
        assert line[1:4] == [row["effect"], row["contrast"], row["given"]]
        want = [100 * row["difference"], 100 * row["low"], 100 * row["high"]]
        assert numbers(line[4]) == pytest.approx(want, abs=0.051)
        p = [row["p"]] if pd.isna(row["p_holm"]) else [row["p"], row["p_holm"]]
        assert numbers(line[5]) == pytest.approx(p, abs=1.1e-3)
        assert numbers(line[6]) == pytest.approx([100 * row["adaptive_active"]])
        says = "cannot tell" if row["inert"] else _reading(row)
        assert line[7].startswith(says)


def _reading(row: pd.Series) -> str:
    if row["effect"] == "interaction":
        return "no interaction" if row["low"] <= 0 <= row["high"] else "the two interact"
    if row["low"] > 0:
        return "raises"
    return "lowers" if row["high"] < 0 else "no effect"


def test_other_tables(demo_page, demo):
    study = demo[0]
    assert demo_page.table("Where the figures")[1:] == [
        ["command", "make sweep"], ["software.torch", "9.9.9"], ["cells", "14"],
    ]  # fmt: skip
    values = [line[1] for line in demo_page.table("The plan")[1:]]
    assert values == ["restkv", "random", "2", "0.05", "0.8", "50", "9999", "0",
                      "restkv against restkv_neither"]  # fmt: skip
    _, first, second = demo_page.table("What was claimed")
    assert first == [*study.claims.iloc[0][:-1], "✓ supported"]
    assert second[4:] == ["", "mini", "? cannot tell"]
    header, *body = demo_page.table("Share of heads")
    assert header == ["Method", "0.5", "0.7", "0.9", "0.95"]
    assert [line[0] for line in body] == list(study.comparisons["method"].unique())
    assert {value for line in body for value in line[1:]} == {"25.0"}
    limits = [item.text_content() for item in demo_page.page.locator(".limits li").all()]
    assert limits == ["Only drawings were asked about.", *study.told]
    assert demo_page.page.locator(".caveat").text_content() == study.caveat
