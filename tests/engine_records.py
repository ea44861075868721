"""Records of engines for the runtime's tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lavt_edge.runtime.tensorrt.record import CudaDevice, EngineRecord

ORIN = CudaDevice("Orin", "8.7", shares_memory=True)


def a_record(**changes: Any) -> EngineRecord:
    record = EngineRecord(
        name="segmenter.fp16.engine",
        role="segmenter",
        precision="fp16",
        flavor="tensorrt",
        version="10.3.0",
        gpu="Orin",
        compute_capability="8.7",
        targets=(),
        max_batch=1,
        version_compatible=False,
        hardware_compatible=False,
        verified=True,
        rebuild="lavt-export trt bundle --fp16",
    )
    return replace(record, **changes)
