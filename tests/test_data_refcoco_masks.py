"""Segmentations: what is rasterised and how, checked against pycocotools, and what its C code never gets to see."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lavt_edge.data.masks import parse_segmentation, rasterise, resize_mask
from pycocotools import mask as coco_mask

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2

SQUARE = [2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]
SHIFTED = [5.0, 5.0, 11.0, 5.0, 11.0, 11.0, 5.0, 11.0]


def pycoco(polygon: list[float], height: int = 16, width: int = 20) -> np.ndarray:
    return coco_mask.decode(coco_mask.frPyObjects([polygon], height, width))[..., 0]


def test_where_polygons_overlap_the_mask_has_a_hole() -> None:
    mask = rasterise(parse_segmentation([SQUARE, SHIFTED]), 16, 20)
    np.testing.assert_array_equal(mask, pycoco(SQUARE) != pycoco(SHIFTED))
    assert pycoco(SQUARE)[6, 6]
    assert not mask[6, 6]


def test_three_polygons_over_one_pixel_leave_it_out_too() -> None:
    assert not rasterise(parse_segmentation([SQUARE] * 3), 16, 20).any()


def test_more_polygons_than_a_byte_counts_do_not_wrap_to_one() -> None:
    assert not rasterise(parse_segmentation([SQUARE] * 257), 16, 20).any()


@pytest.mark.parametrize(
    "line", [[3.0, 10.0, 15.0, 13.0], [2.0, 3.0, 5.0, 6.0], [4.0, 1.0, 4.0, 15.0], [5.0, 5.0, 5.0, 5.0]]
)
def test_a_polygon_of_two_points_is_a_line_and_never_a_box(line: list[float]) -> None:
    # pycocotools itself takes such a polygon only after a longer one.
    second = coco_mask.decode(coco_mask.frPyObjects([SQUARE, line], 16, 20))[..., 1]
    np.testing.assert_array_equal(rasterise(parse_segmentation([line]), 16, 20), second == 1)


def test_no_polygons_give_an_empty_mask() -> None:
    assert not rasterise(parse_segmentation([]), 16, 20).any()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32))
def test_run_length_encodings_decode_as_in_pycocotools(height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 2, (height, width), np.uint8)
    compressed = coco_mask.encode(np.asfortranarray(pixels))
    text = {"size": compressed["size"], "counts": compressed["counts"].decode()}
    runs, value = [0], 0
    for pixel in pixels.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    for segmentation in (text, [text], {"size": [height, width], "counts": runs}):
        np.testing.assert_array_equal(rasterise(parse_segmentation(segmentation), height, width), pixels == 1)


def test_long_runs_of_a_compressed_encoding_decode_as_in_pycocotools() -> None:
    pixels = np.zeros((480, 640), np.uint8)
    pixels[100:300, 50:400] = 1
    pixels[7, 9] = 1
    compressed = coco_mask.encode(np.asfortranarray(pixels))
    parsed = parse_segmentation({"size": [480, 640], "counts": compressed["counts"].decode()})
    np.testing.assert_array_equal(rasterise(parsed, 480, 640), pixels == 1)


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        "polygon",
        [7],
        [["1", "2", "3", "4", "5", "6"]],
        [[1, 2, 3, 4, 5]],
        [[1, 2]],
        [[[1, 2], [3, 4]]],
        [[10**400, 1, 2, 3, 4, 5]],
        [SQUARE] * 10_001,
        {"counts": [320]},
        {"size": [16, 20]},
        {"size": [16, 20], "counts": 320},
        {"size": [16, 20], "counts": [2**70]},
        {"size": [16, 20], "counts": "o"},
        {"size": [16, 20], "counts": "oooooooooooooooo0"},
        {"size": [16, 20], "counts": "\x00"},
    ],
)
def test_what_is_no_segmentation_is_refused_when_read(segmentation: object) -> None:
    with pytest.raises(ValueError, match=r"segmentation|polygon|run-length"):
        parse_segmentation(segmentation)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        [[float("nan"), 0, 1, 0, 1, 1]],
        [[float("inf"), 0, 1, 0, 1, 1]],
        [[-21, 0, 1, 0, 1, 1]],
        [[0, 0, 20, 16] * 60_000],
        {"size": [20, 16], "counts": [320]},
        {"size": [16, 20], "counts": [321]},
        {"size": [16, 20], "counts": [-1, 321]},
        {"size": [16, 20], "counts": [2**62, 2**62, 2**62, 2**62, 320]},
        {"size": [16, 20], "counts": []},
    ],
)
def test_what_does_not_fit_the_image_never_reaches_the_rasteriser(segmentation: object) -> None:
    parsed = parse_segmentation(segmentation)
    with pytest.raises(ValueError, match=r"image|outline"):
        rasterise(parsed, 16, 20)


@pytest.mark.parametrize(("height", "width"), [(0, 5), (100_000, 100_000)])
def test_an_image_size_that_no_mask_is_made_for_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match="image size"):
        rasterise((), height, width)


def test_resizing_repeats_pixels_and_keeps_bool() -> None:
    mask = np.array([[True, False], [False, True]])
    resized = resize_mask(mask, 4, 6)
    assert resized.dtype == bool
    np.testing.assert_array_equal(resized, np.kron(mask, np.ones((2, 3))) == 1)
