"""The plain export as a side on TensorRT in FP16: what a user of trtexec gets."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import BackendError, reason_of
from ...runtime.cuda import cuda_device_count
from ...runtime.signature import TensorSpec
from .sides import SideInfo, SideSpec, feeds_for, image_size


class TensorRTSide:
    """Built with TensorRT's own FP16 switch, which chooses a type per layer; TensorRT 11 has it no more."""

    def __init__(self, spec: SideSpec) -> None:
        if not cuda_device_count() or spec.device == "cpu":
            raise BackendError(f"{spec.name} needs a CUDA device; leave it out")
        import tensorrt
        from polygraphy.backend.trt import CreateConfig, EngineFromNetwork, NetworkFromOnnxPath, TrtRunner

        if not hasattr(tensorrt.BuilderFlag, "FP16"):
            raise BackendError(f"{spec.name}: TensorRT {tensorrt.__version__} has no FP16 switch; use TensorRT 10")
        assert spec.plain is not None
        load = EngineFromNetwork(NetworkFromOnnxPath(str(spec.plain)), config=CreateConfig(fp16=True))
        self._runner = TrtRunner(load)
        try:
            self._runner.activate()
        except Exception as error:  # polygraphy's errors derive from Exception alone
            raise BackendError(f"{spec.name} could not be built ({reason_of(error)})") from error
        metadata: Any = self._runner.get_input_metadata()
        inputs = [
            TensorSpec(name, str(np.dtype(tensor.dtype)), tuple(tensor.shape)) for name, tensor in metadata.items()
        ]
        self._feeds = feeds_for(inputs, spec.batch)
        runtime = f"TensorRT {tensorrt.__version__}"
        self.about = SideInfo("fp16", image_size(self._feeds), spec.batch, "cuda", runtime)

    def run(self) -> object:
        return self._runner.infer(self._feeds)
