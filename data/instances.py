"""Reads the annotations and images that a split needs out of COCO's `instances.json`.

The file holds every object of every image, several times what the refs of one split use. What is not asked for goes as
soon as it is decoded, so memory follows the file's size and not that of its Python objects.
"""

import json
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import NamedTuple

from ..errors import DatasetError, reason_of
from .masks import Segmentation, parse_segmentation

MAX_BYTES = 2**30
"""Largest file read. RefCOCO's are near 120 MB."""
NAME_BYTES = 255
"""Longest name of a file: what Linux's file systems take."""


class ImageRecord(NamedTuple):
    """An image of the data set: its file's name and its size in pixels."""

    file_name: str
    height: int
    width: int


_Record = dict[str, object]
_LEFT_OUT: _Record = {}  # stands where a record was that is not asked for


def read_instances(
    path: Path, annotation_ids: Set[int], image_ids: Set[int]
) -> tuple[dict[int, Segmentation], dict[int, ImageRecord]]:
    """The annotations and the images with the given ids, by their ids; those that the file lacks are left out.

    Raises:
        DatasetError: the file is unreadable or truncated, or a record that is asked for is malformed.
    """

    def keep(record: _Record) -> _Record:
        record_id = record.get("id")
        if type(record_id) is not int:
            return record
        if "segmentation" in record and record_id not in annotation_ids:
            return _LEFT_OUT
        return _LEFT_OUT if "file_name" in record and record_id not in image_ids else record

    content = read_json(path, keep)
    try:
        return (
            {key: _annotation(key, record) for key, record in _section(content, "annotations", annotation_ids)},
            {key: _image(key, record) for key, record in _section(content, "images", image_ids)},
        )
    except ValueError as reason:
        raise DatasetError(f"{path}: {reason}; get the file again") from None


def read_json(path: Path, keep: Callable[[_Record], _Record] | None = None) -> object:
    """The content of a JSON file, its records as `keep` leaves them. Raises DatasetError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DatasetError(f"{path}: refused, larger than {MAX_BYTES >> 20} MiB; is it of a data set?")
        content: object = json.loads(path.read_bytes().decode(), object_hook=keep)
        return content
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except RecursionError:
        raise DatasetError(f"{path}: nested too deeply for COCO annotations; get the file again") from None
    except ValueError as error:
        reason = reason_of(error)
        raise DatasetError(f"{path}: truncated or damaged JSON ({reason}); get the file again") from None


def _section(content: object, name: str, wanted: Set[int]) -> Iterator[tuple[int, _Record]]:
    """The records of a section that are asked for, with their ids."""
    records = content.get(name, []) if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise ValueError(f"{name} is not a list of records")
    for record in records:
        if record is _LEFT_OUT:
            continue
        if not isinstance(record, dict):
            raise ValueError(f"{name} holds something that is not a record")
        number = record.get("id")
        if type(number) is not int:
            raise ValueError(f"a record in {name} has no id")
        if number in wanted:
            yield number, record


def _image(image_id: int, record: _Record) -> ImageRecord:
    name, height, width = record.get("file_name"), record.get("height"), record.get("width")
    if type(height) is not int or type(width) is not int or height < 1 or width < 1:
        raise ValueError(f"image {image_id} has no height and width in pixels")
    if not isinstance(name, str) or len(name) > NAME_BYTES or not all(map(is_plain_name, name.split("/"))):
        raise ValueError(f"image {image_id} has file_name {name!r:.80}, refused: it is not a plain file name")
    return ImageRecord(name, height, width)


def is_plain_name(name: str) -> bool:
    """Whether a name names a file inside its folder: no separators or drives, nothing that leaves it or is too long."""
    plain = name not in ("", ".", "..") and name.isprintable() and not set(name) & set("/\\:")
    return plain and len(name.encode()) <= NAME_BYTES


def _annotation(annotation_id: int, record: _Record) -> Segmentation:
    try:
        return parse_segmentation(record.get("segmentation"))
    except ValueError as reason:
        raise ValueError(f"annotation {annotation_id}: {reason}") from None
