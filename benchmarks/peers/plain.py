"""The plain export of the reference, what a user has without the rewrites, kept in the user's cache."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ..._base.cache import cache_folder
from ..._base.files import whole_folder
from ...errors import LavtError
from ...export.source import Source
from ...reference import LAVT
from ...runtime.bundle import open_bundle

PLAIN_FILE = "plain.onnx"


class PlainSegment(nn.Module):
    """`LAVT.segment` as a user would export it by hand."""

    def __init__(self, model: LAVT) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        return self.model.segment(image, words, word_mask)


def export_plain(model: LAVT, size: tuple[int, int], path: Path) -> None:
    """torch.onnx.export with its own defaults, nothing more: image (1,3,H,W), words (1,L,T), mask (1,T,1) to logits."""
    words = model.config.max_words
    inputs = (torch.zeros(1, 3, *size), torch.zeros(1, model.config.text.hidden_size, words), torch.ones(1, words, 1))
    program = torch.onnx.export(
        PlainSegment(model).eval(),
        inputs,
        dynamo=True,
        verbose=False,
        input_names=["image", "words", "word_mask"],
        output_names=["logits"],
    )
    assert program is not None
    program.save(str(path))


def plain_export(engine: Path, source: Source) -> Path:
    """The plain export of the reference at the bundle's size, from the cache, or made and put there.

    Raises LavtError if it cannot be made or kept.
    """
    spec = open_bundle(engine).manifest.input
    size = (spec.height, spec.width)
    folder = cache_folder() / f"plain-{source.identity()}-{size[0]}x{size[1]}-torch{torch.__version__}"
    if not (folder / PLAIN_FILE).is_file():
        try:
            with whole_folder(folder, replace=True) as partial, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                export_plain(source.load(), size, partial / PLAIN_FILE)
        except OSError as error:
            raise LavtError(f"{folder}: cannot be written ({error.strerror or error}); set XDG_CACHE_HOME") from error
    return folder / PLAIN_FILE
