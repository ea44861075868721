"""Which weights a LAVT gets, decided in one place: for exports, for a bundle's peers and for evaluations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .._base.progress import Report, ignore
from ..errors import CheckpointError, LavtError
from ..reference.config import DEMO_WEIGHTS, Heads, LAVTConfig
from ..runtime.bundle import Bundle, open_bundle, sha256_of
from ..runtime.manifest import CheckpointInfo, Manifest

if TYPE_CHECKING:
    from ..reference import LAVT
    from ..reference.checkpoint import Checkpoint
    from .bundle import ExportOptions

Size = tuple[int, int]
_PUBLISHED = (480, 480)


@dataclass(frozen=True)
class Source:
    """The demo model's weights, a checkpoint's, or random ones of a bundle's configuration.

    `path` is the file of the weights; of random ones, the bundle. The rest is for checkpoints that do not hold it:
    `fusion_heads`, the PWAM heads; `bert`, the text encoder, and `words`, its vocabulary, as files or folders of
    Hugging Face's. `ema` takes a checkpoint's averaged parameters. Only `info` and `identity` of the demo model need no
    torch.
    """

    path: Path
    kind: Literal["demo", "checkpoint", "random"] = "checkpoint"
    fusion_heads: Heads | None = None
    bert: Path | None = None
    words: Path | None = None
    ema: bool = False

    @cached_property
    def size(self) -> Size:
        """The image size (height, width) that the weights were trained at; the published one if nothing says it."""
        return self._trained_size or _PUBLISHED

    @cached_property
    def _trained_size(self) -> Size | None:
        if self.kind == "demo":
            from ..reference.demo import DEMO_SIZE

            return DEMO_SIZE, DEMO_SIZE
        return self._described.image_size if self.kind == "checkpoint" else None

    def choose_size(self, asked: Size | None) -> tuple[Size, str]:
        """The size that was asked for, else `size`, and why that one. Raises CheckpointError."""
        if asked is not None:
            trained = None if self._trained_size in (None, asked) else f"; trained at {shown(self.size)}"
            return asked, f"--image-size{trained or ''}"
        if self.kind == "demo":
            return self.size, "as the demo model was trained"
        return self.size, "args.img_size" if self._trained_size else "the published size, as the checkpoint says none"

    @property
    def leaves_ema(self) -> bool:
        """Whether a checkpoint has averaged parameters that are not taken. Raises CheckpointError."""
        return self.kind == "checkpoint" and not self.ema and self._described.has_ema

    @property
    def vocabulary(self) -> Path | Sequence[str]:
        """The tokens in order, or a file of them."""
        if self.kind == "demo":
            from ..reference.demo import DEMO_VOCABULARY

            return DEMO_VOCABULARY
        from ..reference.words import BERT_VOCABULARY

        if self.words is None and self.bert is not None and (self.bert / "vocab.txt").is_file():
            return self.bert
        return self.words or BERT_VOCABULARY

    def load(self) -> LAVT:
        """The model in eval mode, float32, on the CPU. Raises CheckpointError if the weights cannot be used."""
        if self.kind == "checkpoint":
            from ..reference import load_checkpoint

            return load_checkpoint(self.path, **self._options)
        if self.kind == "demo":
            from ..reference.demo import load_demo

            return load_demo(self.path)
        import torch

        from ..reference import LAVT

        torch.manual_seed(0)
        return LAVT(self._bundle_config()).eval()

    @property
    def _options(self) -> dict[str, Any]:
        return {"fusion_heads": self.fusion_heads, "bert": self.bert, "ema": self.ema}

    @cached_property
    def _described(self) -> Checkpoint:
        """The checkpoint without its parameters, which would keep the file mapped."""
        from ..reference.checkpoint import open_checkpoint

        return replace(open_checkpoint(self.path, **self._options), state={})

    def info(self) -> CheckpointInfo:
        """Name and SHA-256 of the file, and what was assumed, for the manifest.

        Raises CheckpointError if there is no such file, or it is not a checkpoint.
        """
        sha256 = self._sha256
        assumed = self.kind == "checkpoint" and self._described.heads_assumed
        return CheckpointInfo(
            self.path.name, sha256, ema=self.ema or None, note="heads assumed 1-1-1-1" if assumed else None
        )

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
        return f"{self._taken}{self._sha256[:16]}{heads}"

    @property
    def weights(self) -> str:
        """The file's SHA-256, after what is taken in place of its own parameters. Raises CheckpointError."""
        return f"{self._taken}{self._sha256}"

    @cached_property
    def _taken(self) -> str:
        bert = ""
        if self.bert is not None:
            from ..reference.words import bert_file

            bert = f"bert-{sha256_of(bert_file(self.bert))[:16]}-"
        return f"{'ema-' if self.ema else ''}{bert}"

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
        try:
            return LAVTConfig.from_dict(dict(open_bundle(self.path).manifest.model))
        except ValueError as error:
            raise LavtError(
                f"{self.path}: its manifest does not describe a LAVT ({error}); give --checkpoint"
            ) from error


def open_source(
    checkpoint: Path | str | None,
    fusion_heads: Heads | None = None,
    *,
    bert: Path | None = None,
    words: Path | None = None,
    ema: bool = False,
) -> Source:
    """The source that a user names; None and "demo" are the demo model.

    Raises CheckpointError if that is told what it says itself.
    """
    if checkpoint is not None and checkpoint != "demo":
        return Source(Path(checkpoint), "checkpoint", fusion_heads, bert, words, ema)
    given = {"--fusion-heads": fusion_heads, "--bert": bert, "--vocabulary": words, "--ema": ema or None}
    for option, value in given.items():
        if value is not None:
            raise CheckpointError(f"{option} is for a checkpoint, the demo model has its own; leave it out")
    return Source(DEMO_WEIGHTS, "demo")


def shown(size: Size) -> str:
    """A size as the commands take it: height, then width."""
    return f"{size[0]}x{size[1]}"


def peer_source(bundle: Bundle, checkpoint: str | None) -> Source:
    """What the peers of a bundle run: the named weights; else the demo model's if the bundle has them, else random.

    A checkpoint that the bundle was exported from gets the bundle's PWAM heads, and its averaged parameters if the
    bundle has them.

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
    heads = first, second, third, fourth
    return Source(source.path, "checkpoint", heads, ema=bundle.manifest.checkpoint.ema is True)


def export_demo(bundle: Path, report: Report = ignore) -> Manifest | None:
    """Writes the demo model's bundle with a dynamic batch; None if there is one of the same weights already."""
    from .bundle import ExportOptions

    source = open_source(None)
    if bundle.exists() and source.is_of(open_bundle(bundle)):
        return None
    return source.export(bundle, ExportOptions(size=source.size, batch=None), replace=True, report=report)
