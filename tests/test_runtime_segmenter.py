"""The Segmenter: a sentence and an image in, a mask at the image's own size out."""

import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lavt_edge.errors import BackendError, BundleError, ImageError, LavtError, PromptError
from lavt_edge.runtime import Prompt, Result, Segmenter, TruncationWarning
from lavt_edge.runtime.backend import OnnxRuntimeBackend
from lavt_edge.runtime.bundle import file_entry
from lavt_edge.runtime.images import resize, result_of
from lavt_edge.runtime.openvino import OpenVINOBackend
from lavt_edge.tests.runtime_bundle import (
    HEIGHT,
    VOCAB,
    WIDTH,
    expected_logits,
    expected_prompt,
    image_graph,
    manifest_for,
    write_bundle,
)
from PIL import Image
from tokenizers import BertWordPieceTokenizer

BATCHES = {"one": 1, "three": 3, "dynamic": None}
SENTENCES = ["the man in red", "a dog", "left zebra", "woman with an umbrella", "the big red bus on the right"]
BERT = BertWordPieceTokenizer(str(VOCAB))
Loader = Callable[..., Segmenter]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {name: write_bundle(root / name, batch) for name, batch in BATCHES.items()}


@pytest.fixture(params=["onnxruntime", "openvino"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    pytest.importorskip(name)
    return name


@pytest.fixture(params=BATCHES)
def segmenter(request: pytest.FixtureRequest, bundles: dict[str, Path], backend: str) -> Segmenter:
    return Segmenter.load(bundles[request.param], device="cpu", threads=1, backend=backend)


@pytest.fixture
def single(bundles: dict[str, Path], backend: str) -> Segmenter:
    return Segmenter.load(bundles["one"], device="cpu", threads=1, backend=backend)


@pytest.fixture
def text_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each run of a text graph."""
    runs: list[int] = []

    def count(kind: type[Any]) -> None:
        original = kind.run

        def counted(self: Any, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
            runs.extend([len(feeds["input_ids"])] if "input_ids" in feeds else [])
            result: list[np.ndarray] = original(self, feeds, outputs)
            return result

        monkeypatch.setattr(kind, "run", counted)

    count(OnnxRuntimeBackend)
    count(OpenVINOBackend)
    return runs


def photo(height: int = 60, width: int = 90, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def expected(image: np.ndarray, sentence: str) -> tuple[np.ndarray, np.ndarray]:
    """Mask and probability, computed in numpy from the ids of tokenizers' own BERT."""
    tokens = BERT.encode(sentence).ids[:20]
    ids, mask = (np.array(row + [0] * (20 - len(tokens))) for row in (tokens, [1] * len(tokens)))
    prompt = expected_prompt(ids, mask)
    logits = expected_logits(resize(image, HEIGHT, WIDTH), prompt, mask.astype(np.float32))
    result = result_of(logits, sentence, image.shape[:2])
    return result.mask, result.probability


def assert_is(result: Result, image: np.ndarray, sentence: str) -> None:
    mask, probability = expected(image, sentence)
    assert result.sentence == sentence
    assert (result.mask.dtype, result.probability.dtype) == (np.dtype(bool), np.dtype(np.float32))
    np.testing.assert_allclose(result.probability, probability, atol=1e-4)
    assert (result.mask != mask).mean() < 0.001


@pytest.mark.parametrize("size", [(60, 90), (HEIGHT, WIDTH), (7, 5), (1, 1), (1, 400)])
def test_a_sentence_on_an_image(segmenter: Segmenter, size: tuple[int, int]) -> None:
    image = photo(*size)
    assert_is(segmenter.segment(image, SENTENCES[0]), image, SENTENCES[0])
    assert_is(segmenter.segment(Image.fromarray(image), segmenter.encode(SENTENCES[1])), image, SENTENCES[1])


def test_the_outputs_depend_on_the_sentence_and_the_image(single: Segmenter) -> None:
    one, two = single.segment(photo(), SENTENCES[:2])
    assert not np.allclose(one.probability, two.probability, atol=0.01)
    assert not np.allclose(one.probability, single.segment(photo(seed=1), SENTENCES[0]).probability, atol=0.01)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 17])
