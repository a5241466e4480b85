"""Stage 1 and 2: the vision tower learns to name what each cell holds, the projector to say it.

Stage 1 trains the tower with one linear read-out per attribute of a cell. Stage 2 fits the
projector so that an image token becomes the sum of the word embeddings of what its cell holds.
"""

from __future__ import annotations

import time
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.drawing import world
from harness.drawing.render import render
from harness.drawing.world import Scene
from scripts.tiny_vlm.build import vocabulary

# What a cell can hold. The first four concern the item in it and are "none" on empty cells.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "value": ("none", *world.SHAPES, *(f"digit {d}" for d in world.DIGITS), *world.WORDS),
    "color": ("none", *world.COLORS, "black"),
    "size": ("none", "small", "large"),
    "anchor": ("none", "anchor"),
    "corner": world.CORNERS,
    "background": world.BACKGROUNDS,
    "brightness": world.BRIGHTNESS,
}


def labels(scene: Scene) -> np.ndarray:
    """Class of each attribute in each cell, int64 [64, attributes]."""
    names = list(ATTRIBUTES)
    out = np.zeros((world.GRID**2, len(names)), dtype=np.int64)
    for cell in range(world.GRID**2):
        row, col = divmod(cell, world.GRID)
        out[cell, names.index("corner")] = 2 * (row >= world.GRID // 2) + (col >= world.GRID // 2)
    out[:, names.index("background")] = world.BACKGROUNDS.index(scene.background)
    out[:, names.index("brightness")] = world.BRIGHTNESS.index(scene.brightness)
    for item in scene.items:
        value = f"digit {item.value}" if item.kind == "digit" else item.value
        found = [
            ATTRIBUTES["value"].index(value),
            ATTRIBUTES["color"].index(item.color),
            ATTRIBUTES["size"].index(item.size),
        ]
        out[item.cells(), :3] = found
        if item.kind == "shape":
            out[item.cells()[0], 3] = 1
    return out


def pixels(scenes: list[Scene]) -> Tensor:
    """Rendered scenes as the processor would hand them over, float32 [n, 3, side, side]."""
    images = np.stack([np.asarray(render(scene)) for scene in scenes])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def features(model: nn.Module, scenes: list[Scene], batch: int = 128) -> Tensor:
    """Features of the frozen tower, float32 [n, 64, hidden]."""
    parts = []
    device = next(model.parameters()).device
    with torch.inference_mode():
        for start in range(0, len(scenes), batch):
            parts.append(_tower(model, pixels(scenes[start : start + batch]).to(device)))
    return torch.cat(parts)


def _tower(model: nn.Module, images: Tensor) -> Tensor:
    """The patch features that LLaVA hands to its projector, [n, 64, hidden]."""
    return model.model.vision_tower(images, output_hidden_states=True).hidden_states[-1][:, 1:]


def train_tower(model: nn.Module, rng: Random, steps: int, batch: int, log) -> dict[str, float]:
    """Stage 1; returns the accuracy of each attribute on new scenes (items: on occupied cells)."""
    tower = model.model.vision_tower
    width = tower.config.hidden_size
    device = next(tower.parameters()).device
    heads = nn.ModuleDict({name: nn.Linear(width, len(c)) for name, c in ATTRIBUTES.items()})
    heads.to(device)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.05)
    start = time.perf_counter()
    for step in range(steps):
        scenes = [world.sample_scene(rng) for _ in range(batch)]
        target = torch.from_numpy(np.stack([labels(scene) for scene in scenes])).to(device)
        hidden = _tower(model, pixels(scenes).to(device))
        occupied = target[..., 0] > 0
        weight = torch.where(occupied, 8.0, 1.0)  # most cells are empty
        loss = hidden.new_zeros(())
        for index, head in enumerate(heads.values()):
            each = F.cross_entropy(
                head(hidden).flatten(0, 1), target[..., index].flatten(), reduction="none"
            )
            loss = loss + (each * weight.flatten()).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            log(f"tower step {step + 1} loss {loss.item():.3f} {time.perf_counter() - start:.0f} s")
    return _tower_accuracy(model, heads, rng)


@torch.inference_mode()
def _tower_accuracy(model: nn.Module, heads: nn.ModuleDict, rng: Random) -> dict[str, float]:
    scenes = [world.sample_scene(rng) for _ in range(400)]
    device = next(heads.parameters()).device
    target = torch.from_numpy(np.stack([labels(scene) for scene in scenes])).to(device)
    hidden = _tower(model, pixels(scenes).to(device))
    occupied, result = target[..., 0] > 0, {}
    for index, (name, head) in enumerate(heads.items()):
        hit = head(hidden).argmax(-1) == target[..., index]
        where = occupied if name in ("value", "color", "size") else torch.ones_like(occupied)
        result[name] = hit[where].float().mean().item()
    return result


def _word_bags(scenes: list[Scene], embedding: Tensor) -> Tensor:
    """The sum of the word embeddings of what each cell holds, [n, 64, d]."""
    word = {w: i for i, w in enumerate(vocabulary())}
    said = {
        "value": [[]] + [v.split() for v in ATTRIBUTES["value"][1:]],
        "color": [[]] + [[c] for c in world.COLORS] + [[]],
        "size": [[], [], ["largest"]],
        "anchor": [[], ["shapes"]],
        "corner": [[c] for c in world.CORNERS],
        "background": [[b] for b in world.BACKGROUNDS],
        "brightness": [[b] for b in world.BRIGHTNESS],
    }
    for texts in said["value"][-len(world.WORDS) :]:
        texts.append("word")
    target = torch.from_numpy(np.stack([labels(scene) for scene in scenes]))
    total = embedding.new_zeros(*target.shape[:2], embedding.shape[1])
    for index, name in enumerate(ATTRIBUTES):
        bags = torch.stack(
            [
                sum((embedding[word[w]] for w in bag), embedding.new_zeros(embedding.shape[1]))
                for bag in said[name]
            ]
        )
        total += bags[target[..., index].to(embedding.device)] * (0.5 if index > 3 else 1.0)
    return total


def align_projector(model: nn.Module, rng: Random, steps: int, batch: int, log) -> float:
    """Stage 2; returns the share of the targets' variance that the projector explains."""
    projector = model.model.multi_modal_projector
    embedding = model.get_input_embeddings().weight.detach()
    scenes = [world.sample_scene(rng) for _ in range(3000)]
    hidden, target = features(model, scenes), _word_bags(scenes, embedding)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    loss = hidden.new_zeros(())
    for _ in range(steps):
        pick = torch.tensor(rng.sample(range(len(scenes)), batch), device=hidden.device)
        loss = F.mse_loss(projector(hidden[pick].clone()), target[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    explained = 1 - loss.item() / target.var().item()
    log(f"projector explains {explained:.3f} of the word sums")
    return explained
