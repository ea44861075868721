"""What a sentence says, as a small structure, and whether it holds for each object of a scene.

Every query is judged in three values: True and False are meant to be beyond doubt for a person who looks at the
picture, None is everything between. A query singles an object out if it is True there and False everywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from .objects import SceneObject

ATTRIBUTES: Final = ("size", "texture", "colour", "shape")
DIRECTIONS: Final = ("left", "right", "top", "bottom")
REGIONS: Final = ("left", "right", "top", "bottom", "top left", "top right", "bottom left", "bottom right", "middle")
RELATIONS: Final = ("left", "right", "above", "below", "nearest", "front", "behind")

# Fractions of the image's width (or height): what must separate a True from a False.
EXTREME_MARGIN: Final = 0.07
ORDINAL_MARGIN: Final = 0.07
RELATION_MARGIN: Final = 0.11
NEAREST_MARGIN: Final = 0.09
# Occlusion, as a fraction of the smaller object.
OVERLAP_MARGIN: Final = 0.06


@dataclass(frozen=True)
class Descriptor:
    """The attributes that a noun phrase names; None if it does not."""

    size: str | None = None
    texture: str | None = None
    colour: str | None = None
    shape: str | None = None

    def matches(self, item: SceneObject) -> bool:
        """Whether every named attribute is the object's."""
        return all(value in (None, getattr(item, name)) for name, value in vars(self).items())

    @property
    def named(self) -> int:
        """How many attributes are named."""
        return sum(getattr(self, name) is not None for name in ATTRIBUTES)


@dataclass(frozen=True)
class Attribute:
    """ "the red circle"."""

    target: Descriptor


@dataclass(frozen=True)
class Extreme:
    """ "the leftmost circle": of those that match, the one furthest in a direction."""

    target: Descriptor
    direction: str


@dataclass(frozen=True)
class Region:
    """ "the circle in the top left corner"."""

    target: Descriptor
    region: str


@dataclass(frozen=True)
class Relation:
    """ "the circle above the blue square"; the anchor alone must single out one object."""

    target: Descriptor
    relation: str
    anchor: Descriptor


@dataclass(frozen=True)
class Ordinal:
    """ "the second circle from the left"; rank counts from 1."""

    target: Descriptor
    rank: int
    direction: str


Query = Attribute | Extreme | Region | Relation | Ordinal


@dataclass(frozen=True)
class View:
    """The objects of a scene with the image's size (width, height) in pixels."""

    objects: Sequence[SceneObject]
    size: tuple[int, int]

    def matching(self, descriptor: Descriptor) -> list[int]:
        """Indices of the objects that a descriptor fits."""
        return [index for index, item in enumerate(self.objects) if descriptor.matches(item)]

    def along(self, index: int, direction: str) -> float:
        """How far an object lies from the edge that a direction names, as a fraction of the image."""
        x, y = self.objects[index].centre
        fraction = x / self.size[0] if direction in ("left", "right") else y / self.size[1]
        return fraction if direction in ("left", "top") else 1 - fraction


def _banded(value: float, surely: float, surely_not: float) -> bool | None:
    """True up to `surely`, False from `surely_not` on, None between."""
    return True if value <= surely else False if value >= surely_not else None


def in_region(view: View, index: int, region: str) -> bool | None:
    """Whether an object's centre lies in a region of the image."""
    if region == "middle":
        off = max(abs(view.along(index, "left") - 0.5), abs(view.along(index, "top") - 0.5))
        return _banded(off, 0.10, 0.22)
    sides = region.split()
    limits = (0.36, 0.50) if len(sides) == 2 else (0.38, 0.53)
    truths = [_banded(view.along(index, side), *limits) for side in sides]
    return False if False in truths else None if None in truths else True


def _related(view: View, index: int, anchor: int, relation: str) -> bool | None:
    """Whether an object stands in a relation (any but "nearest") to another one."""
    item, other = view.objects[index], view.objects[anchor]
    if relation in ("front", "behind"):
        covered = other.covered_by[index] if relation == "front" else item.covered_by[anchor]
        return True if covered >= OVERLAP_MARGIN else False if covered == 0 else None
    direction = {"above": "top", "below": "bottom"}.get(relation, relation)
    gap = view.along(anchor, direction) - view.along(index, direction)
    dx, dy = abs(item.centre[0] - other.centre[0]), abs(item.centre[1] - other.centre[1])
    ahead, aside = (dx, dy) if relation in ("left", "right") else (dy, dx)
    if gap <= 0.03:
        return False
    return True if gap >= RELATION_MARGIN and aside <= ahead else None


def _nearest(view: View, candidates: Sequence[int], anchor: int) -> int | None:
    """The candidate that is clearly nearest to the anchor, from centre to centre and from edge to edge alike."""
    unit = math.sqrt(view.size[0] * view.size[1])
    x, y = view.objects[anchor].centre
    items = [(index, view.objects[index]) for index in candidates]
    away = {index: math.hypot(item.centre[0] - x, item.centre[1] - y) for index, item in items}
    nearest = set()
    for part in (0.0, 0.5):  # of a diameter: to centres, to edges
        order = sorted(((away[index] - part * item.diameter) / unit, index) for index, item in items)
        if len(order) < 2 or order[1][0] - order[0][0] < NEAREST_MARGIN:
            return None
        nearest.add(order[0][1])
    return nearest.pop() if len(nearest) == 1 else None


def _ranked(view: View, candidates: Sequence[int], query: Extreme | Ordinal) -> dict[int, bool | None]:
    rank, margin = (query.rank, ORDINAL_MARGIN) if isinstance(query, Ordinal) else (1, EXTREME_MARGIN)
    places = sorted((view.along(index, query.direction), index) for index in candidates)
    if len(places) < max(rank, 2):
        return {}
    # Every place up to and after the one that is asked for must be clear, or counting to it is not.
    clear = all(after[0] - before[0] >= margin for before, after in pairwise(places[: rank + 1]))
    return {index: place == rank if clear else None for place, (_, index) in enumerate(places, start=1)}


def referent(query: Query, view: View) -> int | None:
    """The one object that a query singles out, or None if there is none or any doubt."""
    candidates = view.matching(query.target)
    truth: dict[int, bool | None]
    if isinstance(query, Attribute):
        truth = dict.fromkeys(candidates, True)
    elif isinstance(query, Region):
        truth = {index: in_region(view, index, query.region) for index in candidates}
    elif isinstance(query, Relation):
        anchors = view.matching(query.anchor)
        if len(anchors) != 1:
            return None
        candidates = [index for index in candidates if index != anchors[0]]
        if query.relation == "nearest":
            return _nearest(view, candidates, anchors[0])
        truth = {index: _related(view, index, anchors[0], query.relation) for index in candidates}
    else:
        truth = _ranked(view, candidates, query)
    sure = [index for index, holds in truth.items() if holds]
    return sure[0] if len(sure) == 1 and None not in truth.values() else None
