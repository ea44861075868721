"""Requests for the model `lavt` of a Triton that it must refuse, and what it says."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from lavt_edge.tests.triton_server import texts
from PIL import Image


def encoded(array: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def bomb() -> bytes:
    """A PNG of some bytes that says it is 60000 by 60000 pixels."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(100)))
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
FILE = {"image": texts([encoded(PICTURE)])}
ONE = {"sentences": texts(["the circle"])}
BAD: dict[str, tuple[dict[str, npt.NDArray[Any]], str]] = {
    "no image": ({**ONE, "image": texts([b"no image"])}, "not an image that Pillow knows"),
    "an empty file": ({**ONE, "image": texts([b""])}, "not an image that Pillow knows"),
    "a cut file": ({**ONE, "image": texts([encoded(PICTURE)[:900]])}, "cannot be read as an image"),
    "a bomb": ({**ONE, "image": texts([bomb()])}, "cannot be read as an image"),
    "an empty sentence": ({"sentences": texts([""]), **FILE}, "sentence is empty"),
    "blanks": ({"sentences": texts([" \t\n "]), **FILE}, "sentence is empty"),
    "unknown words": ({"sentences": texts(["ꙮ ꙮ"]), **FILE}, "no word of this sentence"),
    "not UTF-8": ({"sentences": texts([b"\xff\xfe"]), **FILE}, "'utf-8' codec can't decode"),
    "a long sentence": ({"sentences": texts(["red " * 200]), **FILE}, "has 800 characters: give at most 400"),
    "one good, one empty": ({"sentences": texts(["the circle", ""]), **FILE}, "sentence is empty"),
    "nine sentences": ({"sentences": texts(["a circle"] * 9), **FILE}, "9 sentences: give 1 to 8"),
    "no sentence": ({"sentences": np.empty((1, 0), object), **FILE}, "0 sentences: give 1 to 8"),
    "no row": ({"sentences": np.empty((0, 1), object), "image": np.empty((0, 1), object)}, ""),
    "numbers for sentences": ({"sentences": np.zeros((1, 1), np.int64), **FILE}, "data-type"),
    "floats for an array": ({**ONE, "array": PICTURE[None].astype(np.float32)}, "data-type"),
    "four channels": ({**ONE, "array": np.zeros((1, 20, 30, 4), np.uint8)}, "unexpected shape"),
    "no height": ({**ONE, "array": np.zeros((1, 0, 30, 3), np.uint8)}, "no pixels"),
    "both images": ({**ONE, **FILE, "array": PICTURE[None]}, "give either `image`"),
    "neither image": (ONE, "give either `image`"),
    "two files in a row": ({**ONE, "image": texts([encoded(PICTURE)] * 2)}, "unexpected shape"),
    "more images than sentences": ({**ONE, "image": texts(*([encoded(PICTURE)] for _ in range(2)))}, "batch"),
    "too many images": (
        {"sentences": texts(*([""] for _ in range(9))), "array": np.zeros((9, 2, 2, 3), np.uint8)},
        "<= 8",
    ),
    "two sizes": (
        {"sentences": texts(["a"], ["b"]), "image": texts([encoded(PICTURE)], [encoded(PICTURE[:9])])},
        "differ in size",
    ),
    "another input": ({**ONE, **FILE, "prompt": np.zeros((1, 2), np.float32)}, "unexpected inference input"),
}