def test_several_sentences_keep_their_order(segmenter: Segmenter, count: int) -> None:
    image = photo()
    sentences = [
        SENTENCES[index % 5] if index < 5 else f"{SENTENCES[index % 5]} number {index}" for index in range(count)
    ]
    mixed = [segmenter.encode(one) if index % 2 else one for index, one in enumerate(sentences)]
    results = segmenter.segment(image, mixed)
    assert isinstance(results, list)
    assert len(results) == count
    for result, sentence in zip(results, sentences, strict=True):
        assert_is(result, image, sentence)
    assert [result.sentence for result in segmenter.segment(image, tuple(sentences))] == sentences


@pytest.mark.parametrize(("name", "rows"), [("one", [1] * 10), ("three", [3] * 4), ("dynamic", [8, 2])])
def test_ten_sentences_run_in_batches(
    bundles: dict[str, Path], name: str, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = Segmenter.load(bundles[name], device="cpu", threads=1)
    sizes: list[int] = []
    graph = segmenter._open_graphs().image
    original = graph.run
    monkeypatch.setattr(
        graph, "run", lambda feeds, outputs: (sizes.append(len(feeds["image"])), original(feeds, outputs))[1]
    )
    segmenter.segment(photo(), [f"dog {index}" for index in range(10)])
    assert sizes == rows


def test_a_sentence_alone_is_not_wrapped_and_no_sentence_is_refused(single: Segmenter) -> None:
    assert isinstance(single.segment(photo(), "a dog"), Result)
    for nothing in ([], ()):
        with pytest.raises(PromptError, match="no sentence"):
            single.segment(photo(), nothing)


@pytest.mark.parametrize("sentence", ["", "  ", "\n", "\ud800", None, 3])
def test_sentences_that_are_refused(single: Segmenter, sentence: object) -> None:
    for call in (lambda: single.encode(sentence), lambda: single.segment(photo(), sentence)):  # type: ignore
        with pytest.raises(PromptError):
            call()
    with pytest.raises(PromptError):
        single.segment(photo(), ["a dog", sentence])  # type: ignore[list-item]


def test_images_that_are_refused(single: Segmenter, tmp_path: Path) -> None:
    for image in (tmp_path / "none.jpg", np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5)), None):
        with pytest.raises(ImageError):
            single.segment(image, "a dog")  # type: ignore[call-overload]


