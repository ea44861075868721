"""The PyTorch LAVT: the truth that every exported artefact is checked against."""

from .checkpoint import load_checkpoint
from .config import LAVTConfig, SwinConfig, TextConfig
from .lavt import LAVT

__all__ = ["LAVT", "LAVTConfig", "SwinConfig", "TextConfig", "load_checkpoint"]
