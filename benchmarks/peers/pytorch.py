"""The reference in PyTorch as a side, eager or compiled."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import BackendError, reason_of
from ...runtime.bundle import open_bundle
from .sides import SideInfo, SideSpec


def prepare_torch(device: str, threads: int | None) -> str:
    """Sets PyTorch's threads, and says its device: "cuda" or "cpu". Raises BackendError if there is no such device."""
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise BackendError("CUDA was asked for and PyTorch cannot use it: give device cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    return "cuda" if cuda and device != "cpu" else "cpu"


class TorchSide:
    """`LAVT.segment` in float32; `precision` "compile" runs it through torch.compile, with its default options."""

    def __init__(self, spec: SideSpec) -> None:
        self._device = prepare_torch(spec.device, spec.threads)
        manifest = open_bundle(spec.engine).manifest
        size = (manifest.input.height, manifest.input.width)
        self.about = SideInfo("fp32", size, spec.batch, self._device, f"PyTorch {torch.__version__}")
        assert spec.source is not None
        model = spec.source.load().to(self._device)
        words = manifest.input.max_words
        generator = torch.Generator().manual_seed(0)
        self._inputs = (
            torch.randn(spec.batch, 3, *size, generator=generator),
            torch.randn(spec.batch, model.config.text.hidden_size, words, generator=generator),
            torch.ones(spec.batch, words, 1),
        )
        self._segment: Any = torch.compile(model.segment) if spec.precision == "compile" else model.segment
        if spec.precision == "compile":
            try:
                self.run()
            except Exception as error:  # a missing compiler and a graph that it refuses come as many classes
                raise BackendError(f"torch.compile could not compile the reference ({reason_of(error)})") from error

    @torch.inference_mode()
    def run(self) -> object:
        with torch.backends.cudnn.flags(allow_tf32=False):
            return self._segment(*(part.to(self._device) for part in self._inputs)).cpu().numpy()
