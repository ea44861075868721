"""Checkpoints of small models for their tests, and the line with which a file is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lavt_edge.errors import CheckpointError
from lavt_edge.reference import LAVT, LAVTConfig, TextConfig, load_checkpoint
from lavt_edge.tests.golden import golden_lavt

SMALL_TEXT = TextConfig(
    vocab_size=60, hidden_size=24, num_layers=1, num_heads=2, intermediate_size=40, max_positions=20
)
SMALL = LAVTConfig(swin="demo", window=7, variant="lavt_one", text=SMALL_TEXT)
SMALL_APART = LAVTConfig(swin="demo", window=7, variant="lavt", text=SMALL_TEXT)
PROJECTION = "backbone.patch_embed.proj.weight"
LATE_KEY = "backbone.layers.3.fusion.project_mm.0.bias"


@pytest.fixture
def small_bert(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints hold BERT base; here one of a few kilobytes, everything else as it is."""
    monkeypatch.setattr("lavt_edge.reference.checkpoint.LAVTConfig", functools.partial(LAVTConfig, text=SMALL_TEXT))


@pytest.fixture(scope="module")
def one() -> LAVT:
    return golden_lavt(SMALL)


def saved(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def refusal(path: Path, **options: Any) -> str:
    """The line with which a file is refused; it names the file."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


class Call:
    """Pickles as a call of `function`, which loading then makes."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.arguments
