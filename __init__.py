"""lavt-edge: take a trained LAVT referring-segmentation model to a small, fast, checked engine on edge devices."""

__version__ = "0.1.0"
