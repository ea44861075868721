"""A second reading of the generated sentences: from the text to a test of the picture.

It shares no code with the generator.
"""

from __future__ import annotations

import re

import numpy as np
from lavt_edge.data.shapes import Scene

WORDS = {
    "shape": {
        "circle": "circle disc",
        "square": "square box",
        "triangle": "triangle",
        "bar": "bar rectangle",
        "star": "star",
        "ring": "ring hoop",
        "cross": "cross plus",
        "oval": "oval ellipse",
    },
    "size": {"small": "small little", "large": "large big"},
    "texture": {"plain": "plain solid", "striped": "striped stripes", "dotted": "dotted spotted dots spots"},
    "colour": {name: name for name in ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")},
}
MEANING = {
    word: (attribute, value)
    for attribute, values in WORDS.items()
    for value, words in values.items()
    for word in words.split()
}
ADJECTIVE = "|".join(word for word, (attribute, _) in MEANING.items() if attribute != "shape")
NOUN = "|".join([word for word, (attribute, _) in MEANING.items() if attribute == "shape"] + ["object|thing|shape|one"])
PHRASE = rf"(?:(?:{ADJECTIVE}) ){{0,3}}(?:{NOUN})(?: with (?:stripes|dots|spots))?"
SIDE = "left|right|top|bottom"

GRAMMAR = [
    ("attribute", rf"(?P<x>{PHRASE})"),
    ("extreme", rf"(?P<end>leftmost|rightmost|topmost|uppermost|highest|bottommost|lowermost|lowest) (?P<x>{PHRASE})"),
    ("extreme", rf"(?P<x>{PHRASE}) (?:farthest to the|furthest) (?P<end>left|right)"),
    ("extreme", rf"(?P<end>left|right|top|upper|bottom|lower) (?P<x>{PHRASE})"),
    ("region", rf"(?P<x>{PHRASE}) (?:on|at|near) the (?P<where>{SIDE})(?: side)?"),
    ("region", rf"(?P<x>{PHRASE}) (?:in|at) the (?P<where>(?:top|bottom|upper|lower) (?:left|right))(?: corner)?"),
    ("region", rf"(?P<x>{PHRASE}) in the (?P<where>middle|center)"),
    ("beside", rf"(?P<x>{PHRASE}) (?:to the )?(?P<how>left|right) of the (?P<y>{PHRASE})"),
    ("beside", rf"(?P<x>{PHRASE}) (?:that is )?(?P<how>above|below) the (?P<y>{PHRASE})"),
    ("nearest", rf"(?P<x>{PHRASE}) (?:nearest|closest) to the (?P<y>{PHRASE})"),
    ("covers", rf"(?P<x>{PHRASE}) (?:in front of|partly covering) the (?P<y>{PHRASE})"),
    ("covered", rf"(?P<x>{PHRASE}) (?:behind|partly hidden by) the (?P<y>{PHRASE})"),
    ("ordinal", rf"(?P<rank>first|second|third|fourth) (?P<x>{PHRASE}) from the (?P<end>{SIDE})"),
    ("ordinal", rf"(?P<x>{PHRASE}) that is (?P<rank>first|second|third|fourth) from the (?P<end>{SIDE})"),
]
KIND = {"attribute": "attribute", "extreme": "position", "region": "position", "ordinal": "ordinal"}
EDGE = {
    "leftmost": "left",
    "rightmost": "right",
    "topmost": "top",
    "uppermost": "top",
    "highest": "top",
    "upper": "top",
    "bottommost": "bottom",
    "lowermost": "bottom",
    "lowest": "bottom",
    "lower": "bottom",
    "above": "top",
    "below": "bottom",
}


def parse(text: str) -> tuple[str, dict[str, str]]:
    bare = text.removeprefix("the ")
    readings = [(rule, match) for rule, form in GRAMMAR if (match := re.fullmatch(form, bare))]
    assert len(readings) == 1, f"{text!r} has {len(readings)} readings"
    rule, match = readings[0]
    return rule, match.groupdict()


class Picture:
    """What the masks show: centres as fractions of the image, and which objects bear which words."""

    def __init__(self, scene: Scene) -> None:
        self.objects, self.masks = scene.objects, scene.masks()
        self.height, self.width = self.masks.shape[1:]
        self.centres = []
        for mask in self.masks:
            ys, xs = np.nonzero(mask)
            self.centres.append(((xs.mean() + 0.5) / self.width, (ys.mean() + 0.5) / self.height))

    def called(self, phrase: str) -> set[int]:
        wanted = [MEANING[word] for word in phrase.split() if word in MEANING]
        return {i for i, one in enumerate(self.objects) if all(getattr(one, name) == value for name, value in wanted)}

    def depth(self, index: int, edge: str) -> float:
        x, y = self.centres[index]
        return {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}[edge]

    def distance(self, a: int, b: int) -> float:
        (ax, ay), (bx, by) = self.centres[a], self.centres[b]
        return float(np.hypot((ax - bx) * self.width, (ay - by) * self.height)) / (self.width * self.height) ** 0.5

    def touch(self, a: int, b: int) -> int:
        """Pixels of a that lie beside pixels of b."""
        near = np.zeros_like(self.masks[b])
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            near |= np.roll(self.masks[b], (dy, dx), (0, 1))
        return int((near & self.masks[a]).sum())


def holds_for(text: str, picture: Picture) -> tuple[set[int], set[int]]:
    """(objects for which the sentence surely holds, objects for which a person might think that it does)."""
    rule, parts = parse(text)
    fit = picture.called(parts["x"])
    if rule == "attribute":
        return fit, fit
    if rule in ("extreme", "ordinal"):
        edge = EDGE.get(parts["end"], parts["end"])
        rank = ["first", "second", "third", "fourth"].index(parts.get("rank") or "first")
        order = sorted(fit, key=lambda i: picture.depth(i, edge))
        asked = order[rank]
        clear = [i for i in order if i != asked and abs(picture.depth(i, edge) - picture.depth(asked, edge)) < 0.06]
        assert len(order) >= 2, f"{text!r} ranks a single object"
        return {asked}, {asked, *clear}
    if rule == "region":
        words = parts["where"].replace("upper", "top").replace("lower", "bottom").split()
        if words[0] in ("middle", "center"):
            off = {i: max(abs(v - 0.5) for v in picture.centres[i]) for i in fit}
        else:
            off = {i: max(picture.depth(i, edge) for edge in words) - 0.27 for i in fit}
        return {i for i in fit if off[i] < 0.12}, {i for i in fit if off[i] < 0.21}
    anchors = picture.called(parts["y"])
    assert len(anchors) == 1, f"{text!r} has {len(anchors)} anchors"
    (anchor,) = anchors
    fit -= anchors
    if rule == "nearest":
        order = sorted(fit, key=lambda i: picture.distance(i, anchor))
        near = picture.distance(order[0], anchor) + 0.085
        return {order[0]}, {i for i in order if i == order[0] or picture.distance(i, anchor) < near}
    if rule == "beside":
        edge = EDGE.get(parts["how"], parts["how"])
        ahead = {i: picture.depth(anchor, edge) - picture.depth(i, edge) for i in fit}
        across = 1 if edge in ("left", "right") else 0
        aside = {i: abs(picture.centres[i][across] - picture.centres[anchor][across]) for i in fit}
        ratio = picture.width / picture.height
        stretch = 1 / ratio if edge in ("left", "right") else ratio
        return {i for i in fit if ahead[i] > 0.105 and aside[i] * stretch < ahead[i] * 1.05}, {
            i for i in fit if ahead[i] > 0.035
        }
    front = {i for i in fit if picture.touch(i, anchor) > 2 and (i > anchor) == (rule == "covers")}
    return front, front
