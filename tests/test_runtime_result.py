"""Results: probabilities at the image's own size or the model's, made when they are read and kept."""

import copy
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from pathlib import Path
from threading import Barrier
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from lavt_edge.errors import BackendError
from lavt_edge.runtime import Result, Segmenter
from lavt_edge.runtime.images import result as result_module
from lavt_edge.runtime.images import result_of
from lavt_edge.tests.runtime_bundle import HEIGHT, WIDTH, write_bundle

SHAPE = (2, 12, 10)


def logits_of(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * 3


def foreground(logits: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    result = result_of(logits, "", (height, width))
    return result.mask, result.probability


FINITE = st.floats(-100, 100, width=32)
SPECIAL = st.sampled_from([float(np.float32(value)) for value in (0, 1, -1, 1e-9, 1e-30, 1e-45, 60)])


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float32, (2, 5, 4), elements=SPECIAL | FINITE))
def test_at_equal_size_the_mask_is_the_argmax_and_the_probability_is_the_softmax(logits: np.ndarray) -> None:
    mask, probability = foreground(logits, 5, 4)
    assert np.array_equal(mask, logits.argmax(0) == 1)
    assert np.array_equal(mask, probability > 0.5)
    assert mask.dtype == bool
    assert probability.dtype == np.float32
    powers = np.exp(logits.astype(np.float64) - logits.max(0))
    softmax = powers[1] / powers.sum(0)
    np.testing.assert_allclose(probability, softmax, rtol=2e-6, atol=1e-7)


def test_a_tie_is_background() -> None:
    mask, probability = foreground(np.ones((2, 3, 3), np.float32), 3, 3)
    assert not mask.any()
    assert (probability == 0.5).all()


@pytest.fixture(params=["with OpenCV", "without"])
def opencv(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """As where OpenCV is installed, and where it is not."""
    result_module._opencv.cache_clear()
    if request.param == "without":
        monkeypatch.setitem(sys.modules, "cv2", None)
    else:
        pytest.importorskip("cv2")
    assert (result_module._opencv() is None) == (request.param == "without")
    yield request.param
    result_module._opencv.cache_clear()


@pytest.mark.usefixtures("opencv")
@pytest.mark.parametrize(
    ("height", "width"),
    [(24, 31), (12, 11), (13, 10), (13, 8), (8, 8), (3, 4), (1, 1), (1, 40), (480, 640), (100, 33), (1080, 1920)],
)
def test_other_sizes_equal_torch_s_antialiased_bilinear_of_the_difference(height: int, width: int) -> None:
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(1).standard_normal((2, 12, 10), dtype=np.float32) * 3
    mask, probability = foreground(logits, height, width)
    difference = torch.from_numpy(logits[1] - logits[0]).double()[None, None]
    resized = torch.nn.functional.interpolate(difference, (height, width), mode="bilinear", antialias=True)[0, 0]
    assert probability.shape == mask.shape == (height, width)
    np.testing.assert_allclose(probability, resized.sigmoid().numpy(), atol=2e-6)
    assert np.array_equal(mask, probability > 0.5)
    clear = resized.abs().numpy() > 1e-5
    assert np.array_equal(mask[clear], (resized > 0).numpy()[clear])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_overflowed_are_not_hidden(value: float) -> None:
    logits = np.zeros((2, 4, 4), np.float32)
    logits[1, 2, 2] = value
    with pytest.raises(BackendError, match="not finite"):
        foreground(logits, 8, 8)


def test_extreme_logits_do_not_overflow() -> None:
    logits = np.zeros((2, 1, 2), np.float32)
    logits[1] = (3e4, -3e4)
    with np.errstate(over="raise", invalid="raise"):
        _, probability = foreground(logits, 1, 2)
    assert probability[0, 0] == 1
    assert 0 <= probability[0, 1] < 1e-37


@pytest.mark.parametrize("size", [(40, 35), (12, 11), (1080, 1920)])
def test_opencv_s_masks_are_ours(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2")
    shape = (2, 480, 480) if size[0] > 480 else SHAPE
    quick = result_of(logits_of(1, shape), "", size)
    assert quick.mask.any()  # made with OpenCV
    monkeypatch.setattr(result_module, "_opencv", lambda: None)
    plain = result_of(logits_of(1, shape), "", size)
    np.testing.assert_allclose(quick.probability, plain.probability, atol=1e-6)
    assert np.array_equal(quick.mask, plain.mask)


@pytest.mark.usefixtures("opencv")
@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 70), st.integers(1, 70), st.integers(0, 9))
def test_any_size_from_any_size(h: int, w: int, height: int, width: int, seed: int) -> None:
    """The mask is the probability's; and a constant stays one, so that weights sum to 1 and no border is missed."""
    result = result_of(logits_of(seed, (2, h, w)), "", (height, width))
    assert result.mask.shape == result.probability.shape == (height, width)
    assert np.array_equal(result.mask, result.probability > 0.5)
    flat = result_of(np.stack([np.zeros((h, w), np.float32), np.full((h, w), 2, np.float32)]), "", (height, width))
    np.testing.assert_allclose(flat.probability, 1 / (1 + np.exp(-2)), atol=1e-6)


