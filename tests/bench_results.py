"""Results files of `lavt-bench --dataset` for its tests: how they are read, and what should be in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lavt_edge.data import RefCOCO
from lavt_edge.data.sentences import Split, open_split
from lavt_edge.errors import LavtError
from lavt_edge.runtime.tokenizer import SentenceTokenizer, build_tokenizer
from lavt_edge.tests.runtime_bundle import HEIGHT, VOCAB, WIDTH, WORDS, expected_logits, expected_prompt
from PIL import Image

MINI = Path(__file__).parent / "data" / "refer_mini"
Progress = Callable[[int, int], None]


def mini(split: str = "test", **options: Any) -> Split:
    return open_split("refcoco", split, data_root=MINI, **options)


def nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(np.uint8(255) * mask).resize((width, height), Image.Resampling.NEAREST)) == 255


def expected_counts(root: Path, split: str) -> dict[int, tuple[int, int]]:
    """(intersection, union) by sentence, from the fake model's arithmetic in numpy."""
    tokenizer = SentenceTokenizer(build_tokenizer(VOCAB), WORDS)
    counts = {}
    for ref in RefCOCO(root, split=split):
        image = np.asarray(ref.image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))
        target = nearest(ref.mask, HEIGHT, WIDTH)
        for sentence_id, text in zip(ref.sentence_ids, ref.sentences, strict=True):
            ids, words, _ = tokenizer.encode(text)
            mask = expected_logits(image, expected_prompt(ids, words), words.astype(np.float32)).argmax(0) == 1
            counts[sentence_id] = (int((mask & target).sum()), int((mask | target).sum()))
    return counts


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def counts_in(path: Path) -> dict[int, tuple[int, int]]:
    return {line["sentence_id"]: (line["intersection"], line["union"]) for line in lines(path)[1:]}


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(LavtError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def stop_after(count: int) -> Progress:
    def progress(done: int, total: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return progress
