"""Pictures to be read out: repeatable, and their answers are what they show, in token order."""

import io
from dataclasses import replace
from random import Random

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness.drawing import world
from harness.drawing.poster import read_out, said, sample_poster
from harness.drawing.render import CELL, RGB, SIDE, render_wall
from harness.embedded import SCENES_MINI, scenes
from scripts.build_scenes_mini import ROWS, SEED, rows

SIZES = list(scenes.ACROSS)


def table(size):
    return pd.read_parquet(SCENES_MINI / size / "test-00000-of-00001.parquet")


@pytest.mark.parametrize("size", SIZES)
def test_rebuilding_gives_the_shipped_rows(size):
    shipped, fresh = table(size), pd.DataFrame(rows(size, SEED, 4))
    assert len(shipped) == ROWS
    for (_, one), (_, other) in zip(shipped.iterrows(), fresh.iterrows(), strict=False):
        assert list(one.pop("outputs")) == list(other.pop("outputs"))
        assert one.to_dict() == other.to_dict()


@pytest.mark.parametrize("size", SIZES)
def test_rows_keep_what_the_task_says_of_them(size):
    frame, across = table(size), scenes.ACROSS[size]
    for _, row in frame.iterrows():
        outputs = list(row["outputs"])
        assert 14 <= len(outputs) <= 31
        assert len(outputs) == len(set(outputs))
        assert set(outputs) <= {*world.COLORS, *world.SHAPES, *world.DIGITS, *world.WORDS}
        assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (across * SIDE,) * 2
        assert row["tiles"] == across**2
        assert row["question"] == scenes.QUESTION


@pytest.mark.parametrize("across", [1, 2, 6])
def test_things_are_told_in_the_order_of_the_pixels_that_show_them(across):
    """An oracle on pixels: the colours of shapes, cell after cell as the model is shown them."""
    rng = Random(across)
    for _ in range(6):
        wall = sample_poster(rng, across, 8, 3, 3)
        pixels = np.asarray(render_wall(on_paper(wall)))
        found = []
        for tile in range(across**2):
            for cell in range(world.GRID**2):
                (y, x), (row, col) = divmod(tile, across), divmod(cell, world.GRID)
                top, left = y * SIDE + row * CELL, x * SIDE + col * CELL
                there = pixels[top : top + CELL, left : left + CELL].reshape(-1, 3).tolist()
                for color in world.COLORS:
                    if list(RGB[color]) in there and color not in found:
                        found.append(color)
        told = [word for thing in read_out(wall) for word in said(thing)]
        assert [word for word in told if word in world.COLORS] == found
        assert len(found) >= 6
        for thing in wall.things("shape"):
            assert told[told.index(thing.item.color) + 1] == thing.item.value


def on_paper(wall):
    """The same wall on plain bright paper, where colours are as they are named."""
    tiles = tuple(replace(tile, background="plain", brightness="bright") for tile in wall.tiles)
    return replace(wall, tiles=tiles)
