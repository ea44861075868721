"""The PyTorch LAVT: the truth that every exported artefact is checked against.

Names are imported when they are used, so that a module without torch can be taken from here without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._base.lazy import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
