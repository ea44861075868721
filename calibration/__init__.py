"""FP16 and INT8 graphs of a bundle: calibrated on a sample of sentences, checked on others before they are written.

Names are imported when they are used: importing the package costs no onnx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._base.lazy import lazy_names

if TYPE_CHECKING:
    from .evaluator import Figures
    from .placement import GroupLoss
    from .quantize import QuantizeOptions, QuantizeResult, quantize_bundle
    from .sample import DataOptions
    from .tune import CpuDevice, TimedPart, TimedPlacement, Tuning

__all__ = [
    "CpuDevice",
    "DataOptions",
    "Figures",
    "GroupLoss",
    "QuantizeOptions",
    "QuantizeResult",
    "TimedPart",
    "TimedPlacement",
    "Tuning",
    "quantize_bundle",
]

_MODULES = {
    "CpuDevice": "tune",
    "DataOptions": "sample",
    "Figures": "evaluator",
    "GroupLoss": "placement",
    "QuantizeOptions": "quantize",
    "QuantizeResult": "quantize",
    "TimedPart": "tune",
    "TimedPlacement": "tune",
    "Tuning": "tune",
    "quantize_bundle": "quantize",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
