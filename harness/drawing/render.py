"""Render a scene to pixels. Knows the world, knows nothing of questions or models."""

from __future__ import annotations

import math
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from harness.drawing.wall import Wall
from harness.drawing.world import GRID, Item, Scene

CELL = 16  # pixels; the vision tower's patch
SIDE = GRID * CELL
_SCALE = 4  # shapes are drawn larger and reduced, which smooths their edges

RGB = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (130, 50, 170),
    "orange": (245, 140, 30),
    "cyan": (50, 200, 215),
    "pink": (245, 150, 195),
    "black": (20, 20, 20),
}
_PAPER, _PATTERN = (250, 250, 250), (212, 212, 212)
_FACTOR = {"bright": 1.0, "dim": 0.72, "dark": 0.45}


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


@cache
def background(pattern: str) -> Image.Image:
    """An empty sheet of a pattern, [SIDE, SIDE] RGB."""
    image = Image.new("RGB", (SIDE, SIDE), _PAPER)
    draw = ImageDraw.Draw(image)
    if pattern == "dotted":
        for y in range(4, SIDE, 8):
            for x in range(4, SIDE, 8):
                draw.rectangle((x - 1, y - 1, x, y), fill=_PATTERN)
    elif pattern == "striped":
        for y in range(0, SIDE, 8):
            draw.rectangle((0, y, SIDE, y + 2), fill=_PATTERN)
    elif pattern == "checkered":
        for y in range(0, SIDE, 8):
            for x in range((y // 8 % 2) * 8, SIDE, 16):
                draw.rectangle((x, y, x + 7, y + 7), fill=(228, 228, 228))
    return image


def _regular(points: int, radii: tuple[float, ...], mid: float) -> list[tuple[float, float]]:
    """Corners on alternating radii around the middle, the first one straight up."""
    total = points * len(radii)
    return [
        (
            mid + radii[i % len(radii)] * math.sin(2 * math.pi * i / total),
            mid - radii[i % len(radii)] * math.cos(2 * math.pi * i / total),
        )
        for i in range(total)
    ]


@cache
def _shape(name: str, color: str, pixels: int) -> Image.Image:
    """A shape on a transparent square of `pixels`."""
    side = pixels * _SCALE
    image = Image.new("RGBA", (side, side), (*RGB[color], 0))
    draw = ImageDraw.Draw(image)
    fill, mid, r = (*RGB[color], 255), side / 2, side / 2 - _SCALE
    box = (mid - r, mid - r, mid + r, mid + r)
    if name == "circle":
        draw.ellipse(box, fill=fill)
    elif name == "ring":
        draw.ellipse(box, outline=fill, width=int(side * 0.2))
    elif name == "square":
        draw.rectangle((mid - 0.85 * r, mid - 0.85 * r, mid + 0.85 * r, mid + 0.85 * r), fill=fill)
    elif name == "triangle":
        draw.polygon([(mid, mid - r), (mid + r, mid + 0.85 * r), (mid - r, mid + 0.85 * r)], fill)
    elif name == "star":
        draw.polygon(_regular(5, (r, 0.42 * r), mid), fill=fill)
    elif name == "diamond":
        draw.polygon(_regular(2, (r, 0.7 * r), mid), fill=fill)
    elif name == "cross":
        draw.rectangle((mid - 0.32 * r, mid - r, mid + 0.32 * r, mid + r), fill=fill)
        draw.rectangle((mid - r, mid - 0.32 * r, mid + r, mid + 0.32 * r), fill=fill)
    elif name == "heart":
        draw.ellipse((mid - r, mid - 0.9 * r, mid, mid + 0.1 * r), fill=fill)
        draw.ellipse((mid, mid - 0.9 * r, mid + r, mid + 0.1 * r), fill=fill)
        draw.polygon(
            [(mid - 0.95 * r, mid - 0.2 * r), (mid + 0.95 * r, mid - 0.2 * r), (mid, mid + r)], fill
        )
    else:
        raise ValueError(f"There is no shape named {name!r}.")
    return image.resize((pixels, pixels), Image.Resampling.BOX)


def _draw_item(image: Image.Image, item: Item) -> None:
    left, top = item.col * CELL + item.jitter[0], item.row * CELL + item.jitter[1]
    if item.kind == "shape":
        pixels = item.width * CELL - 2
        shape = _shape(item.value, item.color, pixels)
        image.paste(shape, (left + 1, top + 1), shape)
        return
    middle = (left + item.width * CELL / 2, top + item.height * CELL / 2)
    draw = ImageDraw.Draw(image)
    draw.text(middle, item.value, fill=RGB[item.color], font=_font(13), anchor="mm")


def render(scene: Scene) -> Image.Image:
    """Draw a scene as a [SIDE, SIDE] RGB picture."""
    image = background(scene.background).copy()
    for item in scene.items:
        _draw_item(image, item)
    factor = _FACTOR[scene.brightness]
    return image if factor == 1.0 else image.point(lambda value: int(value * factor))


def render_wall(wall: Wall) -> Image.Image:
    """Draw the tiles of a wall side by side, [across * SIDE, across * SIDE] RGB."""
    image = Image.new("RGB", (wall.across * SIDE,) * 2)
    for at, tile in enumerate(wall.tiles):
        row, col = divmod(at, wall.across)
        image.paste(render(tile), (col * SIDE, row * SIDE))
    return image
