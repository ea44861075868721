"""The exact rewrites of LAVT, their export to ONNX, and engines from that.

Names are imported when they are used: building engines must not need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._base.lazy import lazy_names

if TYPE_CHECKING:
    from .bundle import ExportOptions, export_bundle
    from .engines.bundle import build_engines
    from .engines.options import EngineOptions

__all__ = ["EngineOptions", "ExportOptions", "build_engines", "export_bundle"]

_MODULES = {
    "EngineOptions": "engines.options",
    "ExportOptions": "bundle",
    "build_engines": "engines.bundle",
    "export_bundle": "bundle",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
