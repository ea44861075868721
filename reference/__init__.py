"""The PyTorch LAVT: the truth that every exported artefact is checked against.

Names are imported when they are used, so that a module without torch can be taken from here without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoint import load_checkpoint
    from .config import LAVTConfig, SwinConfig, TextConfig
    from .lavt import LAVT

__all__ = ["LAVT", "LAVTConfig", "SwinConfig", "TextConfig", "load_checkpoint"]

_MODULES = {
    "LAVT": "lavt",
    "LAVTConfig": "config",
    "SwinConfig": "config",
    "TextConfig": "config",
    "load_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
