"""Values and images as wandb stores them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness.tracking import media


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (np.float64(0.25), 0.25),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (float("nan"), None),
        (np.float64("inf"), None),
        (float("-inf"), None),
        (pd.NA, None),
        (pd.NaT, None),
        (None, None),
        ("nan", "nan"),
        (Path("/x"), "/x"),
        ({1: [np.int64(2), {"a": pd.NA}], "b": (True,)}, {"1": [2, {"a": None}], "b": [True]}),
    ],
)
def test_plain_values(value, stored):
    found = media.plain(value)
    assert found == stored
    assert type(found) is type(stored)


@pytest.mark.parametrize("mode", ["CMYK", "P", "RGBA", "L", "1", "RGB", "LA", "F"])
def test_images_of_any_kind_are_kept_small_and_in_colour(mode):
    image = Image.new(mode, (2000, 500))
    table = media.table(
        pd.DataFrame({"row": [4, 5, 4], "image": None}), "image", {4: image, 5: None}.get
    )
    first, second, third = (line[1] for line in table.data)
    assert second is None
    assert first is third
    assert (first.image.mode, first.image.size) == ("RGB", (768, 192))
    assert image.size == (2000, 500)