@pytest.mark.parametrize("error", [ImportError("none"), AttributeError("_ARRAY_API not found")])
def test_an_opencv_that_cannot_be_imported_is_none(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "cv2":
                raise error

    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert result_module._opencv.__wrapped__() is None
    monkeypatch.setitem(sys.modules, "cv2", ModuleType("cv2"))  # a folder of that name, for example
    assert result_module._opencv.__wrapped__() is None


def test_only_what_is_read_is_made_and_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    bands, sigmoid = result_module._bands, result_module._sigmoid
    monkeypatch.setattr(result_module, "_bands", lambda *of: (made.append("resized"), bands(*of))[1])
    monkeypatch.setattr(result_module, "_sigmoid", lambda *of: (made.append("exponential"), sigmoid(*of))[1])
    result = result_of(logits_of(), "a dog", (40, 30))
    assert made == []
    assert result.mask is result.mask
    assert made == ["resized"]
    assert result.probability is result.probability
    assert made.count("resized") == 2
    assert "exponential" in made
    count = len(made)
    assert result.score == pytest.approx(result.probability[result.mask].mean(dtype=np.float64), abs=1e-6)
    assert len(made) == count


def test_the_score_is_the_mean_probability_within_the_mask() -> None:
    sure = np.zeros((2, 2, 2), np.float32)
    sure[1] = [[3, -1], [1, 0]]
    result = result_of(sure, "")
    assert result.score == pytest.approx((1 / (1 + np.exp(-3)) + 1 / (1 + np.exp(-1))) / 2, abs=1e-6)
    assert isinstance(result.score, float)
    assert result_of(sure[::-1] - 4, "").score == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)
    assert result_of(np.zeros((2, 2, 2), np.float32), "").score == 0


def test_threads_that_read_a_result_get_the_same_arrays() -> None:
    for seed in range(20):
        result, barrier = result_of(logits_of(seed), "", (300, 200)), Barrier(8)

        def read(_: int, result: Result = result, barrier: Barrier = barrier) -> tuple[int, int]:
            barrier.wait()
            return id(result.mask), id(result.probability)

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(read, range(8))) == {(id(result.mask), id(result.probability))}


@pytest.mark.parametrize("read_before", [False, True])
def test_results_are_pickled_and_copied(read_before: bool) -> None:
    result = result_of(logits_of(), "a dog", (40, 30))
    if read_before:
        assert result.mask.any()
    for again in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result), copy.copy(result)):
        assert again.sentence == "a dog"
        assert np.array_equal(again.mask, result.mask)
        assert np.array_equal(again.probability, result.probability)


def test_a_result_is_equal_to_itself_alone_and_cannot_be_changed() -> None:
    result = result_of(logits_of(), "a dog", (40, 30))
    assert result != result_of(logits_of(), "a dog", (40, 30))
    assert len({result, result}) == 1
    assert repr(result) == "Result(sentence='a dog', height=40, width=30)"
    for name in ("mask", "probability", "sentence"):
        with pytest.raises(FrozenInstanceError):
            setattr(result, name, None)


def test_results_at_the_model_s_own_size(tmp_path: Path) -> None:
    with Segmenter.load(write_bundle(tmp_path / "bundle"), device="cpu", threads=1) as segmenter:
        image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        own = segmenter.segment(image, "a dog", size="model")
        assert own.mask.shape == own.probability.shape == (HEIGHT, WIDTH)
        assert np.array_equal(own.mask, own.logit > 0)
        framed = segmenter.segment(image, "a dog")
        assert framed.mask.shape == (70, 90)
        assert np.array_equal(framed.logit, own.logit)
        (streamed,) = segmenter.stream([image], ["a dog"], size="model")
        (batched,) = segmenter.segment_batch([(image, "a dog")], size="model")
        assert np.array_equal(streamed[0].mask, own.mask)
        assert np.array_equal(batched.mask, own.mask)
        for call in (segmenter.segment, lambda *of, size: segmenter.stream([of[0]], of[1], size=size)):
            with pytest.raises(ValueError, match="size 'half': give 'frame' or 'model'"):
                call(image, "a dog", size="half")
