"""Checkpoints in many forms: each gives the same model, or a line that says what is wrong; nothing in them runs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lavt_edge.errors import CheckpointError
from lavt_edge.reference.checkpoint import open_checkpoint
from lavt_edge.reference.weights import Unread, read_weights
from lavt_edge.tests.checkpoint_forms import (
    BERT,
    COUNTER,
    FORMS,
    NO_BERT,
    NUMBERS,
    ONE,
    OTHERS,
    PATHS,
    REFUSED,
    TWOS,
    WORDS,
    bare,
    file,
    namespace,
    one,
)
from lavt_edge.tests.small_checkpoints import SMALL, Call, saved
from lavt_edge.tests.small_checkpoints import small_bert as small_bert  # a fixture

pytestmark = pytest.mark.usefixtures("one_thread", "small_bert")


def refused(path: Path, **options: Any) -> str:
    """The line with which a file is refused, or a size in it that is none."""
    with pytest.raises(CheckpointError) as caught:
        _ = open_checkpoint(path, **options).image_size
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("name", FORMS)
def test_each_form_gives_the_model(name: str, tmp_path: Path) -> None:
    form = FORMS[name]
    opened = open_checkpoint(form.write(tmp_path), **form.options(tmp_path))
    assert opened.config == replace(SMALL, variant=form.variant, fusion_heads=form.heads)
    assert opened.image_size == form.size
    assert opened.heads_assumed is form.assumed
    expected, loaded = ONE.state_dict(), opened.model().state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.items() if not key.endswith(COUNTER))


def test_there_are_enough_forms() -> None:
    assert len(FORMS) > 45


def test_another_berts_words_give_its_size(tmp_path: Path) -> None:
    state = {**bare(), WORDS: torch.zeros(77, 24)}
    opened = open_checkpoint(saved(tmp_path / "chinese.pth", one(model=state)))
    assert opened.config.text == replace(SMALL.text, vocab_size=77)
    assert opened.model().state_dict()[WORDS].shape == (77, 24)


def test_it_is_told_whether_averages_are_there(tmp_path: Path) -> None:
    assert open_checkpoint(saved(tmp_path / "a.pth", one(model_ema=OTHERS))).has_ema
    assert not open_checkpoint(saved(tmp_path / "b.pth", one())).has_ema


# what numpy's and pathlib's objects become


def test_numbers_are_read_and_nothing_else_of_numpy_is(tmp_path: Path) -> None:
    content = read_weights(saved(tmp_path / "x.pth", {**NUMBERS, **PATHS, "array": np.ones(3), "big": np.dtype(">i4")}))
    assert {key: content[key] for key in ("best_oIoU", "mean", "step", "done")} == {
        "best_oIoU": 72.73,
        "mean": 0.5,
        "step": 9,
        "done": True,
    }
    assert {type(content[key]) for key in ("best_oIoU", "mean", "step", "done")} == {float, int, bool}
    assert type(content["name"]) is type(content["array"]) is Unread
    assert type(content["big"]).__module__ == "lavt_edge.reference.weights"
    assert content["resume"] == "checkpoints/last.pth"


def test_heads_that_are_no_number_of_numpy_are_refused(tmp_path: Path) -> None:
    """An object that is not kept must not be taken for one that says nothing."""
    assert "args.mha is a Unread" in refused(file(one(args=namespace(mha=np.str_(TWOS))))(tmp_path))


@pytest.mark.parametrize("data", ["text", 1, None], ids=repr)
def test_a_scalar_of_what_is_no_bytes_is_not_kept(tmp_path: Path, data: object) -> None:
    scalar = np.float64(0).__reduce__()[0]
    path = saved(tmp_path / "x.pth", {"best": Call(scalar, np.dtype("f8"), data)})
    assert type(read_weights(path)["best"]) is Unread


def test_a_scalar_of_too_few_bytes_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"best": Call(np.float64(0).__reduce__()[0], np.dtype("f8"), b"123")})
    assert "not a readable torch checkpoint" in refused(path)


def test_nothing_in_berts_file_runs(tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    bert = saved(tmp_path / "bert.bin", {**BERT, "x": Call(os.system, f"touch {sentinel}")})
    assert "refused, it holds more than tensors" in refused(file(NO_BERT)(tmp_path), bert=bert)
    assert not sentinel.exists()


@pytest.mark.parametrize("name", REFUSED)
def test_each_other_form_is_told_what_is_wrong_with_it(name: str, tmp_path: Path) -> None:
    form, expected = REFUSED[name]
    assert expected in refused(form.write(tmp_path), **form.options(tmp_path))
