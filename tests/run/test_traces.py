"""What a run writes of its prompts and of what cells kept: complete, the same at every run."""

import hashlib
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from datasets import load_dataset
from PIL import Image

from harness.records import older
from harness.records.store import Store
from harness.run import collect, traces
from harness.run.asked import Asked
from harness.settings.grid import BLANK_IMAGE, Cell
from tests.run import old_stores
from tests.run.conftest import Program, store_of
from tests.run.fakes import FakeEngine

ROWS, CELLS = 27, 2 + 2
PROMPTS = ["model", "task", "protocol", "row", "segments", "tokens", "images", "image"]
KEPT = ["model", "task", "protocol", "method", "ratio", "budget", "control", "cell_key", "row"]


# Without the images of changed answers, which come on top of those of the shown rows: test_reports.
pytestmark = pytest.mark.usefixtures("no_report")


def read(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "run" / f"{name}.parquet")


def files(folder: Path, run: str = "run") -> dict[str, bytes]:
    """Every file of the traces, byte by byte."""
    paths = [*(folder / run).glob("*.parquet"), *(folder / run / "images").iterdir()]
    chosen = [p for p in paths if p.suffix == ".png" or p.stem in ("prompts", "kept")]
    return {str(path.relative_to(folder / run)): path.read_bytes() for path in chosen}


def in_hash_order(count: int) -> list[int]:
    """Questions 0 to 8, whose first rotations are the rows of these numbers."""
    order = sorted(range(9), key=lambda i: hashlib.sha256(str(i).encode()).digest())
    return sorted(order[:count])


def test_a_run_leaves_all_prompts_and_the_traces_of_eight_questions(
    call: Program, engine: FakeEngine, overrides: list[str], data: Path, tmp_path: Path
) -> None:
    assert call(*overrides) == 0
    prompts, kept, samples = (read(tmp_path, name) for name in ("prompts", "kept", "samples"))
    assert list(prompts) == PROMPTS
    assert list(kept) == [*KEPT, "shares"]
    assert list(prompts["row"]) == list(range(ROWS))
    assert set(prompts["task"]) == set(kept["task"]) == {"mmbench_mini"}
    assert {tuple(json.loads(s)[1]) for s in prompts["segments"]} == {("image", 64)}

    shown = prompts[prompts["tokens"].notna()]
    assert list(shown["row"]) == in_hash_order(8)
    assert json.loads(shown["tokens"].iloc[0])[-1] == "t100"
    assert set(shown["images"]) == {"[[3, 8, 8]]"}
    assert set(prompts.loc[prompts["tokens"].isna(), "images"]) == {"[]"}
    assert prompts["image"].notna().equals(prompts["tokens"].notna())
    asked = load_dataset(str(data), "en", split="dev", cache_dir=str(tmp_path / "cache"))
    for row, name in zip(shown["row"], shown["image"], strict=True):
        picture = Image.open(tmp_path / "run" / "images" / name)
        assert picture.tobytes() == asked[row]["image"].convert("RGB").tobytes()

    assert len(kept) == CELLS * 8
    assert set(kept["row"]) == set(shown["row"])
    both = kept.merge(samples, how="left", on=[*KEPT[:3], *KEPT[3:]], validate="1:1")
    assert both["text"].notna().all()
    assert both["shares"].map(len).eq(both["evictable_tokens"]).all()
    assert (both["shares"].map(sum) - both["kept_tokens"]).abs().max() < 0.01
    assert kept["control"].eq(BLANK_IMAGE).sum() == 8
    assert kept["budget"].dtype == samples["budget"].dtype


