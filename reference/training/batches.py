"""Batches of generated referring scenes for the demo model, each one a function of its step alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...data.shapes import KINDS, VOCABULARY, Scene, SceneSentence, scene_at
from ...data.shapes.objects import COLOURS, SHAPES, SIZES, TEXTURES
from ...data.shapes.queries import (
    DIRECTIONS,
    REGIONS,
    RELATIONS,
    Attribute,
    Descriptor,
    Ordinal,
    Query,
    Region,
    Relation,
    View,
)
from ...data.shapes.words import ORDINALS
from ...runtime.tokenizer import SentenceTokenizer, build_tokenizer

ATTRIBUTE_SIZES = (len(COLOURS), len(SHAPES), len(TEXTURES), len(SIZES))
HINT_GRID = 30  # cells on a side of the grid that carries attributes and hints
NOTHING = -1
HINTS = 3
SAID = 8  # sentences of a scene that teach the text encoder
_NAMED = len(SIZES) + 1, len(TEXTURES) + 1, len(COLOURS) + 1, len(SHAPES) + 1
_CLAIMS = ("", *DIRECTIONS, *(f"in {region}" for region in REGIONS), *RELATIONS, *(f"from {one}" for one in DIRECTIONS))
MEANING_SIZES = (*_NAMED, *_NAMED, len(_CLAIMS), len(ORDINALS) + 1)
_SCENES = 32  # numbers that each step has to itself; the data is endless


@dataclass(frozen=True)
class Batch:
    """S scenes with R sentences each, of a scene's side by side."""

    images: Tensor  # uint8 (S,H,W,3)
    input_ids: Tensor  # (S*R,T)
    attention_mask: Tensor  # (S*R,T)
    masks: Tensor  # bool (S*R,H,W)
    attributes: Tensor  # (S,4,G,G): colour, shape, texture and size of the object at each cell, or NOTHING
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
    names = [(list(COLOURS), "colour"), (SHAPES, "shape"), (TEXTURES, "texture"), (SIZES, "size")]
    table = [[*(values.index(getattr(item, name)) for item in scene.objects), NOTHING] for values, name in names]
    return np.array(table)[:, owners]


def _hints(one: SceneSentence, view: View, owners: NDArray[np.int64]) -> NDArray[np.bool_]:
    anchors = view.matching(one.query.anchor) if isinstance(one.query, Relation) else []
    fitting = view.matching(one.query.target)
    return np.stack([np.isin(owners, chosen) for chosen in (fitting, anchors, [one.object_index])])


def _named(one: Descriptor) -> list[int]:
    values: list[tuple[Sequence[str], str | None]] = [(SIZES, one.size), (TEXTURES, one.texture)]
    values += [(list(COLOURS), one.colour), (SHAPES, one.shape)]
    return [0 if value is None else 1 + among.index(value) for among, value in values]


def meaning(query: Query) -> list[int]:
    """A query as one class number for each of MEANING_SIZES: target, anchor, claim, rank."""
    anchor, rank = Descriptor(), 0
    if isinstance(query, Relation):
        anchor = query.anchor
        claim_index = _CLAIMS.index(query.relation, 1 + len(DIRECTIONS) + len(REGIONS))
    elif isinstance(query, Region):
        claim_index = _CLAIMS.index(f"in {query.region}")
    elif isinstance(query, Ordinal):
        claim_index, rank = _CLAIMS.index(f"from {query.direction}"), query.rank
    else:
        claim_index = 0 if isinstance(query, Attribute) else _CLAIMS.index(query.direction)
    return [*_named(query.target), *_named(anchor), claim_index, rank]


def make_batch(seed: int, step: int, scenes: int, sentences: int) -> Batch:
    """The batch of a training step."""
    rng = np.random.default_rng([seed, step])
    images: list[NDArray[np.uint8]] = []
    tokens, masks, attributes, hints, said, meanings = [], [], [], [], [], []
    numbers = count(step * _SCENES)
    while len(images) < scenes:
        scene = scene_at(seed, "train", next(numbers))
        said_of = scene.sentences()
        if len(said_of) < sentences:
            continue
        image = scene.render()
        images.append(as_jpeg(image, int(rng.integers(70, 97))) if rng.random() < 0.8 else image)
        visible = scene.masks()
        shown = visible[:, 4::8, 4::8]
        owners = np.where(shown.any(axis=0), shown.argmax(axis=0), NOTHING)
        attributes.append(_attributes(scene, owners))
        view = View(scene.objects, scene.size)
        for one in _chosen(said_of, sentences, rng):
            tokens.append(demo_tokenizer().encode(one.text)[:2])
            masks.append(visible[one.object_index])
            hints.append(_hints(one, view, owners))
        for i in rng.integers(len(said_of), size=SAID):
            said.append(demo_tokenizer().encode(said_of[i].text)[:2])
            meanings.append(meaning(said_of[i].query))
    ids, attention = (torch.from_numpy(np.stack(part)) for part in zip(*tokens, strict=True))
    said_ids, said_mask = (torch.from_numpy(np.stack(part)) for part in zip(*said, strict=True))
    return Batch(
        images=torch.from_numpy(np.stack(images)),
        input_ids=ids,
        attention_mask=attention,
        masks=torch.from_numpy(np.stack(masks)),
        attributes=torch.from_numpy(np.stack(attributes)),
        hints=torch.from_numpy(np.stack(hints)),
        said_ids=said_ids,
        said_mask=said_mask,
        meanings=torch.tensor(meanings),
    )


class _Steps(Dataset[Batch]):
    def __init__(self, make: Callable[[int], Batch]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Batch:
        return self.make(step)


def batches(make: Callable[[int], Batch], steps: range, *, workers: int = 1) -> Iterator[Batch]:
    """The batches of `steps`, made ahead of time in worker processes (0: in this one)."""
    loader: DataLoader[Batch] = DataLoader(_Steps(make), batch_size=None, sampler=list(steps), num_workers=workers)
    return iter(loader)


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
