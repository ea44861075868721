"""Reads the annotations and images that a split needs out of COCO's `instances.json`.

The file holds every object of every image, several times what the refs of one split use. It is decoded one element at
a time and only what is asked for is kept, so memory follows the file's size and not that of its Python objects.
"""

import json
import re
from collections.abc import Iterator, Set
from pathlib import Path
from typing import NamedTuple

from ..errors import DatasetError, reason_of
from .masks import Segmentation, parse_segmentation

MAX_BYTES = 2**30
"""Largest file read. RefCOCO's are near 120 MB."""

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class ImageRecord(NamedTuple):
    """An image of the data set: its file's name and its size in pixels."""

    file_name: str
    height: int
    width: int


class Instances(NamedTuple):
    """Annotations and images by their ids."""

    annotations: dict[int, Segmentation]
    images: dict[int, ImageRecord]


def read_instances(path: Path, annotation_ids: Set[int], image_ids: Set[int]) -> Instances:
    """The annotations and images with the given ids; ids that the file lacks are left out.

    Raises:
        DatasetError: the file is unreadable or truncated, or a record that is asked for is malformed.
    """
    found = Instances({}, {})
    try:
        for section, record in _records(_read_text(path)):
            if not isinstance(record, dict):
                raise DatasetError(f"{path}: {section} holds something that is not a record; get the file again")
            record_id = record.get("id")
            if type(record_id) is not int:
                raise DatasetError(f"{path}: a record in {section} has no id; get the file again")
            if section == "images" and record_id in image_ids:
                found.images[record_id] = _image(path, record_id, record)
            elif section == "annotations" and record_id in annotation_ids:
                found.annotations[record_id] = _annotation(path, record_id, record)
    except RecursionError:
        raise DatasetError(f"{path}: nested too deeply for COCO annotations; get the file again") from None
    except ValueError as error:
        reason = reason_of(error)
        raise DatasetError(f"{path}: truncated or damaged JSON ({reason}); get the file again") from None
    return found


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DatasetError(f"{path}: refused, larger than {MAX_BYTES >> 20} MiB; is it an instances.json?")
        return path.read_bytes().decode()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def _records(text: str) -> Iterator[tuple[str, object]]:
    """(section, record) of the lists `images` and `annotations`; other members of the top object are passed over."""
    at = _expect(text, 0, "{")
    while True:
        key, at = _DECODER.raw_decode(text, _skip(text, at))
        if not isinstance(key, str):
            raise json.JSONDecodeError("expected a name", text, at)
        at = _skip(text, _expect(text, at, ":"))
        if key in ("images", "annotations"):
            at = _expect(text, at, "[")
            if text[(end := _skip(text, at)) : end + 1] == "]":
                at = end + 1
            else:
                while True:
                    record, at = _DECODER.raw_decode(text, _skip(text, at))
                    yield key, record
                    at, done = _comma_or(text, at, "]")
                    if done:
                        break
        else:
            _, at = _DECODER.raw_decode(text, at)
        at, done = _comma_or(text, at, "}")
        if done:
            return


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _expect(text: str, at: int, wanted: str) -> int:
    at = _skip(text, at)
    if text[at : at + 1] != wanted:
        raise json.JSONDecodeError(f"expected {wanted!r}", text, at)
    return at + 1


def _comma_or(text: str, at: int, closing: str) -> tuple[int, bool]:
    at = _skip(text, at)
    found = text[at : at + 1]
    if found != "," and found != closing:
        raise json.JSONDecodeError(f"expected ',' or {closing!r}", text, at)
    return at + 1, found == closing


def _image(path: Path, image_id: int, record: dict[str, object]) -> ImageRecord:
    name, height, width = record.get("file_name"), record.get("height"), record.get("width")
    if type(height) is not int or type(width) is not int or height < 1 or width < 1:
        raise DatasetError(f"{path}: image {image_id} has no height and width in pixels; get the file again")
    if not isinstance(name, str) or not _is_plain_name(name):
        raise DatasetError(
            f"{path}: image {image_id} has file_name {name!r:.80}, which is not a plain file name; refused"
        )
    return ImageRecord(name, height, width)


def _is_plain_name(name: str) -> bool:
    """Whether a name names a file inside its folder: no separators or drives, nothing that leaves it."""
    return name not in ("", ".", "..") and name.isprintable() and not set(name) & set("/\\:")


def _annotation(path: Path, annotation_id: int, record: dict[str, object]) -> Segmentation:
    try:
        return parse_segmentation(record.get("segmentation"))
    except ValueError as reason:
        raise DatasetError(f"{path}: annotation {annotation_id}: {reason}; get the file again") from None
