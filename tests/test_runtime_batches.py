"""Rows in batches, and the inputs made of them; several images in one run; where warnings point to."""

from __future__ import annotations

import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from lavt_edge._base.callers import warn_caller
from lavt_edge.errors import BackendError, ImageError, PromptError
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.batches import image_feeds, in_batches, stack_prompts, text_feeds
from lavt_edge.runtime.prompt import Prompt
from lavt_edge.tests.runtime_bundle import write_bundle


@pytest.mark.parametrize(
    ("rows", "size", "filled", "cut"),
    [
        ([], 3, [], []),
        ([1], 3, [[1, 1, 1]], [[1]]),
        ([1, 2, 3], 3, [[1, 2, 3]], [[1, 2, 3]]),
        ([1, 2, 3, 4], 3, [[1, 2, 3], [4, 4, 4]], [[1, 2, 3], [4]]),
        ([1, 2], 1, [[1], [2]], [[1], [2]]),
    ],
)
def test_the_last_batch_is_filled_with_its_last_row(
    rows: list[int], size: int, filled: list[list[int]], cut: list[list[int]]
) -> None:
    assert list(in_batches(rows, size)) == filled
    assert list(in_batches(rows, size, fill=False)) == cut


def test_the_inputs_of_both_graphs() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (4, 5, 3), dtype=np.uint8) for _ in range(2)]
    prompts = [rng.standard_normal((3, 7), dtype=np.float32) for _ in range(2)]
    ids, masks = [np.array([1, 2, 0]), np.array([3, 0, 0])], [np.array([1, 1, 0]), np.array([1, 0, 0])]
    text, image = text_feeds(ids, masks), image_feeds(images, prompts, masks)
    assert {name: (array.shape, array.dtype.name) for name, array in {**text, **image}.items()} == {
        "input_ids": ((2, 3), "int64"),
        "attention_mask": ((2, 3), "int64"),
        "image": ((2, 4, 5, 3), "uint8"),
        "prompt": ((2, 3, 7), "float32"),
        "word_mask": ((2, 3), "float32"),
    }
    for row in range(2):
        np.testing.assert_array_equal(image["image"][row], images[row])
        np.testing.assert_array_equal(image["prompt"][row], prompts[row])
        np.testing.assert_array_equal(image["word_mask"][row], masks[row])


@pytest.mark.parametrize("rows", [1, 3])
def test_prompts_on_one_image(rows: int) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    prompts = [Prompt("a", rng.standard_normal((3, 7), np.float32), np.ones(3, np.float32), False, "") for _ in "abc"]
    batch = stack_prompts(prompts[:rows])
    assert stack_prompts(prompts[:rows], batch) is batch
    assert stack_prompts(prompts[::-1][:rows], batch) is not batch
    wanted = image_feeds([image] * rows, [one.prompt for one in prompts[:rows]], [np.ones(3)] * rows)
    feeds = batch.feeds([image] * rows)
    assert feeds.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(feeds[name], array)
        assert feeds[name].dtype == array.dtype


def test_a_warning_points_to_the_first_line_outside_the_package() -> None:
    """However deep the call is inside it; a package whose name begins alike is outside."""

    def module(name: str, source: str, **names: object) -> types.ModuleType:
        made = types.ModuleType(name)
        made.__dict__.update(names)
        exec(compile(source, f"{name}.py", "exec"), made.__dict__)
        return made

    deep = module("inner.deep", "def warn(): warn_caller('careful', UserWarning, 'inner')", warn_caller=warn_caller)
    top = module("inner", "def warn():\n    return [f() for f in [deep.warn]]", deep=deep)
    other = module("inner_too", "\n\ndef call(): top.warn()", top=top)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        other.call()
        deep.warn()
    assert (caught[0].filename, caught[0].lineno) == ("inner_too.py", 3)
    assert caught[1].filename == __file__


# several images in one run


