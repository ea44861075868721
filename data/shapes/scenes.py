"""Scenes of simple objects: what is in them, where it lies, what can be seen of it and what is said of it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from . import render as drawing
from .objects import (
    COLOUR_JITTER,
    COLOURS,
    DIAMETERS,
    HELD_OUT,
    KINDS,
    MIN_AREA,
    MIN_VISIBLE,
    REFERENCE_SIDE,
    SHAPES,
    SIZES,
    SPLITS,
    TEXTURES,
    SceneObject,
)
from .queries import View
from .sentences import SceneSentence, write_sentences

_TEXTURE_WEIGHTS: Final = (50, 25, 25)
_PLACES: Final = 40  # positions tried for an object before the scene is given up
_LIGHT: Final = ("yellow", "cyan", "white", "orange")  # shaded darker; the others lighter or darker by chance


@dataclass(frozen=True)
class Scene:
    """A scene: objects from back to front, the image's size (width, height) and the seed of all that is left."""

    split: str
    size: tuple[int, int]
    objects: tuple[SceneObject, ...]
    seed: int

    @cached_property
    def _owners(self) -> NDArray[np.uint8]:
        stencils = [drawing.stencil(item) for item in self.objects]
        return drawing.reduce_owners(drawing.owners(stencils, self.size))

    def render(self) -> NDArray[np.uint8]:
        """The picture: RGB uint8 (H, W, 3)."""
        return drawing.render(self.objects, self.size, self.seed)

    def masks(self) -> NDArray[np.bool_]:
        """What is visible of each object: bool (n, H, W), disjoint."""
        return self._owners[None] == np.arange(1, len(self.objects) + 1, dtype=np.uint8)[:, None, None]

    def sentences(self) -> list[SceneSentence]:
        """Sentences that hold for exactly one object each; those of a testB scene are about held-out pairs."""
        sentences = write_sentences(View(self.objects, self.size), random.Random(self.seed ^ 0x5EED))
        return [item for item in sentences if self.split != "testB" or self.objects[item.object_index].held_out]


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator of one scene of a data set: scene i is the same however many are made."""
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    return np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), index]))


def _attributes(dice: random.Random, split: str) -> list[tuple[str, str, str, str]]:
    """(shape, colour, size, texture) of 3 to 6 objects, from few shapes and colours, so that one word rarely does."""
    count = dice.choice((3, 4, 4, 5, 5, 6))
    kept = sorted(HELD_OUT)
    leads = [dice.choice(kept) for _ in range(dice.choice((2, 2, 3)))] if split == "testB" else []
    pairs: list[tuple[str, str]] = []
    while not pairs:
        shapes = dice.sample(SHAPES, dice.choice((1, 2, 2, 3)))
        colours = dice.sample(tuple(COLOURS), dice.choice((2, 2, 3, 4)))
        for colour, shape in leads:
            shapes, colours = [shape, *shapes[:-1]], [colour, *colours[:-1]]
        pairs = [(c, s) for c in dict.fromkeys(colours) for s in dict.fromkeys(shapes) if (c, s) not in HELD_OUT]
    chosen = leads + [dice.choice(pairs) for _ in range(count - len(leads))]
    dice.shuffle(chosen)
    big = dice.choice((0.2, 0.4, 0.6))
    sizes = [SIZES[dice.random() < big] for _ in chosen]
    while sizes.count("large") > 8 - count:
        sizes[sizes.index("large")] = "small"
    textures = dice.choices(TEXTURES, _TEXTURE_WEIGHTS, k=count)
    return [(s, c, size, texture) for (c, s), size, texture in zip(chosen, sizes, textures, strict=True)]


def _shade(colour: str, rgb: tuple[int, int, int], dice: random.Random) -> tuple[int, int, int]:
    """The second colour of a texture: the first one, clearly darker or lighter."""
    if colour in _LIGHT or dice.random() < 0.5:
        k = dice.uniform(0.42, 0.55)
        return int(rgb[0] * k), int(rgb[1] * k), int(rgb[2] * k)
    k = dice.uniform(0.5, 0.62)
    return int(rgb[0] + (255 - rgb[0]) * k), int(rgb[1] + (255 - rgb[1]) * k), int(rgb[2] + (255 - rgb[2]) * k)


_TURNS: Final = {"square": 0.3, "triangle": 0.4, "cross": 0.35, "circle": 0.0}  # radians either way; others any


def _object(kind: tuple[str, str, str, str], unit: float, dice: random.Random) -> SceneObject:
    shape, colour, size, texture = kind
    turn = _TURNS.get(shape, math.pi)
    r, g, b = (min(max(level + dice.randint(-COLOUR_JITTER, COLOUR_JITTER), 0), 255) for level in COLOURS[colour])
    return SceneObject(
        shape=shape,
        colour=colour,
        size=size,
        texture=texture,
        position=(0.0, 0.0),
        diameter=dice.uniform(*DIAMETERS[size]) * unit,
        angle=dice.uniform(-turn, turn),
        rgb=(r, g, b),
        shade=_shade(colour, (r, g, b), dice),
        period=dice.uniform(9.0, 12.0) * unit,
        texture_angle=dice.uniform(0.0, math.pi),
    )


def _place(items: list[SceneObject], size: tuple[int, int], dice: random.Random) -> list[SceneObject] | None:
    """Give every object a position inside the image; None if there is no room."""
    overlapping = dice.random() < 0.5
    placed: list[tuple[SceneObject, float]] = []
    for item in items:
        ex, ey = drawing.half_extent(item.shape, item.diameter, item.angle)
        reach = max(math.hypot(ex, ey) if item.shape in ("bar", "square", "oval") else 0.0, item.diameter * 0.65)
        for _ in range(_PLACES):
            x, y = dice.uniform(ex + 2, size[0] - ex - 2), dice.uniform(ey + 2, size[1] - ey - 2)
            for other, other_reach in placed:
                distance = math.hypot(other.position[0] - x, other.position[1] - y)
                near = 0.4 * (item.diameter + other.diameter)
                # Objects of one colour must not touch: their border could not be seen.
                apart = overlapping and item.colour != other.colour
                if distance < (near if apart else reach + other_reach + 3):
                    break
            else:
                placed.append((replace(item, position=(x, y)), reach))
                break
        else:
            return None
    return [item for item, _ in placed]


def _measured(items: list[SceneObject], size: tuple[int, int]) -> tuple[SceneObject, ...] | None:
    """Fill in what is visible of each object; None if one is too small or too hidden."""
    stencils = [drawing.stencil(item) for item in items]
    fine = drawing.owners(stencils, size)
    step = drawing.SCALE
    measured = []
    silhouettes = [np.asarray(stencil.mask) > 0 for stencil in stencils]
    wholes = [int(np.count_nonzero(silhouette)) for silhouette in silhouettes]
    for index, (item, stencil) in enumerate(zip(items, stencils, strict=True)):
        (x, y), (height, width) = stencil.corner, silhouettes[index].shape
        window = fine[y : y + height, x : x + width]
        shown = np.bincount(window[silhouettes[index]], minlength=len(items) + 1)
        own = int(shown[index + 1])
        if own < MIN_VISIBLE * wholes[index] or own < 1.02 * MIN_AREA * size[0] * size[1] * step * step:
            return None
        mine = window == index + 1
        centre_x = x + float(np.dot(mine.sum(axis=0), np.arange(width) + 0.5)) / own
        centre_y = y + float(np.dot(mine.sum(axis=1), np.arange(height) + 0.5)) / own
        covered = [int(shown[j + 1]) / min(wholes[index], wholes[j]) if j != index else 0.0 for j in range(len(items))]
        centre = (centre_x / step, centre_y / step)
        seen = own / wholes[index]
        measured.append(replace(item, centre=centre, area=own // step**2, visible=seen, covered_by=tuple(covered)))
    return tuple(measured)


def generate_scene(rng: np.random.Generator, *, split: str, size: tuple[int, int] = (240, 240)) -> Scene:
    """Make up a scene of a split; `size` is (width, height) in pixels, from 96, neither side over 1.6 times the other.

    Raises InputError for a split or size that cannot be drawn.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    if min(size) < 96 or max(size) > 1.6 * min(size):
        raise InputError(f"cannot draw a scene of {size[0]}x{size[1]}: sides from 96, at most 1.6 to 1")
    seed = int(rng.integers(2**48))
    dice = random.Random(seed)
    unit = math.sqrt(size[0] * size[1]) / REFERENCE_SIDE
    while True:
        items = [_object(kind, unit, dice) for kind in _attributes(dice, split)]
        placed = _place(items, size, dice)
        objects = None if placed is None else _measured(placed, size)
        if objects is not None:
            return Scene(split, size, objects, seed)


def scene_at(seed: int, split: str, index: int, sizes: Sequence[tuple[int, int]] = ((240, 240),)) -> Scene:
    """Scene number `index` of a data set, as `write_refcoco` writes it; the sizes are taken in turn."""
    return generate_scene(scene_rng(seed, split, index), split=split, size=sizes[index % len(sizes)])


def sample(
    rng: np.random.Generator, split: str = "train", size: tuple[int, int] = (240, 240)
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], str, str]:
    """One training example on the fly: image uint8 (H, W, 3), mask bool (H, W), sentence, kind (drawn evenly)."""
    while True:
        scene = generate_scene(rng, split=split, size=size)
        sentences = scene.sentences()
        wanted = KINDS[int(rng.integers(len(KINDS)))]
        fit = [sentence for sentence in sentences if sentence.kind == wanted]
        if fit:
            chosen = fit[int(rng.integers(len(fit)))]
            return scene.render(), scene.masks()[chosen.object_index], chosen.text, chosen.kind
