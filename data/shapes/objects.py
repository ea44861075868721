"""What a generated scene is made of: the attributes, the pairs kept for testB, and one object's description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SPLITS: Final = ("train", "val", "testA", "testB")
KINDS: Final = ("attribute", "position", "relation", "ordinal")

SHAPES: Final = ("circle", "square", "triangle", "bar", "star", "ring", "cross", "oval")
SIZES: Final = ("small", "large")
TEXTURES: Final = ("plain", "striped", "dotted")
# Mean RGB of each colour; an object's own colour lies within COLOUR_JITTER of it.
COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (214, 40, 42),
    "orange": (245, 138, 20),
    "yellow": (245, 222, 50),
    "green": (44, 160, 60),
    "cyan": (60, 210, 222),
    "blue": (40, 80, 215),
    "purple": (142, 60, 182),
    "white": (240, 240, 238),
}
COLOUR_JITTER: Final = 12

# (colour, shape) pairs that only testB shows: 10 of 64, each shape and each colour at most twice.
HELD_OUT: Final = frozenset(
    {
        ("red", "square"),
        ("orange", "star"),
        ("yellow", "ring"),
        ("green", "triangle"),
        ("cyan", "cross"),
        ("blue", "circle"),
        ("purple", "bar"),
        ("white", "oval"),
        ("red", "ring"),
        ("blue", "triangle"),
    }
)

# Diameters in pixels of a 240x240 image; other sizes scale with the square root of the area. The gap between the two
# classes (1.36 in diameter, 1.85 in area) is what makes "small" and "large" safe words.
DIAMETERS: Final[dict[str, tuple[float, float]]] = {"small": (42.0, 50.0), "large": (68.0, 82.0)}
REFERENCE_SIDE: Final = 240.0
MIN_AREA: Final = 0.015  # of the image, visible
MIN_VISIBLE: Final = 0.62  # of the object


@dataclass(frozen=True)
class SceneObject:
    """One object; later objects of a scene lie in front of earlier ones.

    Lengths are in pixels. `position`, `diameter`, `angle` (radians), `rgb`, `shade` and `period` say how it is drawn;
    `centre` (x, y), `area` and `visible` (a fraction) describe what can be seen of it, and `covered_by[j]` is the part
    of it that object j visibly covers, relative to the smaller of the two.
    """

    shape: str
    colour: str
    size: str
    texture: str
    position: tuple[float, float]
    diameter: float
    angle: float
    rgb: tuple[int, int, int]
    shade: tuple[int, int, int]
    period: float
    texture_angle: float
    centre: tuple[float, float] = (0.0, 0.0)
    area: int = 0
    visible: float = 1.0
    covered_by: tuple[float, ...] = ()

    @property
    def held_out(self) -> bool:
        """Whether colour and shape are a pair that only testB shows."""
        return (self.colour, self.shape) in HELD_OUT
