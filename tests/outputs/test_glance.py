"""Methods at a glance: the table against loops over the rows, and the picture of it."""

from dataclasses import replace
from itertools import combinations

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from harness import stats
from harness.report import build, field, files, glance
from harness.report.study import Study
from harness.stats.plan import Plan
from tests.outputs.conftest import sweep

RATIOS = (0.5, 0.7, 0.95)
METHODS = ("random", "snapkv", "restkv", "h2o", "tova", "keydiff", "knorm", "lagkv", "chunkkv")
ALL = dict.fromkeys(glance.TRAITS, True)
HOSTILE = ("a|b <script>alert(1)</script>", "$\\frac{ \x1b[31m", "**d** [l](u)\nnext", "w" * 300)


def under(frame, protocol):
    return frame.assign(protocol=protocol, cell_key=protocol + frame["cell_key"])


def both(make_sweep, methods=METHODS, ratios=RATIOS, **more):
    parts = [under(make_sweep(methods, ratios, **more), "replay")]
    parts.append(under(make_sweep(methods, ratios, seed=5, **more), "context"))
    return pd.concat(parts, ignore_index=True)


def study(samples, **known):
    """What a glance is made of; the other frames take their time."""
    plan, nothing = Plan(resamples=99), pd.DataFrame()
    known_once = stats.described(samples)
    cells, standings = stats.summarise(known_once), stats.standings(known_once, plan)
    frames = {"cells": cells, "standings": standings, "samples": samples}
    rest = ("abilities", "means", "comparisons", "ablation", "verdicts")
    return Study("", "", plan, **frames, **dict.fromkeys(rest, nothing), **known)


@pytest.fixture(scope="module")
def whole():
    """Samples of many methods, and their glance."""
    samples = both(sweep)
    return samples, only(samples, traits={name: ALL for name in METHODS})


def only(samples, **manifest):
    (found,) = glance.glances(study(samples, **manifest))
    return found


def table(found):
    """Label to {column: text}."""
    rows = glance.rows(found)
    return {line[0]: dict(zip(rows.header, line, strict=True)) for line in rows.body}


def share(rows, good):
    rows = list(rows)
    return sum(map(good, rows)) / len(rows)


def by_hand(samples, label):
    """Mean beyond 0.5, score by (protocol, ratio), loyalty by protocol: plain loops, in percent."""
    rows = samples.to_dict("records")
    full = {(r["protocol"], r["row"]): r["parsed"] for r in rows if r["method"] == "full"}
    own = [r for r in rows if r["method"] == label]
    scores = {
        (protocol, ratio): 100
        * share(
            (r for r in own if (r["protocol"], r["ratio"]) == (protocol, ratio)),
            lambda r: r["correct"],
        )
        for protocol in ("replay", "context")
        for ratio in RATIOS
    }
    loyal = {
        protocol: 100
        * share(
            (r for r in own if (r["protocol"], r["ratio"]) == (protocol, 0.95)),
            lambda r: r["parsed"] == full[r["protocol"], r["row"]],
        )
        for protocol in ("replay", "context")
    }
    strong = [score for (_, ratio), score in scores.items() if ratio > 0.5]
    return sum(strong) / len(strong), scores, loyal


def test_numbers_are_those_of_a_loop_over_the_rows(whole):
    samples, found = whole
    lines = table(found)
    for label in METHODS:
        mean, scores, loyal = by_hand(samples, label)
        line = lines[label]
        assert line["mean accuracy %"].startswith(f"{mean:.1f} [")
        for (protocol, ratio), score in scores.items():
            assert line[f"{protocol} {ratio:g}"] == f"{score:.1f}"
        for protocol, value in loyal.items():
            assert line[f"loyal, {protocol}"] == f"{value:.1f}"
        assert line["cache %"] == f"{100 * (101 - int(0.95 * 101)) / 101:.1f}"
    means = [by_hand(samples, label)[0] for label in list(lines)[2:]]
    assert means == sorted(means, reverse=True)
    assert list(lines)[:2] == ["full cache", "blank image"]
    whole = samples[samples["method"].eq("full") & samples["protocol"].eq("context")]
    assert lines["full cache"]["context 0.5"] == f"{100 * whole['correct'].mean():.1f}"


