"""Images in: the official evaluation's pixels, and a line for each that cannot be read."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from lavt_edge.errors import ImageError
from lavt_edge.runtime.images import resize, to_rgb_array
from PIL import Image

SIZES = [(480, 640), (640, 427), (1, 1), (1, 4000), (4000, 1), (480, 480), (33, 57), (1200, 900)]
MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LA", "PA", "RGBX", "RGBa", "LAB", "F", "I"]


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_resize_equals_torchvision_bit_for_bit(height: int, width: int) -> None:
    F = pytest.importorskip("torchvision.transforms.v2.functional")
    image = Image.fromarray(noise(height, width))
    official = np.asarray(F.resize(image, [480, 480]))
    assert np.array_equal(resize(image, 480, 480), official)
    assert np.array_equal(resize(np.asarray(image), 480, 480), official)
    assert np.array_equal(resize(image, 320, 448), np.asarray(F.resize(image, [320, 448])))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_converted_as_the_evaluation_does(mode: str) -> None:
    source = Image.fromarray(noise(9, 7))
    image = source.convert("RGBA").convert(mode) if mode in ("RGBa",) else Image.new(mode, (7, 9))
    if mode not in ("LAB", "RGBa", "PA"):
        image = source.convert(mode)
    assert np.array_equal(to_rgb_array(image), np.asarray(image.convert("RGB")))


def test_premultiplied_grey_is_converted() -> None:
    grey = Image.fromarray(noise(5, 4, 2))
    assert np.array_equal(to_rgb_array(grey.convert("La")), np.asarray(grey.convert("La").convert("LA").convert("RGB")))


@pytest.mark.parametrize("kind", ["I;16", "I;16B", "I", "png"])
def test_sixteen_bit_grey_keeps_its_range(kind: str, tmp_path: Path) -> None:
    values = np.array([[0, 128, 257, 32768, 65535]], np.uint16)
    image = Image.fromarray(values)
    if kind == "png":
        image.save(tmp_path / "deep.png")
        image = Image.open(tmp_path / "deep.png")
    elif kind == "I;16B":
        image = Image.frombytes("I;16B", (5, 1), values.astype(">u2").tobytes())
    elif kind == "I":
        image = Image.fromarray(values.astype(np.int32))
    assert to_rgb_array(image)[0].tolist() == [[value] * 3 for value in (0, 0, 1, 128, 255)]


def test_eight_bit_values_in_mode_i_are_left_alone() -> None:
    assert to_rgb_array(Image.fromarray(np.array([[0, 7, 255]], np.int32)))[0, :, 0].tolist() == [0, 7, 255]


def test_transparency_is_dropped() -> None:
    clear = Image.new("RGBA", (3, 2), (10, 20, 30, 0))
    assert (to_rgb_array(clear) == (10, 20, 30)).all()


def test_arrays_paths_and_images_agree(tmp_path: Path) -> None:
    pixels = noise(12, 10)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for given_image in (pixels, tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels)):
        assert np.array_equal(to_rgb_array(given_image), pixels)
    flipped = pixels[::-1, ::-1]
    assert np.array_equal(to_rgb_array(flipped), flipped)
    assert np.array_equal(resize(flipped, 5, 5), resize(flipped.copy(), 5, 5))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.float64),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4, 3), bool),
    ],
)
def test_arrays_of_another_type_or_shape_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"expected a uint8 RGB array \(H, W, 3\), \(H, W, 4\) or \(H, W\), found"):
        to_rgb_array(array)


@pytest.mark.parametrize(
    "empty", [np.zeros((0, 4, 3), np.uint8), np.zeros((4, 0, 3), np.uint8), Image.new("L", (0, 5))]
)
def test_images_without_pixels_are_refused(empty: np.ndarray | Image.Image) -> None:
    with pytest.raises(ImageError, match="has no pixels"):
        to_rgb_array(empty)


def test_files_that_are_no_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="no such image"):
        to_rgb_array(tmp_path / "none.png")
    with pytest.raises(ImageError, match="is not a file"):
        to_rgb_array(tmp_path)
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ImageError, match="not an image that Pillow knows"):
        to_rgb_array(tmp_path / "text.png")
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(ImageError, match="cannot be read"):
        to_rgb_array(tmp_path / "empty.jpg")
    for thing in (None, 5, [[1]], memoryview(b"abc")):
        with pytest.raises(ImageError, match="cannot use"):
            to_rgb_array(thing)  # type: ignore[arg-type]
    Image.new("RGB", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="decompression bomb"):
        to_rgb_array(tmp_path / "bomb.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tiff", "webp", "bmp"])
def test_truncated_files_give_an_image_error_or_the_pixels(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"whole.{suffix}"
    Image.fromarray(noise(60, 60)).save(path)
    content = path.read_bytes()
    refused: list[str] = []
    for length in np.linspace(0, len(content) - 1, 25).astype(int):
        path.write_bytes(content[:length])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                to_rgb_array(path)
            except ImageError as error:
                refused.append(str(error))
    assert len(refused) > 20
    assert not any("\n" in message for message in refused)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError):
        to_rgb_array(path)


def test_a_truncated_image_that_was_opened_elsewhere(tmp_path: Path) -> None:
    Image.fromarray(noise(60, 60)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with Image.open(tmp_path / "a.png") as image, pytest.raises(ImageError, match="the image cannot be read"):
        to_rgb_array(image)
