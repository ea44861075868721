"""Sentences: any Unicode, and what is no text at all, to token ids, to masks and to captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lavt_edge.errors import LavtError, PromptError
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.overlay import overlay
from lavt_edge.runtime.tokenizer import SentenceTokenizer, build_tokenizer
from lavt_edge.tests.runtime_bundle import HEIGHT, VOCAB, WIDTH, write_bundle
from lavt_edge.tests.stress.cases import Case, Kind, Rng, attempt

PIECES = (
    *("the man in red ", "[SEP]", "[CLS]", "[MASK", "##s", "[unused1]", "a" * 200, "  ", "\t\r\n", "\u3000", "\u200b"),
    *(
        "עברית ",
        "العربية ",
        "\u202e",
        "\u2066",
        "\u200f",
        "😀",
        "👨‍👩‍👧",
        "🏳️‍🌈",
        "\U000e0061",
        "e\u0301",
        "\u0301" * 30,
    ),
    *(
        "中文",
        "한국어",
        "ไทย",
        "हिन्दी",
        "ﬁ",
        "İ",
        "ß",
        "ǅ",
        "\0",
        "\x1b[31m",
        "\x7f",
        "\ufeff",
        "\ufffd",
        "\uffff",
        "\U0010ffff",
    ),
    *("\ud800", "\udfff", "\udc80", "../", "%s{}", "[/red]", "'\"\\", "<b>", "-", "١٢٣", "𝔞𝔟", "ａ"),
)


class Text(str):
    """A subclass of str, as other packages have them."""


def sentence(rng: Rng) -> Any:
    """A sentence of any kind; seldom one of a megabyte, and sometimes no text."""
    match int(rng.integers(10)):
        case 0:
            values = (None, 5, 1.5, b"a man", ["a man"], ("a",), {}, object(), np.array("a man"), True, bytearray(b"x"))
            return values[int(rng.integers(len(values)))]
        case 1:
            part = PIECES[int(rng.integers(len(PIECES)))]
            return part * int(rng.choice([1, 10, 1000, 1_000_000 // len(part)], p=[0.4, 0.4, 0.17, 0.03]))
        case 2 | 3:
            points = rng.integers(0, 0x110000, int(rng.integers(0, 60)))
            return "".join(map(chr, points))
        case 4:
            return "".join(map(chr, rng.integers(0, 0x20, int(rng.integers(0, 20)))))
        case 5:
            return "".join(str(rng.choice(["\u0301", "\u0323", "\u20dd", "a", " "])) for _ in range(200))
        case 6:
            return Text("the red circle")
        case 7:
            return np.str_("the red circle")
        case _:
            return "".join(PIECES[i] for i in rng.integers(0, len(PIECES), int(rng.integers(0, 25))))


def _is_lone(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def tokens(folder: Path) -> Case:
    tokenizer = SentenceTokenizer(build_tokenizer(VOCAB))

    def case(rng: Rng) -> None:
        text = sentence(rng)
        answer = attempt(lambda: tokenizer.encode(text), PromptError)
        refused = isinstance(answer, PromptError)
        assert refused or isinstance(text, str)
        assert refused or not _is_lone(text)
        if not isinstance(answer, LavtError):
            ids, mask, _ = answer
            assert ids.shape == mask.shape == (20,)
            assert 3 <= mask.sum() <= 20 or mask.sum() == 20
            assert ((ids >= 0) & (ids < 30522)).all()
            assert not ids[mask == 0].any()

    return case


def masks(folder: Path) -> Case:
    """Through a whole Segmenter, alone and in a list, and into the caption of an overlay."""
    segmenter = Segmenter.load(write_bundle(folder / "bundle", batch=None), device="cpu", threads=1)
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)

    def case(rng: Rng) -> None:
        text = sentence(rng)
        result = attempt(lambda: segmenter.segment(image, text), PromptError)
        if isinstance(result, LavtError):
            assert isinstance(attempt(lambda: segmenter.segment(image, ["a man", text]), PromptError), PromptError)
            return
        results = result if isinstance(result, list) else [result]
        for one in results:
            assert one.mask.shape == (HEIGHT, WIDTH)
        if isinstance(text, str):
            assert results[0].sentence == text
            picture = overlay(image, results[0].mask, text)
            assert picture.width >= WIDTH

    return case


def captions(folder: Path) -> Case:
    """A program may draw any text below an image, also one that cannot be segmented for."""
    image, mask = np.zeros((30, 40, 3), np.uint8), np.zeros((30, 40), bool)

    def case(rng: Rng) -> None:
        text = sentence(rng)
        if isinstance(text, str):
            picture = attempt(lambda: overlay(image, mask, text))
            assert not isinstance(picture, LavtError)
            assert picture.height < 2000

    return case


KINDS: dict[str, Kind] = {"sentences": tokens, "sentences to masks": masks, "captions": captions}