def test_of_one_cell_mean_and_difference_are_those_of_the_cell(make_cell):
    """With the full cache's own answers as the best, the difference is the cell's comparison."""
    right, some = [True] * 40, [i % 3 > 0 for i in range(40)]
    parts = [make_cell("full", right, index=range(40))]
    parts += [make_cell("tova", right, index=range(40), ratio=0.9)]
    parts += [make_cell("h2o", some, index=range(40), ratio=0.9)]
    samples = pd.concat(parts, ignore_index=True)
    made = study(samples)
    cell = stats.compare(samples, made.plan).set_index("method").loc["h2o"]
    stand = made.standings.set_index("method").loc["h2o"]
    for name in ("difference", "difference_low", "difference_high"):
        assert stand[name] == pytest.approx(cell[name])
    low, high = stats.accuracy_interval(pd.Series(some), pd.Series(range(40)))
    assert (stand["mean_low"], stand["mean_high"]) == pytest.approx((low, high))
    assert [line[2] for line in glance.rows(only(samples)).body] == ["", "best", ""]


def test_who_is_not_told_apart_is_marked(make_cell):
    """One slip of 40 is within chance, fourteen are not; equal answers are never apart."""
    right = [True] * 40
    slips = {"tova": 0, "same": 0, "near": 1, "far": 14}
    parts = [make_cell("full", right, index=range(40))]
    parts += [
        make_cell(name, [i >= n for i in range(40)], index=range(40), ratio=0.9)
        for name, n in slips.items()
    ]
    lines = table(only(pd.concat(parts, ignore_index=True)))
    assert {name: lines[name][""] for name in slips} == {
        "tova": "best", "same": "=", "near": "=", "far": "",
    }  # fmt: skip


@pytest.mark.parametrize("case", ["missing protocol", "vacuous", "failed", "twice"])
def test_a_method_that_lacks_a_cell_has_no_mean_and_comes_last(make_sweep, case):
    few = ("random", "snapkv", "restkv")
    samples = both(make_sweep, few, (0.8, 0.95))
    own, place = samples["method"].eq("restkv"), samples["protocol"].eq("context")
    there = own & place & samples["ratio"].eq(0.95)
    if case == "missing protocol":
        samples = samples[~(own & place)]
    elif case == "vacuous":
        samples.loc[there, "exposed_tokens"] = 0
    elif case == "failed":
        samples = samples.assign(failed=there & samples["row"].eq(3))
    else:
        samples = pd.concat([samples, samples[there].assign(cell_key="beef")], ignore_index=True)
    found = only(samples)
    lines = table(found)
    last = list(lines)[-1]
    assert last.startswith("restkv")
    assert (lines[last]["mean accuracy %"], lines[last][""]) == ("-", "")
    assert any("without a mean" in note for note in glance.rows(found).notes)
    assert all(lines[label]["mean accuracy %"][0].isdigit() for label in few[:2])
    if case == "missing protocol":
        assert lines["restkv"]["context 0.8"] == ""
        assert lines["restkv"]["loyal, context"] == "-"
    field.figure(found)


def test_one_ratio_that_is_not_beyond_is_said_to_be_none(make_sweep):
    found = only(make_sweep(ratios=(0.5,)))
    lines, notes = table(found), glance.rows(found).notes
    assert set(lines["restkv"]) >= {"0.5", "loyal", "cache %"}
    assert "the mean over the one cell, which evicts no more than 50 %" in notes[0]
    score = lines["restkv"]["0.5"]
    assert lines["restkv"]["mean accuracy %"].startswith(f"{score} [")
    assert not list(glance.glances(study(make_sweep(methods=("random",)))))


def test_kinds_and_what_decoding_does_come_from_the_manifest(make_sweep):
    samples = make_sweep(methods=("h2o", "tova", "snapkv", "mine"))
    kinds = {"h2o": {"queries": True, "learned": False, "images": False}, "snapkv": {"queries": 3}}
    known = {"h2o": {"method": "h2o", "decode": "hold"}, "snapkv": {"method": "snapkv"}}
    known["tova"] = {"method": "tova", "decode": "buffer", "buffer": 64}
    lines = table(only(samples, traits=kinds, methods=known))
    told = ["then", "looks at queries"]
    assert list(lines["h2o"])[-2:] == told  # nothing is learned or made for images
    assert [lines["h2o"][name] for name in told] == ["held", "yes"]
    assert [lines["snapkv"][name] for name in told] == ["grows", "-"]
    assert [lines["mine"][name] for name in told] == ["-", "-"]
    kinds["snapkv"] = ALL
    lines = table(only(samples, traits=kinds, methods=known))
    assert [lines["h2o"][name] for name in glance.TRAITS.values()] == ["yes", "no", "no"]
    assert [lines["snapkv"][name] for name in glance.TRAITS.values()] == ["yes"] * 3
    assert lines["tova"]["then"] == "held every 64 tokens"


