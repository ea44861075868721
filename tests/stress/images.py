"""Images of every kind that Pillow knows, arrays of every kind that numpy knows, and files with damage."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lavt_edge.errors import ImageError, LavtError
from lavt_edge.runtime.images import LAYOUTS, as_frame, prepare, to_rgb_array
from lavt_edge.tests.stress.cases import Case, Kind, Rng, attempt, damaged
from PIL import Image

BYTES_PER_PIXEL = {
    "L": 1,
    "P": 1,
    "LA": 2,
    "La": 2,
    "PA": 2,
    "RGB": 3,
    "YCbCr": 3,
    "LAB": 3,
    "HSV": 3,
    "RGBA": 4,
    "RGBa": 4,
    "RGBX": 4,
    "CMYK": 4,
    "I": 4,
    "F": 4,
    "I;16": 2,
    "I;16L": 2,
    "I;16B": 2,
    "I;16N": 2,
    "1": 0,
}
SIZES = ((1, 1), (1, 4000), (4000, 1), (7, 5), (64, 48), (2, 2), (3, 1000))
INPUT = (48, 40)
MOST_PIXELS = 2_000_000
"""Pillow's limit while files are damaged: one that claims to be large would take a second each."""


def _check(answer: npt.NDArray[np.uint8] | LavtError, size: tuple[int, int] | None = None) -> None:
    if isinstance(answer, LavtError):
        return
    assert answer.dtype == np.uint8
    assert answer.ndim == 3
    assert answer.shape[2] == 3
    assert answer.size > 0
    assert size is None or answer.shape[1::-1] == size