def test_a_path_is_an_image(single: Segmenter, tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    assert_is(single.segment(tmp_path / "photo.png", "a dog"), photo(), "a dog")


def test_a_prompt_is_what_the_text_graph_gives_and_cannot_be_changed(segmenter: Segmenter) -> None:
    prompt = segmenter.encode("the man in red")
    ids = BERT.encode("the man in red").ids
    mask = np.array([1] * len(ids) + [0] * (20 - len(ids)))
    np.testing.assert_array_equal(prompt.prompt, expected_prompt(np.array(ids + [0] * (20 - len(ids))), mask))
    np.testing.assert_array_equal(prompt.word_mask, mask.astype(np.float32))
    assert (prompt.sentence, prompt.truncated) == ("the man in red", False)
    for array in (prompt.prompt, prompt.word_mask):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        assert array.base is None
    with pytest.raises(FrozenInstanceError):
        prompt.sentence = "x"  # type: ignore[misc]


def test_a_prompt_of_another_bundle_is_refused(single: Segmenter, bundles: dict[str, Path], tmp_path: Path) -> None:
    other = Segmenter.load(write_bundle(tmp_path / "other", seed=1), device="cpu", threads=1)
    with pytest.raises(PromptError, match="comes from another bundle"):
        single.segment(photo(), other.encode("a dog"))
    again = Segmenter.load(bundles["one"], device="cpu", threads=1)
    assert_is(single.segment(photo(), again.encode("a dog")), photo(), "a dog")


def test_a_long_sentence_is_cut_with_a_warning_that_names_the_caller(single: Segmenter) -> None:
    sentence = "the man in the red shirt " * 10
    calls = (lambda: single.encode(sentence), lambda: single.segment(photo(), sentence))
    for call in (*calls, lambda: single.segment(photo(), [sentence])):
        with pytest.warns(TruncationWarning, match="longer than 20 tokens") as caught:
            call()
        assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        prompt = single.encode(sentence)
        assert_is(single.segment(photo(), prompt), photo(), sentence)
    assert prompt.truncated
    assert prompt.word_mask.all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not single.encode("dog " * 18).truncated


def test_a_sentence_is_encoded_once(segmenter: Segmenter, text_runs: list[int]) -> None:
    first = segmenter.encode("a dog")
    assert segmenter.encode("a dog") is first
    segmenter.segment(photo(), ["a dog", "a dog"])
    same = segmenter.encode("A  DOG")
    assert same.sentence == "A  DOG"
    assert same.prompt is first.prompt
    assert len(text_runs) == 1


def test_the_cache_is_bounded_and_forgets_the_oldest(bundles: dict[str, Path], text_runs: list[int]) -> None:
    segmenter = Segmenter.load(bundles["one"], device="cpu", threads=1, prompt_cache=2)
    for sentence in ("one", "two", "one", "three", "one"):
        segmenter.encode(sentence)
    assert len(text_runs) == 3
    segmenter.encode("two")
    assert len(text_runs) == 4
    assert len(segmenter._cache) == 2
    uncached = Segmenter.load(bundles["one"], device="cpu", threads=1, prompt_cache=0)
    uncached.encode("one")
    uncached.encode("one")
    assert len(text_runs) == 6
    for refusal in (ValueError, LavtError):
        with pytest.raises(refusal, match="capacity"):
            Segmenter.load(bundles["one"], device="cpu", prompt_cache=-1)


def test_the_cache_does_not_hold_long_texts(single: Segmenter, text_runs: list[int]) -> None:
    sentence = "dog" + " " * 5000
    assert single.encode(sentence).sentence == single.encode(sentence).sentence == sentence
    assert len(text_runs) == 1
    assert all(len(prompt.sentence) <= 1000 for prompt in single._cache._prompts.values())


@pytest.mark.parametrize("name", BATCHES)
def test_threads_get_what_one_thread_gets(bundles: dict[str, Path], name: str, text_runs: list[int]) -> None:
    alone = Segmenter.load(bundles[name], device="cpu", threads=2)
    images = [photo(40 + 7 * index, 50, index) for index in range(4)]
    wanted = [[alone.segment(image, sentence) for sentence in SENTENCES] for image in images]
    text_runs.clear()
    shared = Segmenter.load(bundles[name], device="cpu", threads=2)
    barrier = threading.Barrier(8)

    def work(worker: int) -> None:
        barrier.wait()
        for step in range(20):
            row, column = (worker + step) % 4, (worker * 3 + step) % 5
            result = shared.segment(images[row], SENTENCES[column])
            assert np.array_equal(result.probability, wanted[row][column].probability)
            assert np.array_equal(result.mask, wanted[row][column].mask)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(text_runs) == len(SENTENCES)


def test_a_cached_prompt_does_not_wait_for_another_sentence(single: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    single.encode("a dog")
    started, release = threading.Event(), threading.Event()
    text = single._open_graphs().text
    original = text.run

    def slow(*feeds: Any) -> list[np.ndarray]:
        started.set()
        assert release.wait(60)
        return original(*feeds)

    monkeypatch.setattr(text, "run", slow)
    with ThreadPoolExecutor(2) as pool:
        pending = pool.submit(single.encode, "a cat")
        assert started.wait(60)
        assert pool.submit(single.encode, "a dog").result(timeout=300).sentence == "a dog"
        release.set()
        assert pending.result(timeout=300).sentence == "a cat"


def test_the_bare_graphs(segmenter: Segmenter) -> None:
    rows = segmenter.manifest.input.batch or 2
    ids, mask = np.full((rows, 20), 7), np.ones((rows, 20), np.int64)
    prompt = segmenter.encode_graph(ids, mask)
    assert prompt.shape == (rows, 20, 8)
    image = np.stack([photo(HEIGHT, WIDTH)] * rows)
    logits = segmenter.run_graph(image, prompt, mask.astype(np.float32))
    wanted = expected_logits(image[0], prompt[0], mask[0].astype(np.float32))
    np.testing.assert_allclose(logits[-1], wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(BackendError, match="could not run"):
        segmenter.run_graph(image[:, :5], prompt, mask.astype(np.float32))


def test_what_it_says_about_itself(bundles: dict[str, Path]) -> None:
    with Segmenter.load(bundles["dynamic"], device="cpu") as segmenter:
        assert segmenter.device == "cpu"
        assert segmenter.input_size == (HEIGHT, WIDTH)
        assert segmenter.manifest.checkpoint.name == "small.pth"
        assert repr(segmenter) == "<Segmenter lavt tiny, 24x32, batch dynamic, fp32, cpu>"
    assert repr(segmenter).endswith("closed>")


def test_after_close_every_use_is_refused(single: Segmenter) -> None:
    prompt = single.encode("a dog")
    single.close()
    single.close()
    uses: list[Callable[[], object]] = [
        lambda: single.encode("a dog"),
        lambda: single.segment(photo(), "a dog"),
        lambda: single.segment(photo(), prompt),
    ]
    for use in uses:
        with pytest.raises(BackendError, match="closed: load it again"):
            use()


@pytest.mark.parametrize("graph", [0, 1], ids=["text", "image"])
def test_a_call_that_is_under_way_when_another_thread_closes_still_finishes(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, graph: int
) -> None:
    """Before its first graph, and between the two batches of five sentences."""
    wanted = Segmenter.load(bundles["three"], device="cpu", threads=1).segment(photo(), SENTENCES)
    shared = Segmenter.load(bundles["three"], device="cpu", threads=1)
    started, release = threading.Event(), threading.Event()
    backend = (shared._open_graphs().text, shared._open_graphs().image)[graph]
    original = backend.run

    def slow(*feeds: Any) -> list[np.ndarray]:
        started.set()
        assert release.wait(60)
        return original(*feeds)

    monkeypatch.setattr(backend, "run", slow)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(shared.segment, photo(), SENTENCES)
        assert started.wait(60)
        shared.close()
        with pytest.raises(BackendError, match="closed"):
            shared.encode("a dog")
        release.set()
        found = pending.result(timeout=300)
    assert all(np.array_equal(a.probability, b.probability) for a, b in zip(found, wanted, strict=True))


def test_a_graph_that_is_not_what_the_manifest_says(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="writes a graph with onnx")
    bundle = write_bundle(tmp_path / "bundle")
    onnx.save(image_graph(1, height=HEIGHT + 8), bundle / "segmenter.onnx")
    files = {
        "tokenizer.json": file_entry(bundle / "tokenizer.json", "tokenizer"),
        "text_encoder.onnx": file_entry(bundle / "text_encoder.onnx", "text_encoder", "fp32"),
        "segmenter.onnx": file_entry(bundle / "segmenter.onnx", "segmenter", "fp32"),
    }
    (bundle / "lavt.json").write_text(manifest_for(files).to_json())
    with pytest.raises(BundleError, match=r"expected the input image uint8 \(1, 24, 32, 3\), found .*32, 32"):
        Segmenter.load(bundle, device="cpu")


def test_a_prompt_from_elsewhere_that_does_not_fit_is_an_error_of_the_backend(single: Segmenter) -> None:
    prompt = replace(single.encode("a dog"), prompt=np.zeros((20, 5), np.float32))
    assert isinstance(prompt, Prompt)
    with pytest.raises(BackendError, match="could not run"):
        single.segment(photo(), prompt)


def test_the_import_brings_nothing_heavy() -> None:
    code = """
import sys
import lavt_edge.runtime
heavy = {"torch", "onnx", "transformers", "timm", "onnxruntime", "tensorrt", "typer", "rich", "polygraphy"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_segmenting_needs_no_framework_but_onnxruntime(bundles: dict[str, Path]) -> None:
    code = f"""
import sys
for name in ("torch", "onnx", "transformers", "timm", "typer", "torchvision", "hypothesis"):
    sys.modules[name] = None
import numpy as np
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.overlay import overlay
image = np.zeros((40, 50, 3), np.uint8)
result = Segmenter.load({str(bundles["one"])!r}, device="cpu").segment(image, "a dog")
overlay(image, result.mask, result.sentence)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
