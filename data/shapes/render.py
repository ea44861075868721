"""Drawing of generated scenes with Pillow: everything at twice the size, then reduced, so that edges are smooth."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from .objects import SceneObject

SCALE: Final = 2  # drawing pixels per image pixel
RIM: Final = 2  # width in image pixels of a textured object's untextured rim
_GRID: Final = 32  # the background is drawn this coarsely and enlarged: nothing in it has an object's sharp edge

Points = NDArray[np.float64]
Size = tuple[int, int]


def _ellipse(width: float, height: float) -> Points:
    t = np.arange(64) * (2 * math.pi / 64)
    return np.stack([np.cos(t) * width / 2, np.sin(t) * height / 2], axis=1)


def _box(width: float, height: float) -> Points:
    return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (width / 2, height / 2)


def _radial(radii: Sequence[float], corners: int) -> Points:
    t = np.arange(corners) * (2 * math.pi / corners) - math.pi / 2
    r = np.resize(np.asarray(radii), corners)
    return np.stack([np.cos(t) * r, np.sin(t) * r], axis=1)


def _cross(length: float, width: float) -> Points:
    a, b = length / 2, width / 2
    arm = [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]
    return np.array(arm)


# Outline and hole (or None) of each shape at diameter 1, about its centre; areas lie between 0.60 and 0.79.
_OUTLINES: Final[dict[str, tuple[Points, Points | None]]] = {
    "circle": (_ellipse(1.0, 1.0), None),
    "square": (_box(0.88, 0.88), None),
    "triangle": (_radial([0.70], 3), None),
    "bar": (_box(1.38, 0.49), None),
    "star": (_radial([0.65, 0.325], 10), None),
    "ring": (_ellipse(1.1, 1.1), _ellipse(0.55, 0.55)),
    "cross": (_cross(1.1, 0.38), None),
    "oval": (_ellipse(1.25, 0.75), None),
}


def outline(shape: str, diameter: float, angle: float) -> tuple[Points, Points | None]:
    """Polygons (k, 2) of a shape's outline and hole about its centre, in pixels; the angle turns it clockwise."""
    c, s = math.cos(angle) * diameter, math.sin(angle) * diameter
    turn = np.array([(c, s), (-s, c)])
    outer, hole = _OUTLINES[shape]
    return outer @ turn, None if hole is None else hole @ turn


def half_extent(shape: str, diameter: float, angle: float) -> tuple[float, float]:
    """Largest |x| and |y| of a shape about its centre, in pixels."""
    x, y = np.abs(outline(shape, diameter, angle)[0]).max(axis=0)
    return float(x), float(y)


@dataclass(frozen=True)
class Stencil:
    """One object's own silhouette: an 8-bit mask at SCALE, where its corner lies on the canvas, and its edges there."""

    mask: Image.Image
    corner: tuple[int, int]
    edges: tuple[tuple[float, ...], ...]


def stencil(item: SceneObject) -> Stencil:
    """The silhouette of an object, ignoring whatever lies in front of it."""
    outer, hole = outline(item.shape, item.diameter * SCALE, item.angle)
    centre = np.array(item.position) * SCALE
    low = np.floor((outer + centre).min(axis=0)).astype(int) - 1
    high = np.ceil((outer + centre).max(axis=0)).astype(int) + 2
    mask = Image.new("L", (int(high[0] - low[0]), int(high[1] - low[1])))
    draw = ImageDraw.Draw(mask)
    edges = []
    for points, fill in ((outer, 255), (hole, 0)):
        if points is not None:
            # Pillow counts pixel centres as whole numbers; ours lie at one half.
            edges.append(tuple((points + centre - low - 0.5).ravel().tolist()))
            draw.polygon(edges[-1], fill=fill)
    return Stencil(mask, (int(low[0]), int(low[1])), tuple(edges))


def owners(stencils: Sequence[Stencil], size: Size) -> NDArray[np.uint8]:
    """Which object shows at each drawing pixel: uint8 (SCALE H, SCALE W), 0 background, k for object k - 1."""
    canvas = Image.new("L", (size[0] * SCALE, size[1] * SCALE))
    for index, stencil in enumerate(stencils):
        canvas.paste(index + 1, stencil.corner, stencil.mask)
    return np.asarray(canvas)