def test_only_shown_rows_are_traced(
    call: Program, engine: FakeEngine, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, traced, told = engine.answer, [], {}

    def note(messages, cells, generation, letters, texts, trace):
        shape = int(texts.questions[-1].rpartition(" ")[2].rstrip("?"))
        told.setdefault(shape, texts)
        traced.extend([shape] * trace)
        return ask(messages, cells, generation, letters, texts, trace)

    monkeypatch.setattr(engine, "answer", note)
    assert call(*overrides) == 0
    assert sorted(traced) == sorted(2 * in_hash_order(8))  # with its picture and a blank one
    assert told[1].questions == (
        "Look closely. What is the color of shape 1?",
        "What is the color of shape 1?",
    )
    assert told[5].options == ("A. red", "B. green", "C. blue", "D. yellow")


def test_a_second_run_writes_the_same_bytes_without_a_model(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, monkeypatch
) -> None:
    assert call(*overrides) == 0
    first = files(tmp_path)
    assert len(first) == 2 + 8
    (tmp_path / "run" / "images" / "mmbench_mini-999.png").write_bytes(b"of an earlier report")
    monkeypatch.setattr(collect, "load_engine", None)
    assert call(*overrides) == 0
    assert files(tmp_path) == first


def test_an_interrupted_run_comes_out_the_same(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, monkeypatch
) -> None:
    calm = tmp_path / "calm"
    assert call(*overrides, f"run.dir={calm}") == 0
    ask = engine.answer
    engine.calls.clear()

    def interrupted(*args: object) -> object:
        if len(engine.calls) == 9:
            raise KeyboardInterrupt
        return ask(*args)

    monkeypatch.setattr(engine, "answer", interrupted)
    assert call(*overrides) == 130
    with Store(store_of(tmp_path)) as store:
        (key,) = (k for (k,) in store._db.execute("SELECT DISTINCT cell_key FROM prompts"))
        assert len(store.prompts(key)) == 4
    monkeypatch.setattr(engine, "answer", ask)
    assert call(*overrides) == 0
    assert files(tmp_path) == files(calm)


@pytest.mark.slow
def test_every_limit_shows_the_same_questions(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path
) -> None:
    for limit, count in ((3, 3), ("null", 8)):
        assert call(*overrides, f"limit={limit}") == 0
        assert sorted(set(read(tmp_path, "kept")["row"])) == in_hash_order(count)
        prompts = read(tmp_path, "prompts")
        assert list(prompts.loc[prompts["tokens"].notna(), "row"]) == in_hash_order(count)
        assert list(prompts["row"]) == sorted(set(read(tmp_path, "samples")["row"]))
        assert len(files(tmp_path)) == 2 + count
    whole = files(tmp_path)
    assert call(*overrides, "run.name=once") == 0
    assert files(tmp_path, "once") == whole
    # What the store holds beyond is not shown.
    assert call(*overrides, "limit=1", "run.name=run1") == 0
    prompts = pd.read_parquet(tmp_path / "run1" / "prompts.parquet")
    assert sorted(set(prompts["image"].dropna())) == [
        f"mmbench_mini-{row}.png" for row in in_hash_order(1)
    ]
    assert len(pd.read_parquet(tmp_path / "run1" / "kept.parquet")) == CELLS


def test_a_new_method_is_traced_beside_the_old_ones(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path
) -> None:
    assert call(*overrides) == 0
    first, prompts = read(tmp_path, "kept"), read(tmp_path, "prompts")
    assert call(*overrides, "method=[random,restkv,tova]") == 0
    second = read(tmp_path, "kept")
    old = second[second["method"] != "tova"].reset_index(drop=True)
    pd.testing.assert_frame_equal(old, first)
    assert len(second) == len(first) + 8
    pd.testing.assert_frame_equal(read(tmp_path, "prompts"), prompts)


def test_an_earlier_run_that_recorded_nothing_still_counts(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path
) -> None:
    assert call(*overrides) == 0
    traced, samples = read(tmp_path, "kept"), read(tmp_path, "samples")
    old_stores.of_version_2(store_of(tmp_path), tmp_path / "run" / older.FILE)
    store_of(tmp_path).unlink()
    engine.calls.clear()
    assert call(*overrides) == 0
    assert engine.calls == []
    again = read(tmp_path, "samples")
    assert again.pop("origin").nunique() == 1
    pd.testing.assert_frame_equal(again, samples.drop(columns="origin"))
    prompts, kept = read(tmp_path, "prompts"), read(tmp_path, "kept")
    assert len(kept) == 0
    assert list(prompts["row"]) == in_hash_order(8)  # their images are there
    assert set(prompts["segments"]) == set(prompts["images"]) == {"[]"}
    assert prompts["tokens"].isna().all()
    assert prompts["image"].notna().all()
    empty, full = (frame.dtypes.drop("shares") for frame in (kept, traced))
    assert empty.equals(full)

    assert call(*overrides, "method=[random,restkv,tova]") == 0
    kept = read(tmp_path, "kept")
    assert set(kept["method"]) == {"full", "tova"}  # the full cache is decoded along
    assert len(kept) == 2 * 8
    assert read(tmp_path, "prompts")["tokens"].notna().sum() == 8
    assert len(read(tmp_path, "prompts")) == ROWS


class Pictures:
    """A benchmark of five rows, the first and the last of them shown."""

    rows, shown = (0, 1, 2, 3, 4), (0, 4)

    def __init__(self, images: dict[int, object]) -> None:
        self.images = images

    def image(self, row: int) -> object:
        assert row in self.rows
        return self.images.get(row)


def _write(folder: Path, pictures: Pictures, more: dict | None = None, name: str = "t") -> None:
    cells = {"f": Cell("full", "full")}
    asked = Asked(SimpleNamespace(name=name), pictures, {}, cells)
    with Store(folder / "s.sqlite") as store:
        traces.write(store, [asked], "m", folder, more)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "images").iterdir())