def photo(height: int, width: int, seed: int) -> np.ndarray:
    """Shapes of a few colours, which the demo model finds."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), rng.integers(90, 160), np.uint8)
    for _ in range(4):
        top, left = rng.integers(height), rng.integers(width)
        image[top : top + height // 4, left : left + width // 4] = rng.integers(0, 256, 3)
    return image


SIZES = [(240, 240), (120, 333), (60, 90), (480, 640), (241, 1), (240, 240), (50, 50)]
SENTENCES = ["the red square", "the leftmost one", "the small blue square", "the red square", "green"]


def check_batch(segmenter: Segmenter, rows: int, monkeypatch: pytest.MonkeyPatch, exact: bool = True) -> list[int]:
    """Each result is that of a call alone. Returns how many rows each run of the graph had."""
    pairs = [(photo(*SIZES[i], seed=i), SENTENCES[i % 5]) for i in range(rows)]
    wanted = [segmenter.segment(image, prompt) for image, prompt in pairs]
    sizes: list[int] = []
    graph = segmenter._open_graphs().image
    run = graph.run
    monkeypatch.setattr(
        graph, "run", lambda feeds, outputs: (sizes.append(len(feeds["image"])), run(feeds, outputs))[1]
    )
    mixed = ((image, segmenter.encode(prompt) if i % 2 else prompt) for i, (image, prompt) in enumerate(pairs))
    results = segmenter.segment_batch(mixed)
    assert [result.sentence for result in results] == [sentence for _, sentence in pairs]
    for result, one in zip(results, wanted, strict=True):
        assert result.mask.shape == one.mask.shape
        np.testing.assert_allclose(result.logit, one.logit, rtol=0, atol=0 if exact else 1e-4)
        np.testing.assert_allclose(result.probability, one.probability, rtol=0, atol=0 if exact else 1e-5)
    return sizes


@pytest.mark.parametrize(("batch", "runs"), [(1, [1] * 7), (3, [3] * 3), (8, [8]), (None, [1] * 7)])
def test_several_images_are_what_each_is_alone(
    batch: int | None, runs: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a dynamic batch too: where it is run by ONNX Runtime on a CPU, the images are run one by one."""
    with Segmenter.load(write_bundle(tmp_path / "bundle", batch), device="cpu", threads=1) as segmenter:
        assert check_batch(segmenter, 7, monkeypatch) == runs


def test_a_dynamic_batch_elsewhere_is_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Segmenter.load(write_bundle(tmp_path / "bundle", None), device="cpu", threads=1) as segmenter:
        graph = segmenter._open_graphs().image
        monkeypatch.setattr(graph, "device", "cuda")
        assert check_batch(segmenter, 7, monkeypatch, exact=False) == [7]
        monkeypatch.setattr(graph, "max_batch", 4)
        assert check_batch(segmenter, 7, monkeypatch, exact=False) == [4, 3]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_demo_model_s_images_are_what_each_is_alone(
    demo_bundle: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose graph, unlike a toy's, rounds otherwise when it has several images."""
    with Segmenter.load(demo_bundle, device="cpu", threads=threads) as segmenter:
        assert check_batch(segmenter, 4, monkeypatch) == [1] * 4


def test_the_demo_model_s_images_in_a_static_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lavt_edge.export import ExportOptions
    from lavt_edge.export.source import open_source

    source = open_source(None)
    source.export(tmp_path / "bundle", ExportOptions(size=source.size, batch=3))
    with Segmenter.load(tmp_path / "bundle", device="cpu", threads=2) as segmenter:
        assert check_batch(segmenter, 4, monkeypatch) == [3, 3]


def test_several_prompts_for_an_image_have_a_result_each(tmp_path: Path) -> None:
    images, sentences = [photo(20, 30, 0), photo(40, 20, 1)], [["a dog", "a red cat"], ["a man"]]
    with Segmenter.load(write_bundle(tmp_path / "bundle", 3), device="cpu", threads=1) as segmenter:
        apart = [(image, one) for image, several in zip(images, sentences, strict=True) for one in several]
        results = segmenter.segment_batch(zip(images, sentences, strict=True))
        assert [one.sentence for one in results] == [sentence for _, sentence in apart]
        for result, expected in zip(results, segmenter.segment_batch(apart), strict=True):
            assert np.array_equal(result.logit, expected.logit)
            assert result.mask.shape == expected.mask.shape


def test_a_batch_is_refused_before_the_graph_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = Segmenter.load(write_bundle(tmp_path / "bundle", 3), device="cpu", threads=1)
    graph = segmenter._open_graphs().image
    sound = (photo(20, 20, 0), "a dog")
    assert segmenter.segment_batch([]) == []
    with monkeypatch.context() as patched:
        patched.setattr(graph, "run", lambda *_: pytest.fail("the graph was run"))
        for bad, error in (
            ((np.zeros((4, 4, 3), np.float32), "a dog"), ImageError),
            (("none.jpg", "a dog"), ImageError),
            ((sound[0], " "), PromptError),
            ((sound[0], []), PromptError),
            ((sound[0], [["a dog"]]), PromptError),
        ):
            with pytest.raises(error):
                segmenter.segment_batch([sound, bad])  # type: ignore[list-item]
    segmenter.close()
    with pytest.raises(BackendError, match="closed"):
        segmenter.segment_batch([sound])
