"""Fits the projector: a picture's token becomes the sum of the word embeddings of what it shows.

Occupied cells are drawn far more often than they occur, and each group of words is centred and
enlarged: with the plain squared error the many empty cells and the mean of a group decide, and
colours and digits cannot be told apart although most of the variance is explained. Words of places
are as loud as colours, and only where something lies: then they are copied as colours are.
"""

from __future__ import annotations

from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.drawing import world
from scripts.smol_vlm.rows import Words
from scripts.tiny_vlm import tower

OCCUPIED, EMPTY = 1400, 500  # cells a step
RATE = 3e-3


class Tables:
    """For each attribute of a cell, the vector that its value adds, [values, width]."""

    def __init__(self, embedding: Tensor, words: Words) -> None:
        def said(word: str) -> Tensor:
            return embedding[words.of(word)].sum(0)

        def group(names: tuple[str, ...], norm: float) -> Tensor:
            stack = torch.stack([said(name) for name in names])
            mean = stack.mean(0)
            return 0.5 * mean + norm * F.normalize(stack - mean, dim=1)

        none, mean = embedding.new_zeros(1, embedding.shape[1]), embedding.mean(0)
        self.by_name = {
            "value": torch.cat(
                (
                    none,
                    group(world.SHAPES, 2.5),
                    group(world.DIGITS, 2.5) + said("digit"),
                    group(world.WORDS, 2.5) + said("word"),
                )
            ),
            "color": torch.cat((none, group(world.COLORS, 2.5), none)),
            "size": torch.cat((none, none, said("largest")[None])),
            "anchor": torch.cat((none, 2.5 * F.normalize(said("shapes")[None] - mean, dim=1))),
            "corner": group(world.CORNERS, 2.5),
            "background": group(world.BACKGROUNDS, 1.0),
            "brightness": group(world.BRIGHTNESS, 1.0),
        }

    def of(self, labels: Tensor) -> Tensor:
        """The target of cells with these classes [..., attributes]."""
        said = {name: self.by_name[name][labels[..., i]] for i, name in enumerate(tower.ATTRIBUTES)}
        said["corner"] = said["corner"] * (labels[..., :1] > 0)
        return torch.stack(list(said.values())).sum(0)

    def readable(self, projected: Tensor, labels: Tensor) -> dict[str, float]:
        """How often the nearest word of a group is the right one, on cells that have one."""
        shapes, digits = len(world.SHAPES), len(world.DIGITS)
        spans = {
            "shape": ("value", 1, 1 + shapes),
            "digit": ("value", 1 + shapes, 1 + shapes + digits),
            "word": ("value", 1 + shapes + digits, len(self.by_name["value"])),
            "color": ("color", 1, 1 + len(world.COLORS)),
            "corner": ("corner", 0, len(world.CORNERS)),
        }
        found = {}
        for name, (attribute, first, end) in spans.items():
            table = self.by_name[attribute][first:end]
            right = labels[..., list(tower.ATTRIBUTES).index(attribute)]
            here = (right >= first) & (right < end) & (labels[..., 0] > 0)
            near = projected[here] @ F.normalize(table - table.mean(0), dim=1).T
            found[name] = (near.argmax(1) + first == right[here]).float().mean().item()
        return found


def _labels(scenes: list[world.Scene]) -> Tensor:
    return torch.from_numpy(np.stack([tower.labels(scene) for scene in scenes]))


def fit(model: nn.Module, words: Words, rng: Random, steps: int, count: int, log) -> dict:
    """Train the projector of `model` alone; returns how readable it makes new pictures."""
    projector = model.model.multi_modal_projector
    tables = Tables(model.get_input_embeddings().weight.detach(), words)
    scenes = [world.sample_scene(rng) for _ in range(count)]
    hidden, labels = tower.features(model, scenes).clone(), _labels(scenes)
    full = labels[..., 0] > 0
    parts = [(hidden[where], tables.of(labels[where])) for where in (full, ~full)]
    mean, deviation = parts[0][0].mean(0), parts[0][0].std(0)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    for step in range(steps):
        pairs = []
        for (inputs, targets), number in zip(parts, (OCCUPIED, EMPTY), strict=True):
            pick = torch.randint(len(inputs), (number,))
            pairs.append((inputs[pick], targets[pick]))
        inputs, targets = (torch.cat(each) for each in zip(*pairs, strict=True))
        loss = F.mse_loss(projector((inputs - mean) / deviation), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 199:
            log(f"projector step {step + 1} loss {loss.item():.4f}")
    with torch.no_grad():  # the tower's features come as they are
        first = projector.linear_1
        first.weight /= deviation
        first.bias -= first.weight @ mean
        scenes = [world.sample_scene(rng) for _ in range(150)]
        projected = projector(tower.features(model, scenes).clone())
    return tables.readable(projected, _labels(scenes))
