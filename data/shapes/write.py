"""Generated scenes written as RefCOCO is: a pickle of refs, instances.json and JPEG images."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..._base.files import whole_folder
from ..._base.progress import Progress, ignore
from ...errors import DatasetError
from .objects import KINDS, SHAPES, SPLITS
from .scenes import Scene, scene_at

DEFAULT_SCENES: Final[dict[str, int]] = {"train": 2000, "val": 150, "testA": 150, "testB": 150}
IMAGES: Final = Path("images", "mscoco", "images", "train2014")
JPEG_QUALITY: Final = 92
# Numbers of a split's images; objects, and sentences within them, count on below (16 and 4 to each).
_SPLIT_STEP: Final = 10_000_000


def uncompressed_rle(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """A mask (H, W) as COCO's uncompressed RLE: run lengths down the columns, the first one of zeros; exact."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return {"counts": [0, *counts] if flat[0] else counts, "size": [int(side) for side in mask.shape]}


def _annotation(mask: NDArray[np.bool_], ann_id: int, image_id: int, category_id: int) -> dict[str, Any]:
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [xs[0], ys[0], xs[-1] + 1 - xs[0], ys[-1] + 1 - ys[0]]
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": uncompressed_rle(mask),
        "area": int(np.count_nonzero(mask)),
        "bbox": [int(value) for value in box],
        "iscrowd": 0,
    }


def _refs(scene: Scene, image_id: int, first_ann: int, name: str) -> Iterator[dict[str, Any]]:
    sentences = scene.sentences()
    for index, item in enumerate(scene.objects):
        ann_id = first_ann + index
        mine = [
            {
                "tokens": sentence.text.split(),
                "raw": sentence.text,
                "sent": sentence.text,
                "sent_id": ann_id * len(KINDS) + KINDS.index(sentence.kind),
                "kind": sentence.kind,
            }
            for sentence in sentences
            if sentence.object_index == index
        ]
        if mine:
            yield {
                "sent_ids": [sentence["sent_id"] for sentence in mine],
                "file_name": f"{name}_{index}.jpg",
                "ann_id": ann_id,
                "ref_id": ann_id,
                "image_id": image_id,
                "split": scene.split,
                "sentences": mine,
                "category_id": SHAPES.index(item.shape) + 1,
            }


def _fill(
    root: Path,
    seed: int,
    scenes: Mapping[str, int],
    sizes: Sequence[tuple[int, int]],
    annotations_at: Path,
    progress: Progress,
) -> None:
    """Write a whole data set below `root`."""
    (root / IMAGES).mkdir(parents=True)
    annotations_at = root / annotations_at
    annotations_at.parent.mkdir(parents=True)
    refs: list[dict[str, Any]] = []
    instances: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    instances["categories"] = [
        {"id": number, "name": shape, "supercategory": "shape"} for number, shape in enumerate(SHAPES, start=1)
    ]
    done, total = 0, sum(scenes.values())
    for split in SPLITS:
        for number in range(scenes.get(split, 0)):
            scene = scene_at(seed, split, number, sizes=sizes)
            image_id = SPLITS.index(split) * _SPLIT_STEP + number + 1
            name = f"COCO_train2014_{image_id:012d}"
            picture = root / IMAGES / f"{name}.jpg"
            Image.fromarray(scene.render()).save(picture, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
            image = {"id": image_id, "file_name": picture.name, "width": scene.size[0], "height": scene.size[1]}
            instances["images"].append(image)
            for index, mask in enumerate(scene.masks()):
                category = SHAPES.index(scene.objects[index].shape) + 1
                instances["annotations"].append(_annotation(mask, image_id * 16 + index, image_id, category))
            refs.extend(_refs(scene, image_id, image_id * 16, name))
            done += 1
            progress(done, total)
    annotations_at.write_bytes(pickle.dumps(refs, protocol=2))
    annotations_at.with_name("instances.json").write_text(json.dumps(instances, separators=(",", ":")), "utf-8")


def write_refcoco(
    root: str | os.PathLike[str],
    *,
    seed: int = 0,
    scenes: Mapping[str, int] | None = None,
    sizes: Sequence[tuple[int, int]] = ((240, 240),),
    dataset: str = "refcoco",
    split_by: str = "unc",
    progress: Progress = ignore,
) -> Path:
    """Write generated scenes in RefCOCO's layout and return the folder.

    `scenes` says how many each split gets (DEFAULT_SCENES if None); scenes take `sizes` (width, height) in turn;
    `progress` is called with (scenes written, scenes in all). Segmentations are uncompressed RLE, which is exact where
    polygons are not (rings, objects cut in two). Each sentence dict also has its "kind". The folder appears whole or
    not at all; the same arguments give the same bytes.

    Raises DatasetError if `root` exists and is not an empty folder, if a split is unknown or a count out of range, or
    if writing fails.
    """
    root = Path(root)
    scenes = DEFAULT_SCENES if scenes is None else scenes
    for split, count in scenes.items():
        if split not in SPLITS:
            raise DatasetError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
        if not 0 <= count < _SPLIT_STEP:
            raise DatasetError(f"cannot write {count} scenes of split {split}: expected 0 to {_SPLIT_STEP - 1}")
    for label, value in (("data set", dataset), ("split_by", split_by)):
        if not value or value != Path(value).name:
            raise DatasetError(f"{label} {value!r} cannot be part of a file name")
    if not sizes:
        raise DatasetError("no image size given: expected at least one (width, height)")
    try:
        with whole_folder(root) as partial:
            _fill(partial, seed, scenes, sizes, Path(dataset, f"refs({split_by}).p"), progress)
    except FileExistsError as error:
        raise DatasetError(f"{root} exists and is not an empty folder: name a new one or remove it first") from error
    except OSError as error:
        raise DatasetError(f"cannot write the data set {root}: {error.strerror or error}") from error
    except ValueError as error:
        raise DatasetError(str(error)) from error
    return root
