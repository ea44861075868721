"""Batches of generated referring scenes for the demo model, each one a function of its step alone."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from itertools import count, product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...data.shapes import KINDS, VOCABULARY, Scene, SceneSentence, scene_at
from ...data.shapes.objects import COLOURS, SHAPES, SIZES, TEXTURES
from ...data.shapes.queries import (
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
)
from ...data.shapes.words import ORDINALS
from ...runtime.tokenizer import SentenceTokenizer, build_tokenizer

ATTRIBUTE_SIZES = (len(COLOURS), len(SHAPES), len(TEXTURES), len(SIZES))
NOTHING = -1
HINTS = 3
SAID = 8  # sentences of a scene that teach the text encoder
VALUES = {"size": SIZES, "texture": TEXTURES, "colour": tuple(COLOURS), "shape": SHAPES}  # as in Descriptor
_NAMED = [len(values) + 1 for values in VALUES.values()]  # 0 for an attribute that is not named
_CLAIMS: list[tuple[object, ...]] = [
    (Attribute,),
    *product([Extreme], DIRECTIONS),
    *product([Region], REGIONS),
    *product([Relation], RELATIONS),
    *product([Ordinal], DIRECTIONS),
]
MEANING_SIZES = (*_NAMED, *_NAMED, len(_CLAIMS), len(ORDINALS) + 1)
_SCENES = 32  # numbers that each step has to itself; the data is endless


@dataclass(frozen=True)
class Batch:
    """S scenes with R sentences each, of a scene's side by side."""

    images: Tensor  # uint8 (S,H,W,3)
    attributes: Tensor  # (S,4,G,G): colour, shape, texture and size of the object at each cell, or NOTHING
    input_ids: Tensor  # (S*R,T)
    attention_mask: Tensor  # (S*R,T)
    masks: Tensor  # bool (S*R,H,W)
    hints: Tensor  # bool (S*R,3,G,G): what the target's words fit, the anchor of a relation, the object that is meant
    said_ids: Tensor  # (S*SAID,T)
    said_mask: Tensor  # (S*SAID,T)
    meanings: Tensor  # (S*SAID,len(MEANING_SIZES)): what each of those says

    def part(self, index: int, parts: int) -> Batch:
        """The batch's `index`-th of `parts` equal parts."""
        return Batch(**{name: value.tensor_split(parts)[index] for name, value in vars(self).items()})


@cache
def demo_tokenizer() -> SentenceTokenizer:
    """The demo model's tokenizer."""
    return SentenceTokenizer(build_tokenizer(VOCABULARY))


def as_jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """The image after JPEG compression, which data sets on disk have been through."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(file).convert("RGB"))


def _chosen(sentences: list[SceneSentence], wanted: int, rng: np.random.Generator) -> list[SceneSentence]:
    """Sentences of as many kinds and about as many objects as there are."""
    chosen: list[SceneSentence] = []
    kinds = [KINDS[i] for i in rng.permutation(len(KINDS))]
    for turn in range(wanted):
        left = [sentence for sentence in sentences if sentence not in chosen] or sentences
        fit = [sentence for sentence in left if sentence.kind == kinds[turn % len(kinds)]] or left
        spoken_of = {sentence.object_index for sentence in chosen}
        new = [sentence for sentence in fit if sentence.object_index not in spoken_of] or fit
        chosen.append(new[int(rng.integers(len(new)))])
    return chosen


def _attributes(scene: Scene, owners: NDArray[np.int64]) -> NDArray[np.int64]:
    """(4, ...) from the object (or NOTHING) at each place."""
    names = ("colour", "shape", "texture", "size")
    table = [[*(VALUES[name].index(getattr(item, name)) for item in scene.objects), NOTHING] for name in names]
    return np.array(table)[:, owners]


def _hints(sentence: SceneSentence, view: View, owners: NDArray[np.int64]) -> NDArray[np.bool_]:
    query = sentence.query
    anchors = view.matching(query.anchor) if isinstance(query, Relation) else []
    return np.stack([np.isin(owners, c) for c in (view.matching(query.target), anchors, [sentence.object_index])])


def _named(descriptor: Descriptor) -> list[int]:
    return [1 + VALUES[name].index(value) if value else 0 for name, value in vars(descriptor).items()]


def meaning(query: Query) -> list[int]:
    """A query as one class number for each of MEANING_SIZES: target, anchor, claim, rank."""
    anchor = query.anchor if isinstance(query, Relation) else Descriptor()
    said = [value for name, value in vars(query).items() if name in ("relation", "region", "direction")]
    claim = _CLAIMS.index((type(query), *said))
    return [*_named(query.target), *_named(anchor), claim, query.rank if isinstance(query, Ordinal) else 0]


def make_batch(seed: int, step: int, scenes: int, sentences: int) -> Batch:
    """The batch of a training step."""
    rng = np.random.default_rng([seed, step])
    numbers = count(step * _SCENES)
    rows: list[list[tuple[NDArray[Any], ...]]] = [[], [], []]  # of Batch's fields
    by_scene, by_sentence, by_said = rows
    while len(by_scene) < scenes:
        scene = scene_at(seed, "train", next(numbers))
        said = scene.sentences()
        if len(said) < sentences:
            continue
        image = scene.render()
        image = as_jpeg(image, int(rng.integers(70, 97))) if rng.random() < 0.8 else image
        visible, view = scene.masks(), View(scene.objects, scene.size)
        shown = visible[:, 4::8, 4::8]
        owners = np.where(shown.any(axis=0), shown.argmax(axis=0), NOTHING)
        by_scene.append((image, _attributes(scene, owners)))
        for sentence in _chosen(said, sentences, rng):
            tokens = demo_tokenizer().encode(sentence.text)[:2]
            by_sentence.append((*tokens, visible[sentence.object_index], _hints(sentence, view, owners)))
        for i in rng.integers(len(said), size=SAID):
            by_said.append((*demo_tokenizer().encode(said[i].text)[:2], np.array(meaning(said[i].query))))
    return Batch(*(torch.from_numpy(np.stack(column)) for table in rows for column in zip(*table, strict=True)))


@dataclass(frozen=True)
class Example:
    """One sentence of an evaluation."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    text: str
    kind: str
    owner: tuple[int, int]  # scene and object


def examples(seed: int, split: str, wanted: int) -> list[Example]:
    """The first `wanted` sentences of a split, as `write_refcoco` stores them (JPEG included)."""
    drawn: list[Example] = []
    number = 0
    while len(drawn) < wanted:
        scene = scene_at(seed, split, number)
        image, masks = as_jpeg(scene.render(), 92), scene.masks()
        for sentence in scene.sentences():
            item = sentence.object_index
            drawn.append(Example(image, masks[item], sentence.text, sentence.kind, (number, item)))
        number += 1
    return drawn[:wanted]
