"""The exact rewrites of LAVT and their export to ONNX."""

from .bundle import ExportOptions, export_bundle

__all__ = ["ExportOptions", "export_bundle"]
