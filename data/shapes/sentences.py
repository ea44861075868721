"""Sentences that single out one object of a scene: at most one of each kind for every object."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from .objects import KINDS
from .queries import (
    ATTRIBUTES,
    DIRECTIONS,
    REGIONS,
    RELATIONS,
    Attribute,
    Descriptor,
    Extreme,
    Ordinal,
    Query,
    Region,
    Relation,
    View,
    referent,
)
from .words import ORDINALS, wording

# What a target may be called where position, relation or rank does the rest; an empty one is "the object".
_SHORT: Final[tuple[tuple[str, ...], ...]] = (
    (),
    ("shape",),
    ("shape",),
    ("colour",),
    ("colour", "shape"),
    ("texture",),
    ("size", "shape"),
    ("texture", "shape"),
)
_TRIES: Final = 14


@dataclass(frozen=True)
class SceneSentence:
    """A sentence that holds for exactly one object of its scene, which of the four kinds it is, and what it says."""

    text: str
    object_index: int
    kind: str
    query: Query


def sentence_kind(sentence: Mapping[str, Any] | int) -> str:
    """The kind of a sentence that `write_refcoco` wrote: its dict, or its sent_id (the remainder by 4)."""
    return KINDS[sentence % len(KINDS)] if isinstance(sentence, int) else str(sentence["kind"])


class _Speaker:
    """Finds things to say about one object at a time, in a method for each of KINDS; all choices come from `dice`."""

    def __init__(self, view: View, dice: random.Random) -> None:
        self.view = view
        self.dice = dice
        # An attribute that all objects share says nothing: nobody would call the only size "large".
        varied = {name: len({getattr(item, name) for item in view.objects}) > 1 for name in ATTRIBUTES}
        self.useful = {name for name in ATTRIBUTES if varied[name] or name in ("colour", "shape")}

    def describe(self, index: int, names: Sequence[str]) -> Descriptor | None:
        if not self.useful.issuperset(names):
            return None
        item = self.view.objects[index]
        return Descriptor(**{name: getattr(item, name) for name in names})

    def unique(self, index: int) -> list[Descriptor]:
        """Descriptors that fit this object alone, shortest first."""
        choices = (names for count in range(1, len(ATTRIBUTES) + 1) for names in combinations(ATTRIBUTES, count))
        descriptors = (self.describe(index, names) for names in choices)
        return [item for item in descriptors if item is not None and self.view.matching(item) == [index]]

    def attribute(self, index: int) -> Iterator[Query]:
        """Mostly no longer than needed, sometimes by one word; with the shape, if that is as short."""
        descriptors = self.unique(index)
        if not descriptors:
            return
        limit = descriptors[0].named + (self.dice.random() < 0.35)
        fit = [descriptor for descriptor in descriptors if descriptor.named <= limit]
        with_shape = [descriptor for descriptor in fit if descriptor.shape]
        yield Attribute(self.dice.choice(with_shape if with_shape and self.dice.random() < 0.75 else fit))

    def targets(self, index: int) -> Iterator[Descriptor]:
        for _ in range(_TRIES):
            descriptor = self.describe(index, self.dice.choice(_SHORT))
            if descriptor is not None:
                yield descriptor

    def position(self, index: int) -> Iterator[Query]:
        for target in self.targets(index):
            if len(self.view.matching(target)) < 2:
                continue
            if self.dice.random() < 0.5:
                yield Extreme(target, self.dice.choice(DIRECTIONS))
            else:
                yield Region(target, self.dice.choice(REGIONS))

    def relation(self, index: int) -> Iterator[Query]:
        others = [other for other in range(len(self.view.objects)) if other != index]
        names = {other: self.unique(other) for other in others}
        anchors = [other for other in others if names[other]]
        if not anchors:
            return
        item = self.view.objects[index]
        meeting = [other for other in anchors if item.covered_by[other] or self.view.objects[other].covered_by[index]]
        for target in self.targets(index):
            # Occlusion is rare, so where there is some, it is spoken of more often than chance would.
            other = self.dice.choice(meeting if meeting and self.dice.random() < 0.5 else anchors)
            options = names[other]
            anchor = self.dice.choice([option for option in options if option.named == options[0].named])
            if len(self.view.matching(target)) < 2 and self.dice.random() < 0.7:
                continue  # the relation would add nothing
            relations = list(RELATIONS)
            self.dice.shuffle(relations)
            if other in meeting:
                relations.sort(key=lambda relation: relation not in ("front", "behind"))
            for relation in relations:
                yield Relation(target, relation, anchor)

    def ordinal(self, index: int) -> Iterator[Query]:
        for target in self.targets(index):
            direction = self.dice.choice(DIRECTIONS)
            matching = self.view.matching(target)
            place = self.view.along(index, direction)
            rank = 1 + sum(self.view.along(other, direction) < place for other in matching)
            # "The first" of two is better said "the left": an ordinal needs something to count.
            if (len(matching) >= 3 and rank <= len(ORDINALS)) or (len(matching) == 2 and rank == 2):
                yield Ordinal(target, rank, direction)


def write_sentences(view: View, dice: random.Random) -> list[SceneSentence]:
    """All sentences of a scene, object by object, every one checked to single its object out."""
    speaker = _Speaker(view, dice)
    sentences = []
    for index in range(len(view.objects)):
        for kind in KINDS:
            for query in getattr(speaker, kind)(index):
                if referent(query, view) == index:
                    text = wording(query, dice, matches=len(view.matching(query.target)))
                    sentences.append(SceneSentence(text, index, kind, query))
                    break
    return sentences


def swapped(owners: Sequence[tuple[int, int]], kinds: Sequence[str] | None = None) -> list[int | None]:
    """Pair every sentence with one about another object of its scene, of the same kind if there is one.

    `owners` holds (scene or image id, object or ref id) of each sentence. Returns the index of each sentence's
    partner, None if its scene speaks of one object only. Segmenting the partner's words and scoring against the
    sentence's own mask shows whether a model reads the words.
    """
    scenes: dict[int, list[int]] = {}
    for index, (scene, _) in enumerate(owners):
        scenes.setdefault(scene, []).append(index)
    partners: list[int | None] = []
    for index, (scene, item) in enumerate(owners):
        members = scenes[scene]
        start = members.index(index)
        others = [other for other in members[start + 1 :] + members[:start] if owners[other][1] != item]
        alike = [other for other in others if kinds is not None and kinds[other] == kinds[index]]
        partners.append(next(iter(alike or others), None))
    return partners
