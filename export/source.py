"""Which weights a LAVT gets, decided in one place: for exports, for a bundle's peers and for evaluations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .._base.progress import Report, ignore
from ..errors import CheckpointError, LavtError
from ..reference.config import DEMO_WEIGHTS, LAVTConfig
from ..runtime.bundle import Bundle, open_bundle, sha256_of
from ..runtime.manifest import CheckpointInfo, Manifest

if TYPE_CHECKING:
    from ..reference import LAVT
    from .bundle import ExportOptions

Heads = tuple[int, int, int, int]


@dataclass(frozen=True)
class Source:
    """The demo model's weights, an official checkpoint's, or random ones of a bundle's configuration.

    `path` is the file of the weights; of random ones, the bundle. `fusion_heads` are the PWAM heads of a checkpoint
    that does not say its own. Only loading and exporting need torch.
    """

    path: Path
    kind: Literal["demo", "checkpoint", "random"] = "checkpoint"
    fusion_heads: Heads | None = None

    @property
    def size(self) -> tuple[int, int]:
        """The image size (height, width) that the weights were trained at."""
        if self.kind == "demo":
            from ..reference.demo import DEMO_SIZE

            return DEMO_SIZE, DEMO_SIZE
        return 480, 480

    @property
    def vocabulary(self) -> Path | Sequence[str]:
        """The tokens in order, or a file of them."""
        if self.kind == "demo":
            from ..reference.demo import DEMO_VOCABULARY

            return DEMO_VOCABULARY
        from ..reference.checkpoint import BERT_VOCABULARY

        return BERT_VOCABULARY

    def load(self) -> LAVT:
        """The model in eval mode, float32, on the CPU. Raises CheckpointError if the weights cannot be used."""
        if self.kind == "checkpoint":
            from ..reference import load_checkpoint

            return load_checkpoint(self.path, fusion_heads=self.fusion_heads).float()
        if self.fusion_heads is not None:
            raise CheckpointError("the demo model says its PWAM heads itself; leave --fusion-heads out")
        if self.kind == "demo":
            from ..reference.demo import load_demo

            return load_demo(self.path)
        import torch

        from ..reference import LAVT

        torch.manual_seed(0)
        return LAVT(self._bundle_config()).eval()

    def info(self) -> CheckpointInfo:
        """Name and SHA-256 of the file, for the manifest. Raises CheckpointError if there is no such file."""
        return CheckpointInfo(self.path.name, self._sha256)

    @cached_property
    def _sha256(self) -> str:
        if not self.path.is_file():
            raise CheckpointError(f"{self.path}: no such file; give an official checkpoint (.pth) or 'demo'")
        return sha256_of(self.path)

    def is_of(self, bundle: Bundle) -> bool:
        """Whether the bundle was exported from these weights. Raises CheckpointError if there is no such file."""
        return self.kind != "random" and self._sha256 == bundle.manifest.checkpoint.sha256

    def identity(self) -> str:
        """Differs for sources that load different models: a name for caches."""
        if self.kind == "random":
            config = json.dumps(self._bundle_config().to_dict(), sort_keys=True)
            return f"random-{hashlib.sha256(config.encode()).hexdigest()[:16]}"
        heads = "" if self.fusion_heads is None else f"-heads{'-'.join(map(str, self.fusion_heads))}"
        return f"{self._sha256[:16]}{heads}"

    def export(
        self, output: Path, options: ExportOptions, *, replace: bool = False, report: Report = ignore
    ) -> Manifest:
        """Writes a bundle, see `export_bundle`."""
        from .bundle import export_bundle

        return export_bundle(
            self.load(),
            output,
            self.info(),
            vocabulary=self.vocabulary,
            options=options,
            replace=replace,
            report=report,
        )

    def _bundle_config(self) -> LAVTConfig:
        model = open_bundle(self.path).manifest.model
        try:
            return LAVTConfig.from_dict(
                {key: value for key, value in model.items() if key not in ("macs", "opset", "winograd")}
            )
        except (KeyError, TypeError, ValueError) as error:
            raise LavtError(
                f"{self.path}: its manifest does not describe a LAVT ({error}); give --checkpoint"
            ) from error


def open_source(checkpoint: Path | str | None, fusion_heads: Heads | None = None) -> Source:
    """The source that a user names; None and "demo" are the demo model."""
    if checkpoint is None or checkpoint == "demo":
        return Source(DEMO_WEIGHTS, "demo", fusion_heads)
    return Source(Path(checkpoint), "checkpoint", fusion_heads)


def peer_source(bundle: Bundle, checkpoint: str | None) -> Source:
    """What the peers of a bundle run: the named weights; else the demo model's if the bundle has them, else random.

    A checkpoint that the bundle was exported from gets the bundle's PWAM heads.

    Raises CheckpointError if there is no such file.
    """
    source = open_source(checkpoint)
    is_own = (checkpoint is not None or source.path.is_file()) and source.is_of(bundle)
    if checkpoint is None and not is_own:
        return Source(bundle.root, "random")
    if not is_own or source.kind == "demo":
        return source
    try:
        first, second, third, fourth = (int(heads) for heads in bundle.manifest.model["fusion_heads"])
    except (KeyError, TypeError, ValueError) as error:
        raise LavtError(f"{bundle.root}: its manifest does not give the four fusion_heads ({error})") from error
    return Source(source.path, "checkpoint", (first, second, third, fourth))


def export_demo(bundle: Path, report: Report = ignore) -> Manifest | None:
    """Writes the demo model's bundle with a dynamic batch; None if there is one of the same weights already."""
    from .bundle import ExportOptions

    source = open_source(None)
    if bundle.exists() and source.is_of(open_bundle(bundle)):
        return None
    return source.export(bundle, ExportOptions(size=source.size, batch=None), replace=True, report=report)
