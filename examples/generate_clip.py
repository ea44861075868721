"""A clip to try the camera on: one object moves among four others, and the true mask of each is known.

    python examples/generate_clip.py clip.mp4 --truth truth.npz

prints a sentence for each object, first that of the one that moves. The objects are drawn like the scenes that the
built-in demo model was trained on, so its bundle can follow them. Needs OpenCV, which the extra `camera` has.
"""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import cv2
import numpy as np
from lavt_edge.data.shapes import HELD_OUT, Scene, SceneObject
from lavt_edge.data.shapes.objects import COLOURS, SHAPES
from lavt_edge.runtime import run_main
from numpy.typing import NDArray
from video_file import FOURCC, VideoFile
from whole_file import whole_file

FPS = 25.0
_CORNERS = tuple(product((0.18, 0.82), (0.22, 0.78)))  # of the image's width and height
_REACH = (0.3, 0.1)  # half axes of the path about the middle


@dataclass(frozen=True)
class Clip:
    """A clip and what is true of it.

    Attributes:
        frames: uint8 RGB (n, H, W, 3).
        truth: for each object's sentence its visible pixels, bool (n, H, W); the first is the one that moves.
    """

    frames: NDArray[np.uint8]
    truth: dict[str, NDArray[np.bool_]]

    @property
    def sentence(self) -> str:
        """Of the object that moves."""
        return next(iter(self.truth))


def make_clip(seed: int, frames: int, size: tuple[int, int] = (320, 240)) -> Clip:
    """A clip of `frames` frames of (width, height); the same seed gives the same clip."""
    scene = _scene(random.Random(seed), size)
    path = [_on_path(scene.objects[-1], size, step / frames) for step in range(frames)]
    scenes = [replace(scene, objects=(*scene.objects[:-1], item)) for item in path]
    masks = np.stack([scene.masks() for scene in scenes], axis=1)
    names = [f"the {item.colour} {item.shape}" for item in scene.objects]
    truth = dict(reversed(list(zip(names, masks, strict=True))))
    return Clip(np.stack([scene.render() for scene in scenes]), truth)


def _scene(dice: random.Random, size: tuple[int, int]) -> Scene:
    """Five objects of five colours and five shapes; the last lies in front of the others."""
    while True:
        kinds = list(zip(dice.sample(tuple(COLOURS), 5), dice.sample(SHAPES, 5), strict=True))
        if not HELD_OUT.intersection(kinds):
            break
    places = [(x * size[0], y * size[1]) for x, y in _CORNERS] + [(0.0, 0.0)]
    unit = math.sqrt(size[0] * size[1])
    objects = [
        SceneObject(
            shape=shape,
            colour=colour,
            size="small",
            texture="plain",
            position=place,
            diameter=dice.uniform(0.18, 0.2) * unit,
            angle=dice.uniform(-0.2, 0.2),
            rgb=COLOURS[colour],
            shade=COLOURS[colour],
            period=1.0,
            texture_angle=0.0,
        )
        for (colour, shape), place in zip(kinds, places, strict=True)
    ]
    return Scene("val", size, tuple(objects), dice.randrange(2**32))


def _on_path(item: SceneObject, size: tuple[int, int], turn: float) -> SceneObject:
    """The object on an ellipse about the middle; `turn` from 0 to 1."""
    x = size[0] * (0.5 + _REACH[0] * math.cos(2 * math.pi * turn))
    y = size[1] * (0.5 + _REACH[1] * math.sin(2 * math.pi * turn))
    return replace(item, position=(x, y))


def write_clip(path: Path, frames: NDArray[np.uint8]) -> None:
    """Write frames, uint8 RGB (n, H, W, 3), as a video, whole or not at all. Raises LavtError and OSError."""
    video = VideoFile(path, FPS)
    whole = False
    try:
        for frame in frames:
            video.write(np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), np.uint8))
        whole = True
    finally:
        video.close(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="the video to write, .mp4 or .avi")
    parser.add_argument("--truth", type=Path, help="an .npz for the true masks, bool (frames, H, W), by sentence")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.output.suffix not in FOURCC or options.frames < 1:
        parser.error("give a name that ends in .mp4 or .avi, and at least one frame")
    clip = make_clip(options.seed, options.frames)
    write_clip(options.output, clip.frames)
    if options.truth:
        with whole_file(options.truth) as partial, partial.open("wb") as stream:
            np.savez_compressed(stream, **clip.truth)  # type: ignore[arg-type]
    print(*clip.truth, sep="\n")


if __name__ == "__main__":
    run_main(main)
