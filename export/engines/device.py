"""The GPU at hand as a device to time image graphs on: each becomes an engine that is used and not kept."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path

from ..._base.progress import ignore
from ...errors import ExportError
from ...runtime.backend import Backend
from ...runtime.tensorrt.record import DISPLAY_NAMES, rebuild_command
from .build import build_engine
from .bundle import plan_engines, planned_record
from .options import EngineOptions, engine_name
from .progress import Progress


class EngineDevice:
    """TensorRT on the GPU of this machine, for image graphs of the bundle in folder `root`; `name` says both.

    `progress` is told a build's phase with the share done (0 to 1). Raises ExportError if there is no CUDA device, and
    as `build_engines` does.
    """

    def __init__(self, root: Path, options: EngineOptions, progress: Progress = ignore) -> None:
        _, self._flavor, plan = plan_engines(root, options)
        if plan.device is None:
            raise ExportError(
                "timing INT8 takes the GPU that will run it, and there is no CUDA device here: run this on the device"
            )
        # TensorRT for RTX: for this GPU alone, whatever the engines that are kept are for.
        self._plan = replace(plan, targets=(plan.device.sm,)) if plan.targets else plan
        self._root, self._progress = root, progress
        self.name = f"{DISPLAY_NAMES[plan.flavor]} {plan.version} on {plan.device.name}"

    def load(self, graph: Path) -> AbstractContextManager[Backend]:
        """The engine of an image graph. Raises ExportError if it cannot be built, BackendError if it cannot run."""
        from ...runtime.tensorrt.backend import TensorRTBackend
        from ...runtime.tensorrt.cuda import Cuda

        built = build_engine(graph, self._plan, self._flavor, progress=self._progress)
        record = planned_record(
            self._plan,
            name=engine_name("segmenter", "int8"),
            rebuild=rebuild_command(self._root, "int8"),
            role="segmenter",
            precision="int8",
            max_batch=self._plan.max_batch,
        )
        return closing(TensorRTBackend(bytes(built.data), record, self._flavor, Cuda()))
