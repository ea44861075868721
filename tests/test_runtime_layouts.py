"""What people bring as an image: frames of every layout, tensors, bytes, open files, photographs that lie on a side."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from lavt_edge.data import ReferredObject
from lavt_edge.errors import ImageError, InputError
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.images import LAYOUTS, layout_of, prepare, resize, to_rgb_array
from lavt_edge.tests.photos import ORIENTATION, oriented
from lavt_edge.tests.runtime_bundle import write_bundle
from PIL import Image, ImageOps


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_that_lies_on_a_side_is_turned_upright(orientation: int, tmp_path: Path) -> None:
    pixels = noise(14, 23)
    data = oriented(pixels, orientation)
    (tmp_path / "photo.png").write_bytes(data)
    with Image.open(io.BytesIO(data)) as image, Image.open(io.BytesIO(data)) as stored:
        for given in (tmp_path / "photo.png", data, bytearray(data), io.BytesIO(data), image):
            assert np.array_equal(to_rgb_array(given), pixels)
        as_stored = np.asarray(stored.convert("RGB"))
    assert np.array_equal(as_stored, pixels) == (orientation == 1)
    assert np.array_equal(to_rgb_array(data, orient=False), as_stored)
    prepared = prepare(data, 16, 16)
    assert (prepared.height, prepared.width) == (14, 23)
    assert np.array_equal(prepared.pixels, resize(pixels, 16, 16))
    assert np.array_equal(prepare(data, 16, 16, orient=False).pixels, resize(as_stored, 16, 16))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF", "MPO"])
def test_every_kind_of_file_is_turned_once(kind: str) -> None:
    """A TIFF is turned by Pillow when it is read, the others are not."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stream = io.BytesIO()
    Image.fromarray(noise(20, 30)).save(stream, kind, exif=exif)
    with Image.open(io.BytesIO(stream.getvalue())) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert wanted.shape == (30, 20, 3)
    assert np.array_equal(to_rgb_array(stream.getvalue()), wanted)


