"""The long embedded benchmark: repeatable, and every answer is told by what its picture shows."""

import io
from random import Random

import pandas as pd
import pytest
from PIL import Image, ImageChops

from harness.drawing import world
from harness.drawing.render import CELL, RGB, SIDE, render, render_wall
from harness.drawing.wall import CELLS, sample_wall
from harness.embedded import MMBENCH_MINI_LONG
from harness.embedded.wall_questions import ASKED, ask
from scripts.build_mmbench_mini import ACROSS, ROTATION, build

SHIPPED = MMBENCH_MINI_LONG / "en" / "dev-00000-of-00001.parquet"


def drawn(kind, count, across=ACROSS, seed=41):
    """Some walls with a question of one kind each."""
    rng, found = Random(seed), []
    while len(found) < count:
        wall = sample_wall(rng, across)
        question = ask(wall, kind, rng)
        if question is not None:
            found.append((wall, question))
    return found


def shapes(wall):
    """Every shape's tile, value and colour, read from the tiles."""
    return [(t, i.value, i.color) for t, s in enumerate(wall.tiles) for i in s.shapes()]


def test_rebuilding_gives_the_shipped_rows(tmp_path):
    """The first question of each kind; the whole takes a quarter of a minute."""
    build(tmp_path, per_kind=1, long=True)
    fresh = pd.read_parquet(tmp_path / "en" / SHIPPED.name)
    whole = pd.read_parquet(SHIPPED)
    shipped = whole[whole["index"] % ROTATION < len(ASKED)].reset_index(drop=True)
    pd.testing.assert_frame_equal(fresh, shipped)
    assert len(whole) == 409
    assert set(whole["comment"]) == set(ASKED)
    assert Image.open(io.BytesIO(whole["image"].iloc[-1]["bytes"])).size == (ACROSS * SIDE,) * 2


def test_a_wall_is_its_tiles_side_by_side():
    wall = sample_wall(Random(3), 3)
    image = render_wall(wall)
    for at, tile in enumerate(wall.tiles):
        y, x = (part * SIDE for part in divmod(at, 3))
        there = image.crop((x, y, x + SIDE, y + SIDE))
        assert ImageChops.difference(there, render(tile)).getbbox() is None


@pytest.mark.parametrize("across", [0, 7])
def test_a_wall_of_no_known_size_is_refused(across):
    with pytest.raises(ValueError, match="1 to 6 tiles"):
        sample_wall(Random(1), across)


def test_a_long_picture_holds_20_to_66_things():
    sizes = [sum(len(tile.items) for tile in sample_wall(Random(n), 6).tiles) for n in range(60)]
    assert min(sizes) >= 20
    assert max(sizes) <= 66


@pytest.mark.parametrize("kind", ["color", "shape"])
def test_what_is_asked_for_is_there_once(kind):
    for wall, question in drawn(kind, 40):
        asked = next(w for w in reversed(question.text.rstrip("?").split()))
        held = [(value, color) for _, value, color in shapes(wall) if asked in (value, color)]
        assert len(held) == 1
        assert question.answer == held[0][kind == "color"]


def test_counts_and_existence_agree_with_the_wall():
    for wall, question in drawn("count", 40):
        color = question.text.split()[2]
        assert int(question.answer) == sum(c == color for _, _, c in shapes(wall))
    seen = set()
    for wall, question in drawn("existence", 40):
        value = question.text.rstrip("?").split()[-1]
        seen.add(question.answer)
        assert (question.answer == "yes") == any(v == value for _, v, _ in shapes(wall))
    assert seen == {"yes", "no"}


@pytest.mark.parametrize("kind", ["beside_color", "beside_shape"])
def test_the_shape_beside_a_word_is_drawn_right_of_it(kind):
    for wall, question in drawn(kind, 40):
        named = question.text.rstrip("?").split()[-1]
        ((tile, word),) = [
            (tile, i)
            for tile, scene in enumerate(wall.tiles)
            for i in scene.items
            if i.kind == "word" and i.value == named
        ]
        at = tile * CELLS + word.row * world.GRID + word.col
        assert question.cells == (at + 2,)
        right = next(i for i in wall.tiles[tile].shapes() if i.cells() == [at + 2 - tile * CELLS])
        assert question.answer == (right.color if kind == "beside_color" else right.value)


@pytest.mark.parametrize("kind", ["color", "largest_color", "beside_color"])
def test_answers_agree_with_the_pixels(kind):
    """The colour in the middle of the cells that hold the answer."""
    checked = 0
    for wall, question in drawn(kind, 60):
        if wall.tiles[0].brightness != "bright":
            continue
        tile, cells = question.cells[0] // CELLS, [cell % CELLS for cell in question.cells]
        item = next(i for i in wall.tiles[tile].items if i.cells() == cells)
        if item.value == "ring":
            continue
        down, across = (part * SIDE for part in divmod(tile, wall.across))
        x = across + item.col * CELL + item.width * CELL // 2 + item.jitter[0]
        y = down + item.row * CELL + item.height * CELL // 2 + item.jitter[1]
        pixel = render_wall(wall).getpixel((x, y))
        gaps = {c: sum(abs(a - b) for a, b in zip(RGB[c], pixel, strict=True)) for c in RGB}
        assert min(gaps, key=gaps.get) == question.answer
        checked += 1
    assert checked >= 10
