"""What was kept of a prompt: shares come back from pixels, tokens and titles."""

import base64
import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness import stats
from harness.report import evidence, maps, page
from tests.outputs.conftest import sweep
from tests.page import studies
from tests.page.conftest import written


@pytest.fixture(scope="module")
def cells():
    return stats.summarise(studies.sweep(("random", "restkv")))


def traces(cells, tmp_path, **changes):
    """Prompts, what was kept of them at 0.9, and the labels of those cells."""
    prompts = studies.prompts(cells, **changes)
    kept = studies.kept(cells, prompts)
    at = cells[cells["ratio"].eq(0.9)]
    labels = dict(zip(at["cell_key"], at["method"], strict=True))
    return prompts, kept, labels


def shares_of(patches, rows, columns):
    """The shares that a picture's shades stand for."""
    data = base64.b64decode(patches.uri.removeprefix("data:image/png;base64,"))
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    assert pixels.shape == (patches.height, patches.width, 4)
    high, wide = patches.height // rows, patches.width // columns
    blocks = pixels[..., 3].reshape(rows, high, columns, wide)
    assert (blocks == blocks[:, :1, :, :1]).all()
    return (blocks[:, 0, :, 0] / 255 / maps.STRONGEST) ** 2


def own(kept, shown, method):
    key = kept[kept["method"].eq(method) & kept["ratio"].eq(0.9) & kept["row"].eq(shown.row)]
    return key["shares"].iloc[0]


def test_shades_are_the_shares(cells, tmp_path):
    prompts, kept, labels = traces(cells, tmp_path)
    found = list(maps.shown(prompts, kept, labels))
    assert [shown.row for shown in found] == [0, 1, 2]
    for shown in found:
        assert shown.behind
        assert [m.label for m in shown.methods] == ["random", "restkv"]
        for method in shown.methods:
            want = own(kept, shown, method.label)
            (patches,) = method.patches
            assert (patches.width, patches.height) == (192, 192)
            close = pytest.approx(want[2:66].reshape(8, 8), abs=0.005)
            assert shares_of(patches, 8, 8) == close
            assert method.image == pytest.approx(want[2:66].mean())
            assert method.text == pytest.approx(np.r_[want[:2], want[66:]].mean())


def test_tokens_carry_their_share_and_segment(cells, tmp_path):
    prompts, kept, labels = traces(cells, tmp_path)
    shown = next(maps.shown(prompts, kept, labels))
    want, runs = own(kept, shown, "restkv"), shown.methods[1].runs
    assert [run.segment for run in runs] == [name for name, _ in studies.TEXT]
    assert (runs[1].gap, runs[1].share) == (64, pytest.approx(want[2:66].mean()))
    tokens = [token for run in runs for token in run.tokens]
    text = [token for name, part in studies.TEXT if name != "image" for token in part]
    assert [token.text for token in tokens] == [t.replace("\n", "⏎") for t in text]
    assert [t.share for t in tokens[:-1]] == pytest.approx([*want[:2], *want[66:]])
    assert tokens[-1].share is None  # the last token came after the eviction
    assert [t.shade for t in tokens[:-1]] == pytest.approx(
        maps.BEHIND_TEXT * np.sqrt([*want[:2], *want[66:]]), abs=6e-4
    )


def test_several_images_and_tokens_in_no_grid(cells, tmp_path):
    grids = [[2, 4, 8], [34, 2, 12]]  # the last 8 image tokens belong to no grid
    prompts, kept, labels = traces(cells, tmp_path, grids=grids)
    shown = next(maps.shown(prompts, kept, labels))
    want = own(kept, shown, "restkv")
    assert not shown.behind
    first, second, rest = shown.methods[1].patches
    assert shares_of(first, 4, 8) == pytest.approx(want[2:34].reshape(4, 8), abs=0.005)
    assert shares_of(second, 2, 12) == pytest.approx(want[34:58].reshape(2, 12), abs=0.005)
    assert shares_of(rest, 1, 8) == pytest.approx(want[58:66][None], abs=0.005)
    assert [p.share for p in (first, second, rest)] == pytest.approx(
        [want[2:34].mean(), want[34:58].mean(), want[58:66].mean()]
    )


def test_image_tokens_without_a_grid_are_a_strip(cells, tmp_path):
    prompts, kept, labels = traces(cells, tmp_path, grids=[])
    shown = next(maps.shown(prompts, kept, labels))
    (strip,) = shown.methods[0].patches
    want = own(kept, shown, "random")[2:66]
    assert shares_of(strip, 1, 64) == pytest.approx(want[None], abs=0.005)


def test_a_text_has_tokens_only_and_a_long_one_loses_its_middle(cells, tmp_path):
    prompts, kept, labels = traces(cells, tmp_path)
    words = [f"w{i}" for i in range(1000)]
    prompts = prompts.assign(
        tokens=json.dumps(words), images="[]", image=None,
        segments=json.dumps([["template", 10], ["question", 980], ["template", 10]]),
    )  # fmt: skip
    shares = np.linspace(0, 1, 999, dtype=np.float32)
    kept = kept.assign(shares=[shares] * len(kept))
    shown = next(maps.shown(prompts, kept, labels))
    assert shown.methods[0].patches == ()
    assert shown.methods[0].image is None
    runs = shown.methods[0].runs
    assert [(run.segment, len(run.tokens), run.gap) for run in runs] == [
        ("template", 10, 0), ("question", 14, 0), ("question", 0, 880), ("question", 86, 0),
        ("template", 10, 0),
    ]  # fmt: skip
    assert runs[2].share == pytest.approx(shares[24:904].mean())
    assert runs[3].tokens[0].text == "w904"


