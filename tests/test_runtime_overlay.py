"""The overlay: the mask is visible, the rest keeps its structure, and the sentence is there at any image size."""

import numpy as np
import pytest
from lavt_edge.errors import ImageError
from lavt_edge.runtime.overlay import overlay, overlay_of
from PIL import Image

PAPER = (28, 28, 32)


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def disc(height: int = 480, width: int = 640, radius: int = 100) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (x - width // 2) ** 2 + (y - height // 2) ** 2 < radius**2


def test_the_mask_is_tinted_and_outlined_and_the_background_is_not() -> None:
    drawn = np.asarray(overlay(grey(480, 640), disc(), "the disc"))
    assert drawn.shape[1] == 640
    red, green, blue = (int(value) for value in drawn[240, 320])
    assert red > green + 40 > blue - 60
    assert len(set(drawn[20, 20].tolist())) == 1
    across = drawn[240, :, :]
    assert (across[[217, 218, 219]] == 255).all(axis=-1).any(), "no white outline left of the disc"
    assert (across[[420, 421, 422]] == 255).all(axis=-1).any(), "no white outline right of the disc"
    picture = drawn[:480]
    ring = (picture == 255).all(-1)
    assert not (ring & disc()).any()
    assert not (ring & ~disc(radius=106)).any()


def test_an_empty_and_a_full_mask_have_no_outline() -> None:
    for mask in (np.zeros((480, 640), bool), np.ones((480, 640), bool)):
        picture = np.asarray(overlay(grey(480, 640), mask, "x"))[:480]
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (2000, 1), (8, 8), (100, 30), (480, 640), (1500, 2000)])
@pytest.mark.parametrize("sentence", ["a dog", "the man in red " * 20, "w" * 3000, "", "line\nbreak\ttab", "中文 😀"])
def test_every_size_has_a_legible_caption(size: tuple[int, int], sentence: str) -> None:
    drawn = overlay(grey(*size), disc(*size, radius=max(size) // 4 + 1), sentence)
    factor = max(1, 320 // max(size))
    assert drawn.mode == "RGB"
    assert drawn.width >= 320
    strip = np.asarray(drawn)[size[0] * factor :]
    assert 15 <= len(strip) <= 6 * 65 + 60
    ink = (strip.astype(int) > 200).all(-1)
    assert ink.any() == bool(sentence)
    assert (strip[:, [0, 1, -2, -1]] == PAPER).all(), "the text reaches the border"


def test_a_longer_sentence_takes_more_lines_up_to_six() -> None:
    heights = [overlay(grey(480, 640), disc(), "the red man " * count).height for count in (1, 10, 20, 200, 20000)]
    assert heights[0] < heights[1] < heights[2] <= heights[3] == heights[4]


def test_an_image_is_not_changed_and_may_be_a_pil_image() -> None:
    image = grey(50, 60)
    overlay(image, disc(50, 60, 10), "x")
    assert (image == 128).all()
    assert overlay(Image.fromarray(image).convert("L"), disc(50, 60, 10), "x").mode == "RGB"


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ImageError, match="the mask is"):
        overlay(grey(4, 5), np.zeros((5, 4), bool), "x")


def test_several_masks_have_their_own_colours_which_the_legend_shows() -> None:
    masks = [np.zeros((480, 640), bool) for _ in range(10)]
    for index, mask in enumerate(masks):
        mask[100:200, 60 * index + 10 : 60 * index + 50] = True
    drawn = np.asarray(overlay_of(grey(480, 640), [(mask, f"sentence {i}") for i, mask in enumerate(masks)]))
    tints = [tuple(int(value) for value in drawn[150, 60 * index + 30]) for index in range(10)]
    assert len(set(tints)) == 8
    assert tints[8:] == tints[:2]
    alone = np.asarray(overlay(grey(480, 640), masks[0], "sentence 0"))
    assert tuple(alone[150, 30]) == tints[0]
    legend = drawn[480:].reshape(-1, 3).astype(float)
    for tint in tints:  # in the picture 42 % of the colour on 58 % of the image
        colour = (np.array(tint) - 128 * 0.58) / 0.42
        assert (np.abs(legend - colour).max(-1) < 3).sum() > 200
    assert len(np.unique(alone[480:, :40].reshape(-1, 3), axis=0)) < 200
    with pytest.raises(ImageError, match="the mask is"):
        overlay_of(grey(480, 640), [(masks[0], "x"), (masks[0][1:], "y")])


def test_a_later_mask_lies_on_top_and_many_sentences_are_counted() -> None:
    left, right = disc(), np.roll(disc(), 100, axis=1)
    both = np.asarray(overlay_of(grey(480, 640), [(left, "left"), (right, "right")]))
    alone = np.asarray(overlay_of(grey(480, 640), [(np.zeros_like(left), "left"), (right, "right")]))
    assert both[240, 240].tolist() == np.asarray(overlay(grey(480, 640), left, "left"))[240, 240].tolist()
    assert both[240, 500].tolist() == alone[240, 500].tolist() != both[240, 370].tolist()
    nothing, named = np.zeros_like(left), [(left, "left"), (left, "(not found) right")]
    legend = np.asarray(overlay_of(grey(480, 640), named))[480:]
    assert (np.asarray(overlay_of(grey(480, 640), [(left, "left"), (nothing, "right")]))[480:] == legend).all()
    heights = [overlay_of(grey(480, 640), [(left, "x")] * count).height for count in (24, 25, 1000)]
    assert heights[0] < heights[1] == heights[2]