def reduce_owners(fine: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The owner of each image pixel, uint8 (H, W): the one that holds most of its four drawing pixels."""
    a, b, c, d = fine[0::2, 0::2], fine[0::2, 1::2], fine[1::2, 0::2], fine[1::2, 1::2]
    tail = np.where(c == d, c, np.maximum(np.maximum(a, b), np.maximum(c, d)))
    middle = np.where((b == c) | (b == d), b, tail)
    return np.where((a == b) | (a == c) | (a == d), a, middle).astype(np.uint8)


def _background(size: Size, dice: random.Random, noise: np.random.Generator) -> Image.Image:
    """A muted gradient with soft blotches and patches and a few thin lines, at SCALE."""
    grey = dice.uniform(60, 135)
    ends = np.array([[grey + dice.uniform(-28, 28) + dice.uniform(-13, 13) for _ in range(3)] for _ in range(2)])
    angle = dice.uniform(0, 2 * math.pi)
    axis = np.linspace(-1, 1, _GRID)
    ramp = 0.5 + 0.35 * (axis[None, :] * math.cos(angle) + axis[:, None] * math.sin(angle))
    coarse = ends[0] + ramp[:, :, None] * (ends[1] - ends[0])
    coarse += noise.standard_normal((_GRID, _GRID, 1)) * dice.uniform(1, 7)
    for _ in range(dice.randrange(4)):
        x, y = dice.randrange(_GRID), dice.randrange(_GRID)
        patch = coarse[y : y + dice.randrange(4, 14), x : x + dice.randrange(4, 14)]
        patch += dice.uniform(-14, 14) + noise.standard_normal((*patch.shape[:2], 1)) * dice.uniform(0, 8)
    width, height = size[0] * SCALE, size[1] * SCALE
    tile = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    image = tile.resize(size, Image.Resampling.BILINEAR).resize((width, height), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    for _ in range(dice.randrange(7)):
        ends_xy = [dice.uniform(-0.1, 1.1) * side for side in (width, height, width, height)]
        level = int(grey + dice.choice((-1, 1)) * dice.uniform(12, 34))
        draw.line(ends_xy, fill=(level, level, level), width=dice.randrange(2, 5))
    return image


def _paint(item: SceneObject, outline: Stencil) -> Image.Image:
    """The object's surface, covering its silhouette: plain, striped or dotted, at SCALE."""
    box = outline.mask.size
    surface = Image.new("RGB", box, item.rgb)
    if item.texture == "plain":
        return surface
    draw = ImageDraw.Draw(surface)
    period = item.period * SCALE
    c, s = math.cos(item.texture_angle), math.sin(item.texture_angle)
    middle_x, middle_y = box[0] / 2, box[1] / 2
    reach = math.hypot(middle_x, middle_y)
    count = int(reach / period) + 1
    for row in range(-count, count + 1):
        if item.texture == "striped":
            x, y = middle_x - s * row * period, middle_y + c * row * period
            line = (x - c * reach, y - s * reach, x + c * reach, y + s * reach)
            draw.line(line, fill=item.shade, width=round(period * 0.45))
            continue
        for column in range(-count, count + 1):
            u, v = (column + 0.5 * (row & 1)) * period, row * period * 0.87
            x, y, r = middle_x + c * u - s * v, middle_y + s * u + c * v, period * 0.27
            if -r < x < box[0] + r and -r < y < box[1] + r:
                draw.ellipse((x - r, y - r, x + r, y + r), fill=item.shade)
    # A rim in the object's own colour keeps its outline whole if the texture is as dark as the background.
    for edge in outline.edges:
        draw.line(edge + edge[:4], fill=item.rgb, width=2 * RIM * SCALE)
    return surface


def render(objects: Sequence[SceneObject], size: Size, seed: int) -> NDArray[np.uint8]:
    """Draw a scene: RGB uint8 (H, W, 3). `size` is (width, height); `seed` decides background and noise."""
    dice = random.Random(seed)
    noise = np.random.default_rng(seed)
    canvas = _background(size, dice, noise)
    for item in objects:
        outline = stencil(item)
        canvas.paste(_paint(item, outline), outline.corner, outline.mask)
    # Triangular noise, one part grey and one coloured: cheaper than normal and as good here. The table sets the
    # exposure and takes the noise's mean off; the sum saturates.
    strength = dice.randrange(6, 26)
    exposure, offset = dice.uniform(0.82, 1.06), strength + 3
    table = [min(max(round(level * exposure) - offset, 0), 255) for level in range(256)]
    image = canvas.reduce(SCALE).point(table * 3)
    shape = (size[1], size[0])
    grain: NDArray[np.uint8] = np.frombuffer(noise.bytes(2 * shape[0] * shape[1]), np.uint8).reshape(2, *shape, 1)
    grain = ((grain * np.uint16(strength)) >> 8).astype(np.uint8)
    tint = np.frombuffer(noise.bytes(3 * shape[0] * shape[1]), np.uint8).reshape(*shape, 3) & 7
    return np.array(ImageChops.add(image, Image.fromarray(grain[0] + grain[1] + tint)))