def test_more_images_are_written_where_they_are_asked_for_and_go_again(tmp_path: Path) -> None:
    pictures = Pictures({row: Image.new("RGB", (4, 3), (row, 0, 0)) for row in range(5)})
    _write(tmp_path, pictures)
    assert _names(tmp_path) == ["t-0.png", "t-4.png"]
    _write(tmp_path, pictures, {"t": [2, 0, 77], "other": [1]})
    assert _names(tmp_path) == ["t-0.png", "t-2.png", "t-4.png"]
    prompts = pd.read_parquet(tmp_path / "prompts.parquet")
    assert dict(zip(prompts["row"], prompts["image"], strict=True)) == {
        0: "t-0.png",
        2: "t-2.png",
        4: "t-4.png",
    }
    _write(tmp_path, pictures, name="a/b c")
    assert _names(tmp_path) == ["a_b_c-0.png", "a_b_c-4.png"]
    (tmp_path / "images" / "mine.txt").write_text("")
    _write(tmp_path, Pictures({}))
    assert _names(tmp_path) == ["mine.txt"]
    (tmp_path / "images" / "mine.txt").unlink()
    _write(tmp_path, Pictures({}))
    assert not (tmp_path / "images").exists()
    assert len(pd.read_parquet(tmp_path / "prompts.parquet")) == 0


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_pictures_of_any_kind_become_the_same_png_each_time(tmp_path: Path, mode: str) -> None:
    image = Image.linear_gradient("L").resize((9, 5)).convert("RGB")
    image = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
    stored = tmp_path / "of.tiff"
    seen = []
    if mode not in ("YCbCr",):
        image.save(stored)
    for given in (image, image, str(stored) if stored.exists() else image):
        _write(tmp_path, Pictures({0: given}))
        seen.append((tmp_path / "images" / "t-0.png").read_bytes())
    assert seen[0] == seen[1]
    shown = [Image.open(io.BytesIO(content)).convert("RGBA").tobytes() for content in seen]
    expected = image if mode in traces.MODES else image.convert("RGB")
    assert shown == [expected.convert("RGBA").tobytes()] * 3
