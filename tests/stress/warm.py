"""A process that has imported what the commands import, to fork from: a kill then hits the work, not the imports."""

from __future__ import annotations

import os
import sys

PRELOADED = (
    "lavt_edge.cli",
    "lavt_edge.calibration.quantize",
    "lavt_edge.export.bundle",
    "lavt_edge.export.engines.bundle",
    "lavt_edge.export.source",
    "onnxruntime",
    "onnxscript.optimizer",
    "polygraphy.backend.trt",
    "tensorrt_rtx",
    "torch._dynamo",
    "torch.onnx._internal.exporter._core",
    "lavt_edge.tests.stress.warm",
)


def run_command(line: list[str], output: str) -> None:
    """`lavt-export` with these arguments, in a process of its own; what it says goes to the file `output`."""
    from lavt_edge.cli import export_main

    descriptor = os.open(output, os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.argv = ["lavt-export", *line]
    export_main()
