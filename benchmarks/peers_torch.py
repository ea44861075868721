"""The reference in PyTorch as a side, eager or compiled; and its plain export, kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from ..errors import BackendError, LavtError
from ..export.source import open_source
from ..files import whole_folder
from ..reference import LAVT, LAVTConfig
from ..runtime.bundle import open_bundle
from .against_plain import export_plain
from .generated import cache_folder
from .peers import SideSpec

PLAIN_FILE = "plain.onnx"


def load_model(engine: Path, checkpoint: str) -> LAVT:
    """The reference in eval mode: the built-in model ("demo"), a checkpoint file, or random weights ("random").

    Random ones take the configuration from the bundle; time does not depend on weights. Raises CheckpointError.
    """
    if checkpoint != "random":
        return open_source(None if checkpoint == "demo" else Path(checkpoint)).load().float().eval()
    torch.manual_seed(0)
    return LAVT(_config(engine)).eval()


def _config(engine: Path) -> LAVTConfig:
    model = dict(open_bundle(engine).manifest.model)
    try:
        return LAVTConfig.from_dict(
            {key: value for key, value in model.items() if key not in ("macs", "opset", "winograd")}
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LavtError(f"{engine}: its manifest does not describe a LAVT ({error}); give --checkpoint") from error


def plain_export(engine: Path, checkpoint: str) -> Path:
    """The plain export of the reference at the bundle's size, from the cache, or made and put there.

    Raises LavtError where it cannot be made or kept.
    """
    spec = open_bundle(engine).manifest.input
    size = (spec.height, spec.width)
    folder = cache_folder() / f"plain-{_identity(engine, checkpoint)}-{size[0]}x{size[1]}-torch{torch.__version__}"
    if not (folder / PLAIN_FILE).is_file():
        try:
            with whole_folder(folder, replace=True) as partial, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                export_plain(load_model(engine, checkpoint), size, partial / PLAIN_FILE)
        except OSError as error:
            raise LavtError(f"{folder}: cannot be written ({error.strerror or error}); set XDG_CACHE_HOME") from error
    return folder / PLAIN_FILE


def _identity(engine: Path, checkpoint: str) -> str:
    """Of the weights; of random ones the configuration is all there is."""
    if checkpoint == "random":
        config = json.dumps(_config(engine).to_dict(), sort_keys=True)
        return f"random-{hashlib.sha256(config.encode()).hexdigest()[:16]}"
    return open_source(None if checkpoint == "demo" else Path(checkpoint)).info().sha256[:16]


class TorchSide:
    """`LAVT.segment` in float32; `precision` "compile" runs it through torch.compile, with its default options."""

    def __init__(self, spec: SideSpec) -> None:
        cuda = torch.cuda.is_available()
        if spec.device == "cuda" and not cuda:
            raise BackendError("CUDA was asked for and PyTorch cannot use it: give device cpu")
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        self.device = "cuda" if cuda and spec.device != "cpu" else "cpu"
        self.runtime = f"PyTorch {torch.__version__}"
        self.precision, self.batch = "fp32", spec.batch
        manifest = open_bundle(spec.engine).manifest
        self.size = (manifest.input.height, manifest.input.width)
        model = load_model(spec.engine, spec.checkpoint).to(self.device)
        words = manifest.input.max_words
        generator = torch.Generator().manual_seed(0)
        self._inputs = (
            torch.randn(spec.batch, 3, *self.size, generator=generator),
            torch.randn(spec.batch, model.config.text.hidden_size, words, generator=generator),
            torch.ones(spec.batch, words, 1),
        )
        self._segment: Any = torch.compile(model.segment) if spec.precision == "compile" else model.segment
        if spec.precision == "compile":
            self._compile()

    def _compile(self) -> None:
        try:
            self.run()
        except Exception as error:  # a missing compiler and a graph that it refuses come as many classes
            reason = " ".join(str(error).split())[:200]
            raise BackendError(f"torch.compile could not compile the reference ({reason})") from error

    @torch.inference_mode()
    def run(self) -> object:
        with torch.backends.cudnn.flags(allow_tf32=False):
            return self._segment(*(part.to(self.device) for part in self._inputs)).cpu().numpy()
