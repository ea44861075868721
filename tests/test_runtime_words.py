"""Words that a vocabulary does not have: exact lists for BERT's and the demo model's, one warning, or an error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lavt_edge.benchmarks.peers.onnx import BundleSide
from lavt_edge.benchmarks.peers.sides import SideSpec
from lavt_edge.benchmarks.timing.latency import measure_split
from lavt_edge.data.shapes.words import VOCABULARY
from lavt_edge.runtime import PromptError, Segmenter, UnknownWordsWarning
from lavt_edge.runtime.tokenizer import SentenceTokenizer, build_tokenizer
from lavt_edge.tests.runtime_bundle import VOCAB, write_bundle

BERT = SentenceTokenizer(build_tokenizer(VOCAB))
DEMO = SentenceTokenizer(build_tokenizer(VOCABULARY))


@pytest.mark.parametrize(
    ("sentence", "of_bert", "of_demo"),
    [
        ("the leftmost red circle, at the top!", [], []),
        ("the man in blue jeans", [], ["man", "jeans"]),
        ("Man and MAN and man", [], ["Man", "and", "MAN", "man"]),
        ("a T-shirt", [], ["shirt"]),
        ("an embroidered armchair", [], ["an", "embroidered", "armchair"]),
        ("the Müller hoop 😀", ["😀"], ["Müller", "😀"]),
        ("red xqzjw", ["xqzjw"], ["xqzjw"]),
        ("빨간 막대, red", ["빨간", "막대"], ["빨간", "막대"]),
        ("红色的圆", ["红色", "圆"], ["红色的圆"]),
        ("the [SEP] red circle [MASK]", [], []),
        ("red " + "w" * 150, ["w" * 40], ["w" * 40]),
        ("red " * 18 + "😀 zork", ["😀"], ["😀"]),
        ("red " * 19 + "😀", [], []),
        ("red " * 3000 + "😀", [], []),
        ("!!!", [], []),
    ],
)
def test_exact_lists(sentence: str, of_bert: list[str], of_demo: list[str]) -> None:
    assert (list(BERT.unknown_words(sentence)[0]), list(DEMO.unknown_words(sentence)[0])) == (of_bert, of_demo)


@pytest.mark.parametrize(
    ("sentence", "known"), [("xqzjw", False), ("xqzjw!", False), ("😀 red", True), ("的 圆", True)]
)
def test_punctuation_alone_is_no_known_word(sentence: str, known: bool) -> None:
    assert BERT.unknown_words(sentence)[1] is known


def test_every_word_of_the_generated_sentences_is_known() -> None:
    words = [word for word in VOCABULARY if not word.startswith(("##", "["))]
    assert [DEMO.unknown_words(word)[0] for word in words] == [()] * len(words)


@pytest.fixture
def segmenter(tmp_path: Path) -> Iterator[Segmenter]:
    with Segmenter.load(write_bundle(tmp_path / "bundle"), device="cpu", threads=1) as loaded:
        yield loaded


FRAME = np.zeros((30, 40, 3), np.uint8)


def test_a_sentence_warns_once_at_the_callers_line_and_others_warn_themselves(segmenter: Segmenter) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        segmenter.encode("the 😀 dog")
        segmenter.encode("the 😀 dog")
        segmenter.segment(FRAME, "the 😀 dog")
        segmenter.segment_batch([(FRAME, "the 😀 dog"), (FRAME, "a dog")])
        segmenter.encode("the 圆 dog")  # the same token ids
    assert [(str(warning.message), warning.category, warning.filename) for warning in caught] == [
        (
            f"the model's vocabulary does not have {word!r}, of 'the {word} dog': the mask may miss the object",
            UnknownWordsWarning,
            __file__,
        )
        for word in "😀圆"
    ]


def test_a_warning_that_is_made_an_error_is_one_every_time(segmenter: Segmenter) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(UnknownWordsWarning):
                segmenter.encode("the 😀 dog")


def test_a_stream_warns_once(segmenter: Segmenter) -> None:
    with pytest.warns(UnknownWordsWarning) as caught:
        assert len(list(segmenter.stream([FRAME] * 5, ["the 😀 dog", "a dog", "the 😀 dog"]))) == 5
    assert len(caught) == 1


def test_known_words_do_not_warn(segmenter: Segmenter) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmenter.segment(FRAME, "the embroidered armchair, on the left!")


@pytest.mark.parametrize("sentence", ["😀", "😀 圆", "zqxjw!"])
def test_a_sentence_of_unknown_words_alone_is_refused_but_not_by_an_evaluation(
    segmenter: Segmenter, sentence: str
) -> None:
    for call in (segmenter.encode, lambda text: segmenter.segment(FRAME, text), lambda t: segmenter.stream([FRAME], t)):
        with pytest.raises(PromptError, match="the model's vocabulary has no word of this sentence") as caught:
            call(sentence)
    assert "\n" not in str(caught.value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert segmenter.encode(sentence, blank=True).sentence == sentence


def test_a_measurement_names_no_words(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "measured")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        side = BundleSide(SideSpec("ours", "bundle", bundle, path=bundle, device="cpu", text="the 😀 dog"))
        measure_split(side.segmenter, FRAME, "the 😀 dog", rounds=1)