def test_opencv_reads_the_same_photo(tmp_path: Path) -> None:
    Image.fromarray(noise(40, 60)).save(tmp_path / "photo.jpg", exif=_exif(6), quality=95, subsampling=0)
    frame = cv2.imread(str(tmp_path / "photo.jpg"))
    assert np.abs(to_rgb_array(frame, pixels="bgr").astype(int) - to_rgb_array(tmp_path / "photo.jpg")).max() <= 2


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@pytest.mark.parametrize(
    "block", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
@pytest.mark.parametrize("value", [None, 0, 9, 65535])
def test_a_damaged_or_senseless_orientation_is_none(block: bytes, value: int | None) -> None:
    stream = io.BytesIO()
    Image.fromarray(noise(20, 30)).save(stream, "JPEG", exif=block if value is None else _exif(value))
    with Image.open(io.BytesIO(stream.getvalue())) as image:
        assert np.array_equal(to_rgb_array(stream.getvalue()), np.asarray(image))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_mask_of_a_turned_photo_is_that_of_the_upright_one(orientation: int, segmenter: Segmenter) -> None:
    pixels = noise(40, 70)
    data = oriented(pixels, orientation)
    wanted = segmenter.segment(pixels, "a dog")
    assert 0 < wanted.mask.mean() < 1
    (streamed,) = segmenter.stream([data], "a dog")
    (batched,) = segmenter.segment_batch([(data, "a dog")])
    for result in (segmenter.segment(data, "a dog"), streamed, batched):
        assert np.array_equal(result.probability, wanted.probability)
    lying = segmenter.segment(data, "a dog", orient=False)
    assert lying.mask.shape == ((40, 70) if orientation < 5 else (70, 40))
    assert np.array_equal(lying.mask, wanted.mask) == (orientation == 1)


def test_the_evaluation_leaves_photos_as_they_are_stored(tmp_path: Path) -> None:
    """As the published one does: COCO's annotations are of the stored pixels."""
    Image.fromarray(noise(40, 60)).save(tmp_path / "a.jpg", exif=_exif(6))
    ref = ReferredObject(
        ref_id=1,
        ann_id=1,
        image_id=1,
        image_path=tmp_path / "a.jpg",
        height=40,
        width=60,
        sentences=("a dog",),
        sentence_ids=(1,),
        segmentation=[],
    )
    assert ref.image.size == (60, 40)
    assert np.array_equal(resize(ref.image, 24, 32), prepare(tmp_path / "a.jpg", 24, 32, orient=False).pixels)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return Segmenter.load(write_bundle(tmp_path_factory.mktemp("layouts") / "bundle"), device="cpu", threads=1)


# arrays


def as_layout(rgb: np.ndarray, name: str) -> np.ndarray:
    """An RGB frame in a layout of the table, its fourth channel filled with noise."""
    layout = LAYOUTS[name]
    made = noise(*rgb.shape[:2], 4)[..., : layout.channels].copy()
    for colour, channel in enumerate(layout.rgb):
        made[..., channel] = rgb[..., colour]
    return made


@pytest.mark.parametrize("name", ["rgb", "bgr", "rgbx", "bgrx"])
def test_the_same_frame_in_another_order_gives_the_same_pixels(name: str, segmenter: Segmenter) -> None:
    rgb = noise(30, 50)
    frame = as_layout(rgb, name)
    assert frame.shape == LAYOUTS[name].shape(30, 50)
    assert layout_of(frame, name) == (name, 30, 50)
    assert np.array_equal(to_rgb_array(frame, pixels=name), rgb)
    assert np.array_equal(prepare(frame, 16, 20, pixels=name).pixels, resize(rgb, 16, 20))
    assert np.array_equal(prepare(frame, 30, 50, pixels=name).pixels, rgb)
    wanted = segmenter.segment(rgb, "a dog").probability
    assert np.array_equal(segmenter.segment(frame, "a dog", pixels=name).probability, wanted)
    (streamed,) = segmenter.stream([frame], "a dog", pixels=name)
    (batched,) = segmenter.segment_batch([(frame, "a dog")], pixels=name)
    assert np.array_equal(streamed.probability, wanted)
    assert np.array_equal(batched.probability, wanted)


@pytest.mark.parametrize("pixels", ["rgb", "bgr"])
def test_the_shape_tells_grey_and_alpha(pixels: str) -> None:
    rgb, alpha = noise(9, 7), noise(9, 7, 1)
    frame = rgb if pixels == "rgb" else rgb[..., ::-1]
    assert np.array_equal(to_rgb_array(np.concatenate([frame, alpha], -1), pixels=pixels), rgb)
    for grey in (alpha, alpha[..., 0]):
        assert np.array_equal(to_rgb_array(grey, pixels=pixels), np.repeat(alpha, 3, -1))
        assert np.array_equal(prepare(grey, 5, 4).pixels, resize(np.repeat(alpha, 3, -1), 5, 4))
        assert np.array_equal(to_rgb_array(grey, pixels="grey"), np.repeat(alpha, 3, -1))


@pytest.mark.parametrize("size", [(2, 2), (48, 64), (480, 640)])
def test_nv12_is_what_opencv_makes_of_it(size: tuple[int, int]) -> None:
    height, width = size
    frame = np.random.default_rng(0).integers(0, 256, LAYOUTS["nv12"].shape(height, width), dtype=np.uint8)
    wanted = cv2.cvtColor(frame, cv2.COLOR_YUV2RGB_NV12).astype(int)
    found = to_rgb_array(frame, pixels="nv12")
    assert found.shape == (height, width, 3)
    assert np.abs(found - wanted).max() <= 1


def test_nv12_is_resized_by_its_planes_to_almost_the_same() -> None:
    y, x = np.mgrid[:360, :640]
    rgb = np.stack([110 + 90 * np.sin(x / 45), 110 + 90 * np.cos(y / 35), 20 + (x + y) % 200], -1).astype(np.uint8)
    planar = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)
    u, v = planar[360:450].reshape(180, 320), planar[450:].reshape(180, 320)
    frame = np.vstack([planar[:360], np.stack([u, v], -1).reshape(180, 640)])
    prepared = prepare(frame, 48, 48, pixels="nv12")
    assert (prepared.height, prepared.width) == (360, 640)
    assert np.abs(prepared.pixels.astype(int) - resize(to_rgb_array(frame, pixels="nv12"), 48, 48)).max() <= 4
    assert np.abs(prepared.pixels.astype(int) - resize(rgb, 48, 48)).mean() < 2


@pytest.mark.parametrize("name", LAYOUTS)
def test_frames_that_are_not_contiguous_and_are_not_kept(name: str) -> None:
    shape = LAYOUTS[name].shape(12, 16)
    wide = np.random.default_rng(0).integers(0, 256, (shape[0], shape[1] + 9, *shape[2:]), dtype=np.uint8)
    frame = wide[:, 4:-5]  # as a driver pads its rows
    assert not frame.flags.c_contiguous
    wanted = prepare(frame.copy(), 8, 8, pixels=name).pixels
    same_size = prepare(frame, 12, 16, pixels=name).pixels.copy()
    prepared, rgb = prepare(frame, 8, 8, pixels=name), to_rgb_array(frame, pixels=name)
    kept, whole = prepare(np.ascontiguousarray(frame), 12, 16, pixels=name).pixels, rgb.copy()
    wide[:] = 0
    assert np.array_equal(prepared.pixels, wanted)
    assert np.array_equal(kept, same_size)
    assert np.array_equal(rgb, whole)
    rgb[:] = 1  # the caller's own


