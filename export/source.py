"""What an export starts from: an official checkpoint, or the built-in demo model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .._base.progress import Report, ignore
from ..errors import CheckpointError
from ..reference import LAVT, load_checkpoint
from ..reference.checkpoint import BERT_VOCABULARY
from ..reference.demo import DEMO_SIZE, DEMO_VOCABULARY, DEMO_WEIGHTS, load_demo
from ..runtime.bundle import open_bundle, sha256_of
from ..runtime.manifest import CheckpointInfo, Manifest
from .bundle import ExportOptions, export_bundle


@dataclass(frozen=True)
class Source:
    """A checkpoint on disk, the vocabulary of its tokens, and the image size (height, width) it was trained at."""

    path: Path
    vocabulary: Path | Sequence[str]
    size: tuple[int, int]
    is_demo: bool

    def load(self, fusion_heads: tuple[int, int, int, int] | None = None) -> LAVT:
        """The model in eval mode. Raises CheckpointError."""
        if not self.is_demo:
            return load_checkpoint(self.path, fusion_heads=fusion_heads)
        if fusion_heads is not None:
            raise CheckpointError("the demo model says its PWAM heads itself; leave --fusion-heads out")
        return load_demo(self.path)

    def info(self) -> CheckpointInfo:
        """Name and SHA-256, for the manifest."""
        return CheckpointInfo(self.path.name, sha256_of(self.path))


def open_source(checkpoint: Path | None) -> Source:
    """The source that a user names; None is the demo model."""
    if checkpoint is None:
        return Source(DEMO_WEIGHTS, DEMO_VOCABULARY, (DEMO_SIZE, DEMO_SIZE), is_demo=True)
    return Source(checkpoint, BERT_VOCABULARY, (480, 480), is_demo=False)


def export_demo(bundle: Path, report: Report = ignore) -> Manifest | None:
    """Writes the demo model's bundle, batch free; None if the one of the same weights is there already."""
    source = open_source(None)
    if bundle.exists() and open_bundle(bundle).manifest.checkpoint == source.info():
        return None
    return export_bundle(
        source.load(),
        bundle,
        source.info(),
        vocabulary=source.vocabulary,
        options=ExportOptions(size=source.size, batch=None),
        replace=True,
        report=report,
    )