def random_image(rng: Rng) -> Image.Image:
    """A PIL image of any mode with random bytes, so of type F with NaN and infinities as well."""
    mode = str(rng.choice(list(BYTES_PER_PIXEL)))
    width, height = SIZES[int(rng.integers(len(SIZES)))]
    count = height * (-(-width // 8) if mode == "1" else width * BYTES_PER_PIXEL[mode])
    data = rng.bytes(count)
    if mode == "F" and rng.random() < 0.5:
        odd = np.array([np.nan, np.inf, -np.inf, 1e38, -0.0, 255.5, 1e-45], np.float32)
        data = odd[rng.integers(len(odd), size=count // 4)].tobytes()
    image = Image.frombytes(mode, (width, height), data)
    if mode in ("P", "PA") and rng.random() < 0.7:
        image.putpalette(rng.bytes(3 * int(rng.integers(1, 257))))
    if rng.random() < 0.3:
        image.info["transparency"] = (None, 3, b"\0\1", (1, 2, 3), "x")[int(rng.integers(5))]
    return image


def in_memory(folder: Path) -> Case:
    """Every mode, 1x1 to 4000x1: none of them is refused, but for odd `info` that Pillow itself stumbles over."""

    def case(rng: Rng) -> None:
        image = random_image(rng)
        answer = attempt(lambda: to_rgb_array(image), ImageError)
        assert not isinstance(answer, LavtError) or "transparency" in image.info, f"{image.mode} {image.size}: {answer}"
        _check(answer, image.size)
        prepared = attempt(lambda: prepare(image, *INPUT), ImageError)
        assert isinstance(prepared, LavtError) or prepared.pixels.shape == (*INPUT, 3)

    return case


def random_array(rng: Rng) -> Any:
    """Something that numpy makes: mostly uint8 (H, W, C) or (H, W), with any strides, order, flags, type or shape."""
    shape = (int(rng.integers(0, 6)), int(rng.integers(1, 40)))
    array = rng.integers(0, 256, (*shape, 8), dtype=np.uint8)[..., :3]
    match int(rng.integers(14)):
        case 0:
            return array[::-1, ::-1]
        case 1:
            return array[..., ::-1]
        case 2:
            return np.asfortranarray(array)
        case 3:
            array = array.copy()
            array.flags.writeable = False
            return array
        case 4:
            return np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (int(rng.integers(1, 200)), 50, 3))
        case 5:
            kinds = ["?", "i1", "<u2", ">u2", "i4", "f2", "f4", ">f8", "c8", "S3", "U2", "O", "M8[s]", "V3", "u1,u1"]
            return np.zeros((4, 5, 3), str(rng.choice(kinds)))
        case 6:
            return np.zeros(tuple(rng.integers(0, 5, int(rng.integers(0, 6)))), np.uint8)
        case 7:
            return np.ma.masked_array(array, array > 100)
        case 8:
            return array.transpose(1, 0, 2)
        case 9:
            return np.frombuffer(array.tobytes(), np.uint8).reshape(array.shape)
        case 10:
            return np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (2**20, 2**20, 3), (0, 0, 0))
        case 11:
            return rng.integers(0, 256, (*rng.integers(1, 9, 2), int(rng.integers(1, 6))), dtype=np.uint8)
        case 12:
            return rng.integers(0, 256, rng.integers(0, 20, 2), dtype=np.uint8)[:, :: int(rng.integers(1, 3))]
        case _:
            return (None, 5, b"x", [[[1, 2, 3]]], (), {}, object(), memoryview(b"abc"), float("nan"))[
                int(rng.integers(9))
            ]


def arrays(folder: Path) -> Case:
    def case(rng: Rng) -> None:
        array = random_array(rng)
        given, before = array, array.tobytes() if isinstance(array, np.ndarray) and array.size < 10**6 else None
        answer = attempt(lambda: to_rgb_array(array), ImageError)
        _check(answer)
        if not isinstance(answer, LavtError):
            if array.ndim == 2:
                array = array[..., None]
            assert np.array_equal(answer, np.broadcast_to(array[..., :3], answer.shape))
            assert answer.flags.c_contiguous
        layout = str(rng.choice(list(LAYOUTS)))
        seen = attempt(lambda: to_rgb_array(array, pixels=layout), ImageError)
        prepared = attempt(lambda: prepare(array, *INPUT, pixels=layout), ImageError)
        assert isinstance(prepared, LavtError) == isinstance(seen, LavtError)
        if not isinstance(prepared, LavtError):
            _check(seen, (prepared.width, prepared.height))
            assert prepared.pixels.shape == (*INPUT, 3)
        assert before is None or given.tobytes() == before

    return case


def _rgb_of(frame: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.float64] | None:
    """What a frame of a layout shows, by the layout's definition; None if it is not of that layout."""
    flat = frame[..., 0] if frame.ndim == 3 and frame.shape[2] == 1 else frame
    channels = flat.shape[2] if flat.ndim == 3 else 1
    if frame.dtype != np.uint8 or flat.ndim not in (2, 3) or flat.size == 0:
        return None
    if name == "nv12":
        rows, width = flat.shape[:2]
        if channels != 1 or flat.ndim != 2 or rows % 3 or width % 2:
            return None
        y = np.maximum(flat[: rows * 2 // 3].astype(float), 16) - 16
        u, v = (flat[rows * 2 // 3 :, at::2].repeat(2, 0).repeat(2, 1).astype(float) - 128 for at in (0, 1))
        rgb = np.stack([1.164 * y + 1.596 * v, 1.164 * y - 0.391 * u - 0.813 * v, 1.164 * y + 2.018 * u], -1)
        return np.clip(rgb, 0, 255)
    allowed = {"grey": (1,), "rgbx": (4,), "bgrx": (4,)}.get(name, (1, 3, 4))
    if channels not in allowed:
        return None
    if channels == 1:
        return np.stack([flat] * 3, -1).astype(float)
    return flat[..., [2, 1, 0] if name.startswith("bgr") else [0, 1, 2]].astype(float)


def frames(folder: Path) -> Case:
    """Frames are taken, as their layout says, if and only if they are of it; with padded rows, odd and zero sizes."""

    def case(rng: Rng) -> None:
        name = str(rng.choice(list(LAYOUTS)))
        height, width = (int(side) * int(rng.choice([1, 2])) for side in rng.integers(0, 12, 2))
        shape = LAYOUTS[name].shape(height, width)
        match int(rng.integers(8)):
            case 0:
                shape = (*shape[:2], int(rng.integers(0, 6)))
            case 1:
                shape = (1, *shape)
            case 2:
                shape = (shape[0] + 1, *shape[1:])
            case 3:
                shape = (shape[-1], *shape[:-1])
        wide = rng.integers(0, 256, (shape[0], shape[1] + 3, *shape[2:]), dtype=np.uint8)
        frame = wide[:, 1:-2] if rng.random() < 0.5 else wide[::-1, 3:]
        if rng.random() < 0.2:
            frame = frame.astype(str(rng.choice(["f2", "f4", "f8", "u2", "i1", "?", "c8"])))
        before, wanted = frame.tobytes(), _rgb_of(frame, name)
        found = attempt(lambda: to_rgb_array(frame, pixels=name), ImageError)
        assert isinstance(found, LavtError) == (wanted is None), f"{name} {frame.dtype} {frame.shape}: {found}"
        for other in (lambda: prepare(frame, *INPUT, pixels=name), lambda: as_frame(frame, name)):
            answer = attempt(other, ImageError)
            assert isinstance(answer, LavtError) == (wanted is None)
            assert wanted is None or (answer.height, answer.width) == wanted.shape[:2]
        if wanted is not None:
            assert np.abs(found - wanted).max() <= (1 if name == "nv12" else 0)
        assert frame.tobytes() == before

    return case


def sound_files() -> list[bytes]:
    """One small file of each kind, each with its own way through a decoder."""
    pixels = np.random.default_rng(0).integers(0, 256, (33, 41, 3), dtype=np.uint8)
    rgb = Image.fromarray(pixels)
    grey, deep = rgb.convert("L"), Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [rgb, rgb.rotate(90), grey.convert("RGB")]
    wanted: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((image, "PNG", {}) for image in (rgb, grey, deep, rgb.convert("RGBA"), rgb.convert("P"), rgb.convert("1"))),
        *((image, "JPEG", {}) for image in (rgb, grey, rgb.convert("CMYK"))),
        *((rgb, "JPEG", options) for options in ({"progressive": True}, {"exif": exif}, {"subsampling": 2})),
        *((rgb, "WEBP", options) for options in ({}, {"lossless": True}, {"exif": exif})),
        *((rgb, "TIFF", {"compression": name}) for name in (None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
        *((image, "TIFF", {}) for image in (deep, rgb.convert("F"), rgb.convert("CMYK"), rgb.convert("1"))),
        *((rgb, kind, {}) for kind in ("BMP", "GIF", "PPM", "TGA", "ICO", "PCX", "SGI", "JPEG2000", "QOI", "DDS")),
        *((rgb, kind, {"save_all": True, "append_images": frames}) for kind in ("GIF", "WEBP", "PNG", "TIFF", "MPO")),
    ]
    files = []
    for image, kind, options in wanted:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        files.append(stream.getvalue())
    return files


def damaged_files(folder: Path) -> Case:
    files, path = sound_files(), folder / "image"

    def case(rng: Rng) -> None:
        data = files[int(rng.integers(len(files)))]
        for _ in range(int(rng.integers(0, 4))):
            data = damaged(data, rng, files[int(rng.integers(len(files)))])
        path.write_bytes(data)
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MOST_PIXELS
        try:
            answer = attempt(lambda: to_rgb_array(path), ImageError)
            _check(answer)
            again = attempt(lambda: to_rgb_array(data), ImageError)
            assert isinstance(answer, LavtError) == isinstance(again, LavtError)
            assert isinstance(again, LavtError) or np.array_equal(answer, again)
        finally:
            Image.MAX_IMAGE_PIXELS = limit

    return case


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@functools.cache
def _zeros() -> bytes:
    """200 MB in 200 kB."""
    return zlib.compress(bytes(200 * 2**20))


def bomb(rng: Rng) -> bytes:
    """A small file that claims to be an image of more pixels than Pillow's limit allows, or that holds a zip bomb."""
    side = int(rng.integers(13_500, 60_000))
    header = (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    body = (b"IDAT", zlib.compress(bytes(1000)))
    match int(rng.integers(6)):
        case 0:
            return _png(header, body, (b"IEND", b""))
        case 1:
            small = (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
            text = _zeros()
            return _png(small, (b"zTXt", b"x\0\0" + text), (b"zTXt", b"y\0\0" + text), (b"iCCP", b"p\0\0" + text), body)
        case 2:
            size = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
            return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + size + bytes(100)
        case 3:
            return (
                b"GIF89a"
                + struct.pack("<HH", side, side)
                + bytes(3)
                + b","
                + bytes(4)
                + struct.pack("<HH", side, side)
                + b"\0\x02\0;"
            )
        case 4:
            return b"P6 %d %d 255\n" % (side, side) + bytes(100)
        case _:
            stream = io.BytesIO()
            Image.new("L", (8, 8)).save(stream, "JPEG")
            return stream.getvalue().replace(
                b"\xff\xc0\x00\x0b\x08\0\x08\0\x08", b"\xff\xc0\x00\x0b\x08" + struct.pack(">HH", side, side)
            )


def bombs(folder: Path) -> Case:
    path = folder / "bomb"

    def case(rng: Rng) -> None:
        path.write_bytes(bomb(rng))
        answer = attempt(lambda: to_rgb_array(path), ImageError)
        assert isinstance(answer, ImageError), f"a bomb of {path.stat().st_size} bytes became {answer.shape}"

    return case


KINDS: dict[str, Kind] = {
    "images in memory": in_memory,
    "arrays": arrays,
    "frames": frames,
    "image files": damaged_files,
    "image bombs": bombs,
}