def test_scoring_is_the_time_of_all_cells_and_left_out_where_times_are(make_sweep):
    made = study(make_sweep())  # eight cells of 36 rows, 0.25 s each
    (found,) = glance.glances(made)
    (cost,) = (note for note in glance.rows(found).notes if note.startswith("Scoring"))
    assert "took 2000.00 ms under replay a row" in cost
    bare = replace(made, cells=made.cells.drop(columns=stats.TIMINGS))
    (found,) = glance.glances(bare)
    assert not any(" ms " in note for note in glance.rows(found).notes)


def boxes(picture):
    renderer = picture.canvas.get_renderer()
    texts = [text for axis in picture.axes for text in axis.texts if text.get_text()]
    return {id(text): (text.get_text(), text.get_window_extent(renderer)) for text in texts}


@pytest.mark.parametrize("case", ["both", "vacuous", "hostile", "budgets"])
def test_no_text_of_the_picture_meets_another_or_the_edge(whole, make_sweep, make_cell, case):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    long = {"model": "m|<b>$$_{" * 20, "protocol": "a very long protocol's name"}
    made = {
        "both": lambda: whole[1],
        "vacuous": lambda: only(make_sweep(METHODS, (0.9,), exposed_tokens=0)),
        "hostile": lambda: only(
            make_sweep((*HOSTILE, *METHODS[:4]), (0.9,)).assign(**long), traits={"random": ALL}
        ),
        "budgets": lambda: only(
            pd.concat(
                make_cell(name, [1, 0], index=range(2), ratio=float("nan"), budget=n)
                for name in METHODS
                for n in (8, 16384)
            )
        ),
    }[case]()
    picture = field.figure(made)
    FigureCanvasAgg(picture)
    found = list(boxes(picture).values())
    width, height = picture.get_size_inches() * picture.dpi
    for text, box in found:
        assert box.x0 >= 0, text
        assert box.x1 <= width, text
        assert box.y0 >= 0, text
        assert box.y1 <= height, text
    for (one, first), (other, second) in combinations(found, 2):
        assert not first.overlaps(second), (one, other)


def test_the_picture_holds_the_table(whole):
    found = whole[1]
    picture = field.figure(found)
    (axis,) = picture.axes
    lines = table(found)
    names = [text.get_text() for text in axis.texts if text.get_text() in lines]
    assert names == list(lines)
    cells = [text.get_text() for text in axis.texts if text.get_fontsize() == 8.5]
    for label in METHODS:
        line = lines[label]
        wanted = [line[f"{protocol} {ratio:g}"] for protocol in found.protocols for ratio in RATIOS]
        assert any(cells[i : i + 6] == wanted for i in range(len(cells))), label
    assert len(axis.patches) == 6 * len(METHODS) + 2 * 2


def test_the_same_picture_has_the_same_bytes(whole, tmp_path):
    for name in ("one.png", "two.png"):
        picture = field.figure(whole[1])
        picture.savefig(tmp_path / name, format="png", metadata={"Software": None})
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def written(samples, folder):
    return files.write(build.study(samples, {"plan": {"resamples": 99}}), folder)


def test_table_and_picture_are_written_and_hostile_labels_are_text(make_sweep, tmp_path):
    small = {"ratios": (0.9,), "questions": 3}
    samples = make_sweep((*HOSTILE, *METHODS[:4]), **small).assign(model="m|<b>", task="a/b")
    (tmp_path / "field-old-task.png").write_bytes(b"of an earlier report")
    paths = written(samples, tmp_path)
    name = "field-m_b_-a_b"
    assert paths[name].name == f"{name}.png"
    assert [path.name for path in tmp_path.glob("field-*")] == [f"{name}.png"]
    text = paths["summary"].read_text()
    part = text.split("## Methods at a glance")[1].split("\n### ")[0]
    assert f"![methods at a glance]({name}.png)" in part
    parsed = MarkdownIt("commonmark", {"html": True}).enable("table").parse(part)
    kinds = [child.type for token in parsed for child in [token, *(token.children or [])]]
    assert kinds.count("image") == 1
    assert kinds.count("tr_open") == 1 + 2 + 8
    assert not {"html_inline", "html_block", "link_open", "strong_open"} & {*kinds}
    few = written(make_sweep(METHODS[:2], **small), tmp_path)
    assert not [name for name in few if name.startswith("field")]
    assert "### Methods at a glance" in few["summary"].read_text()
    assert not list(tmp_path.glob("field-*"))
