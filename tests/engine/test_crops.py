"""A large image becomes tiles, each an image of the prompt."""

import numpy as np
import pytest
import torch
from PIL import Image

from harness.embedded import TINY_VLM
from harness.models.crops import MOST, cut, grid, tiles
from harness.scoring.bridge import Bridge
from harness.settings.config import ModelConfig, ProtocolConfig

TILE = 128


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def asked(*images):
    content = [{"type": "image", "url": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": "What is the word?"}]}]


SIZES = {
    (1, 1): (1, 1),
    (128, 128): (1, 1),
    (150, 190): (1, 1),
    (256, 128): (2, 1),
    (768, 768): (6, 6),
    (4000, 3000): (7, 5),
    (3000, 4000): (5, 7),
    (9000, 100): (36, 1),
    (64, 640): (1, 5),
}


@pytest.mark.parametrize(("size", "wanted"), SIZES.items())
def test_the_grid_fits_the_image_and_has_at_most_36_tiles(size, wanted):
    found = grid(*size, TILE)
    assert found == wanted
    assert found[0] * found[1] <= MOST


def test_tiles_are_the_pixels_row_by_row():
    image = noise(384, 256)
    pixels = np.asarray(image)
    found = tiles(image, TILE)
    assert len(found) == 6
    for at, tile in enumerate(found):
        y, x = (part * TILE for part in divmod(at, 3))
        assert np.array_equal(np.asarray(tile), pixels[y : y + TILE, x : x + TILE])


def test_other_parts_and_small_images_stay():
    small, text = noise(128, 128), {"role": "system", "content": "Look."}
    messages = [text, *asked(small, noise(256, 128))]
    found = cut(messages, TILE)
    kinds = [part["type"] for part in found[1]["content"]]
    assert kinds == ["image", "image", "image", "text"]
    assert found[1]["content"][0]["url"] is small
    assert found[0] == text
    assert cut(messages, None) is messages


@pytest.fixture(scope="module")
def bridges():
    return {
        tile: Bridge(
            ModelConfig("tiny", str(TINY_VLM), tile=tile),
            ProtocolConfig("replay"),
            device="cpu",
            dtype="float32",
        )
        for tile in (TILE, None)
    }


def test_the_prompt_is_that_of_the_tiles_given_one_by_one(bridges):
    image = noise(384, 384)
    whole = bridges[TILE].prompt(asked(image), {"max_new_tokens": 1})
    parts = bridges[None].prompt(asked(*tiles(image, TILE)), {"max_new_tokens": 1})
    assert int(whole.modality.sum()) == 9 * 64
    assert whole.inputs.keys() == parts.inputs.keys()
    assert all(torch.equal(whole.inputs[name], parts.inputs[name]) for name in whole.inputs)


def test_without_a_tile_the_processor_scales(bridges):
    prompt = bridges[None].prompt(asked(noise(768, 768)), {"max_new_tokens": 1})
    assert int(prompt.modality.sum()) == 64