def test_pictures_come_from_the_folder_alone(tmp_path):
    folder = studies.draw_images(tmp_path)
    (folder / "in").mkdir()
    Image.new("RGB", (9, 9)).save(folder / "in" / "1.png")
    (folder / "broken.png").write_bytes(b"no picture")
    assert maps.picture("1.png", folder).uri.startswith("data:image/png;base64,")
    for name in ("../1.png", "in/1.png", "/etc/passwd", "..", "none.png", "broken.png", None, ""):
        assert maps.picture(name, folder / "in" if name == "../1.png" else folder) is None
    assert maps.picture("1.png", None) is None


def test_rows_without_tokens_or_traces(cells, tmp_path):
    prompts, kept, labels = traces(cells, tmp_path)
    some = prompts.assign(tokens=prompts["tokens"].where(prompts["row"].eq(1)))
    assert [shown.row for shown in maps.shown(some, kept, labels)] == [1]
    nothing = list(maps.shown(prompts, pd.DataFrame(), labels))
    assert [shown.methods for shown in nothing] == [(), (), ()]
    assert list(maps.shown(pd.DataFrame(), kept, labels)) == []


def test_the_page_opens_where_the_method_loses_most(demo_page, demo):
    study = demo[0]
    own = study.comparisons[study.comparisons["method"].eq("restkv")]
    ratio = own.loc[own["difference"].idxmin(), "ratio"]
    assert evidence.worst(study.cells, study.comparisons, "restkv") == f"{ratio:g}"
    assert evidence.worst(study.cells, pd.DataFrame(), "restkv") == "0.9"
    assert evidence.worst(study.cells, study.comparisons.assign(difference=0.0), "restkv") == "0.9"
    page = demo_page.page
    checked = page.locator("[name=view-1]:checked + label").text_content()
    assert checked == f"{100 * ratio:g} %"
    visible = [card for card in page.locator("details.card").all() if card.is_visible()]
    card = visible[0]
    assert len(visible) == 3
    assert card.locator("summary").text_content() == "Row 0: How many?"
    names = card.locator(".map figcaption b").all_text_contents()
    assert names == list(study.comparisons["method"].unique())
    kept = study.kept[study.kept["ratio"].eq(ratio) & study.kept["row"].eq(0)]
    for method, shares in zip(kept["method"], kept["shares"], strict=True):
        strip = card.locator(".strip", has=demo_page.page.locator(f"b:text-is('{method}')"))
        titles = [t.get_attribute("title") for t in strip.locator("i").all()]
        text = [*shares[:2], *shares[66:]]
        assert titles[:-1] == [f"kept by {100 * float(share):.1f} %" for share in text]
        assert titles[-1] == "not in the cache at eviction"
    shown = demo_page.page.evaluate(
        "[...document.querySelectorAll('details.card[open] .map svg')]"
        ".filter(e => e.clientWidth).map("
        "e => [e.clientWidth, e.clientHeight, e.querySelectorAll('image, use').length])"
    )
    assert len(shown) == 1 + len(names)
    assert all(wide > 90 and wide == high for wide, high, _ in shown)


def test_a_row_whose_kept_tokens_are_missing_says_so(tmp_path):
    study = studies.traced(tmp_path, kept=pd.DataFrame())
    text = page.render(study, studies.HEADLINE)
    for name in ("50 %", "90 %"):
        said = f"What the methods kept of this row was not recorded at {name}."
        assert text.count(said) == 3


def test_a_switch_chooses_the_setting_and_the_method(demo_page, demo):
    page = demo_page.page
    shown = "es => es.filter(e => e.checkVisibility()).length"
    cards = page.locator(".flip")
    page.locator("[name=view-1] + label", has_text="50 %").click()
    at_half = demo[0].samples.query("ratio == 0.5")
    changed = cards.evaluate_all(shown)
    assert page.locator(".view-1-0").first.is_visible()
    assert not page.locator(".view-1-3").first.is_visible()
    assert 0 < changed <= at_half["row"].nunique()
    page.locator("[name=only-1] + label", has_text="random").click()
    names = page.locator(".map figcaption b").evaluate_all(
        "es => es.filter(e => e.checkVisibility()).map(e => e.textContent)"
    )
    assert set(names) == {"random"}
    full = demo[0].samples.query("method == 'full'").set_index("row")["parsed"]
    own = at_half.query("method == 'random'").set_index("row")["parsed"]
    assert cards.evaluate_all(shown) <= (own != full[own.index]).sum()
    page.locator("[name=only-1] + label", has_text="all methods").click()
    assert cards.evaluate_all(shown) == changed


def test_options_stand_beside_the_letters(open_page, tmp_path):
    samples = sweep(("random", "restkv"), questions=4)
    options = {"A": "<b>red</b>", "B": "blue", "C": "green", "D": "grey"}
    page = open_page(written(tmp_path, studies.study(samples.assign(options=json.dumps(options)))))
    card = page.page.locator(".flip").first
    assert card.locator(".options").inner_text().split("\n")[0].startswith("A <b>red</b>")
    assert card.locator(".options .right b").text_content() == "A"
    right = card.locator("dl > div", has_text="right").first
    assert right.locator(".read").text_content() == " <b>red</b>".strip()