@pytest.mark.parametrize(
    ("array", "pixels", "said"),
    [
        (
            np.zeros((4, 4, 3), np.float32),
            "rgb",
            r"found float32 .*: give \(image \* 255\)\.round\(\)\.astype\('uint8'\)",
        ),
        (np.zeros((3, 8, 8), np.uint8), "rgb", r"channels go last, give numpy\.moveaxis\(image, 0, -1\)"),
        (np.zeros((4, 4), np.uint16), "bgr", r"uint8 BGR array \(H, W, 3\), \(H, W, 4\) or \(H, W\), found uint16"),
        (np.zeros((4, 4, 3), np.uint8), "bgrx", r"uint8 BGRX array \(H, W, 4\), found uint8 \(4, 4, 3\)"),
        (np.zeros((4, 4, 3), np.uint8), "grey", r"uint8 GREY array \(H, W\), found"),
        (np.zeros((4, 4, 3), np.uint8), "nv12", r"NV12 array \(H \* 3/2, W\), H and W even, found uint8 \(4, 4, 3\)"),
        (np.zeros((6, 5), np.uint8), "nv12", r"H and W even, found uint8 \(6, 5\)"),
        (np.zeros((4, 4), np.uint8), "nv12", r"H and W even, found uint8 \(4, 4\)"),
        (np.zeros((7, 4), np.uint8), "nv12", r"H and W even"),
        (np.zeros((0, 4), np.uint8), "nv12", r"has no pixels"),
        (np.zeros((0, 4), np.uint8), "rgb", r"has no pixels"),
        (np.zeros((4, 0, 4), np.uint8), "bgrx", r"has no pixels"),
        (np.zeros((4, 4, 3), bool), "rgb", r"found bool"),
        (np.zeros((1, 4, 4, 3), np.uint8), "rgb", r"found uint8 \(1, 4, 4, 3\)"),
    ],
)
def test_what_does_not_fit_its_layout_is_refused(
    array: np.ndarray, pixels: str, said: str, segmenter: Segmenter
) -> None:
    for call in (layout_of, lambda frame, name: segmenter.segment(frame, "a dog", pixels=name)):
        with pytest.raises(ImageError, match=said) as caught:
            call(array, pixels)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pixels", ["yuv", "RGB", "", None, 3, ["rgb"]])
def test_a_layout_that_is_not_in_the_table(pixels: str, segmenter: Segmenter) -> None:
    calls = (
        lambda: segmenter.segment(noise(4, 4), "a dog", pixels=pixels),
        lambda: segmenter.stream([noise(4, 4)], "a dog", pixels=pixels),
        lambda: segmenter.segment_batch([(noise(4, 4), "a dog")], pixels=pixels),
        lambda: to_rgb_array(Image.new("RGB", (3, 3)), pixels=pixels),
    )
    for call in calls:
        with pytest.raises(InputError, match="give one of rgb, bgr, rgbx, bgrx, grey, nv12"):
            call()


# other things


def test_tensors_by_their_array_interface() -> None:
    torch = pytest.importorskip("torch")
    pixels = noise(6, 5)
    assert np.array_equal(to_rgb_array(torch.from_numpy(pixels)), pixels)
    assert np.array_equal(to_rgb_array(torch.from_numpy(pixels).flip(-1), pixels="bgr"), pixels)
    with pytest.raises(ImageError, match="channels go last"):
        to_rgb_array(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    with pytest.raises(ImageError, match="cannot make an array of the Tensor"):
        to_rgb_array(torch.zeros(4, 4, 3, device="meta"))


def test_a_tensor_needs_no_torch_of_ours() -> None:
    class Tensor:
        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            return noise(3, 4)

    before = set(sys.modules)
    assert np.array_equal(to_rgb_array(Tensor()), noise(3, 4))
    assert set(sys.modules) == before


def test_open_files(tmp_path: Path) -> None:
    Image.fromarray(noise(6, 5)).save(tmp_path / "a.png")
    with open(tmp_path / "a.png", "rb") as file:
        for _ in range(2):  # the second time from its end
            assert np.array_equal(to_rgb_array(file), noise(6, 5))
        assert not file.closed
    with open(tmp_path / "a.png") as text, pytest.raises(ImageError, match="open as text: open it with mode 'rb'"):
        to_rgb_array(text)  # type: ignore[arg-type]
    for nothing in (b"", b"not an image", io.BytesIO(b"")):
        with pytest.raises(ImageError, match="the image cannot be read: it is not an image that Pillow knows"):
            to_rgb_array(nothing)


@pytest.mark.parametrize("url", ["https://example.com/a//b.jpg?x=1", "rtsp://camera:554/live", "file:///tmp/a.png"])
def test_a_url_is_named_as_it_was_typed(url: str) -> None:
    with pytest.raises(ImageError) as caught:
        to_rgb_array(url)
    assert str(caught.value) == f"{url} is a URL: download it, and give the file's path or its bytes"


@pytest.mark.parametrize("path", ["./none//a.jpg", "none/../a.jpg"])
def test_a_path_is_named_as_it_was_typed(path: str) -> None:
    with pytest.raises(ImageError, match=rf"^no such image: {path}$"):
        to_rgb_array(path)
    with pytest.raises(ImageError, match="no such image: ''"):
        to_rgb_array("")
    with pytest.raises(ImageError, match="cannot be read"):
        to_rgb_array("a\0b")
