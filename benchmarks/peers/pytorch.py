"""The reference in PyTorch as a side, eager or compiled; and its plain export, kept in the user's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...errors import BackendError, LavtError, reason_of
from ...export.source import open_source
from ...reference import LAVT, LAVTConfig
from ...runtime.bundle import open_bundle
from .sides import SideSpec


def load_model(engine: Path, checkpoint: str) -> LAVT:
    """The reference in eval mode: the built-in model ("demo"), a checkpoint file, or random weights ("random").

    Random ones take the configuration from the bundle; time does not depend on weights. Raises CheckpointError.
    """
    if checkpoint != "random":
        return open_source(None if checkpoint == "demo" else Path(checkpoint)).load().float().eval()
    torch.manual_seed(0)
    return LAVT(config_of(engine)).eval()


def config_of(engine: Path) -> LAVTConfig:
    model = dict(open_bundle(engine).manifest.model)
    try:
        return LAVTConfig.from_dict(
            {key: value for key, value in model.items() if key not in ("macs", "opset", "winograd")}
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LavtError(f"{engine}: its manifest does not describe a LAVT ({error}); give --checkpoint") from error


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
            reason = reason_of(error)
            raise BackendError(f"torch.compile could not compile the reference ({reason})") from error

    @torch.inference_mode()
    def run(self) -> object:
        with torch.backends.cudnn.flags(allow_tf32=False):
            return self._segment(*(part.to(self.device) for part in self._inputs)).cpu().numpy()
