"""Single graphs of a model for the export's tests, without a bundle around them, and their run on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime
import torch
from lavt_edge.export.edits import save_graph
from lavt_edge.export.graph import export_graph
from lavt_edge.export.rewrites.image_model import ImageModel
from lavt_edge.export.rewrites.text_model import TextModel
from lavt_edge.export.rewrites.words import prompt_channels
from lavt_edge.reference import LAVT, LAVTConfig
from lavt_edge.runtime.manifest import CheckpointInfo

CHECKPOINT = CheckpointInfo("golden.pth", "0" * 64)

Arrays = Mapping[str, npt.NDArray[Any]]


def run_graph(model: onnx.ModelProto | Path, feed: Arrays) -> dict[str, npt.NDArray[Any]]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(feed)), strict=True))


def image_inputs(config: LAVTConfig, size: tuple[int, int], batch: int) -> dict[str, torch.Tensor]:
    return {
        "image": torch.zeros(batch, *size, 3, dtype=torch.uint8),
        "prompt": torch.zeros(batch, 20, prompt_channels(config)),
        "word_mask": torch.ones(batch, 20),
    }


def export_image(model: LAVT, path: Path, size: tuple[int, int], **options: Any) -> Path:
    inputs = image_inputs(model.config, size, options.pop("batch", 2))
    save_graph(export_graph(ImageModel(model, *size), inputs, ("logits", "mask"), **options), path)
    return path


def export_text(model: LAVT, path: Path, batch: int = 2, **options: Any) -> Path:
    ids = torch.ones(batch, 20, dtype=torch.int64)
    inputs = {"input_ids": ids, "attention_mask": ids.clone()}
    save_graph(export_graph(TextModel(model), inputs, ("prompt",), **options), path)
    return path
