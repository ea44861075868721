"""A small bundle with real graphs that follow the contract, and their arithmetic in numpy, for the runtime's tests."""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from lavt_edge.runtime.bundle import file_entry
from lavt_edge.runtime.manifest import CheckpointInfo, FileEntry, InputSpec, Manifest
from lavt_edge.runtime.tokenizer import build_tokenizer

if TYPE_CHECKING:
    import onnx

# A folder of bundles, for an environment that has no onnx to write them with.
READY_BUNDLES = "LAVT_EDGE_READY_BUNDLES"
VOCAB = Path(__file__).resolve().parents[1] / "reference" / "bert-base-uncased.vocab.txt"
HEIGHT, WIDTH, WORDS, CHANNELS = 24, 32, 20, 8
Batch = int | None


@cache
def weights(seed: int = 0) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The embedding of every token (30522, CHANNELS), and the projection of a sentence to RGB weights (CHANNELS, 3)."""
    rng = np.random.default_rng(seed)
    embedding = rng.standard_normal((30522, CHANNELS), dtype=np.float32)
    return embedding, rng.standard_normal((CHANNELS, 3), dtype=np.float32)


def expected_prompt(ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64], seed: int = 0) -> npt.NDArray[np.float32]:
    """What the text graph computes for one sentence: (WORDS, CHANNELS)."""
    return weights(seed)[0][ids] * mask[:, None].astype(np.float32)


def expected_logits(
    image: npt.NDArray[np.uint8], prompt: npt.NDArray[np.float32], word_mask: npt.NDArray[np.float32], seed: int = 0
) -> npt.NDArray[np.float32]:
    """What the image graph computes for one image (H, W, 3): (2, H, W)."""
    pixels = image.astype(np.float32) / 255
    sentence = (prompt * word_mask[:, None]).sum(0)
    return np.stack([pixels.mean(-1), pixels @ (sentence @ weights(seed)[1])])


def text_graph(batch: Batch, seed: int = 0) -> onnx.ModelProto:
    """prompt = embedding[input_ids] * attention_mask."""
    from onnx import TensorProto, helper

    rows: int | str = "batch" if batch is None else batch
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["words", "mask3"], ["prompt"]),
    ]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, [rows, WORDS]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, [rows, WORDS]),
    ]
    outputs = [helper.make_tensor_value_info("prompt", TensorProto.FLOAT, [rows, WORDS, CHANNELS])]
    constants = {"embedding": weights(seed)[0], "last": np.array([2])}
    return _model(nodes, inputs, outputs, constants)


def image_graph(batch: Batch, seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> onnx.ModelProto:
    """logits = (mean of RGB, RGB . (sum of the real words' prompt @ projection)); mask = their argmax."""
    from onnx import TensorProto, helper

    rows: int | str = "batch" if batch is None else batch
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "full"], ["pixels"]),
        helper.make_node("Unsqueeze", ["word_mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["prompt", "mask3"], ["real"]),
        helper.make_node("ReduceSum", ["real", "words_axis"], ["sentence"], keepdims=1),
        helper.make_node("MatMul", ["sentence", "projection"], ["colour"]),
        helper.make_node("Transpose", ["colour"], ["column"], perm=[0, 2, 1]),
        helper.make_node("Unsqueeze", ["column", "words_axis"], ["column4"]),
        helper.make_node("MatMul", ["pixels", "column4"], ["score"]),
        helper.make_node("ReduceMean", ["pixels", "colour_axis"], ["mean"], keepdims=1),
        helper.make_node("Concat", ["mean", "score"], ["stacked"], axis=3),
        helper.make_node("Transpose", ["stacked"], ["logits"], perm=[0, 3, 1, 2]),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0),
        helper.make_node("Cast", ["best"], ["mask"], to=TensorProto.UINT8),
    ]
    inputs = [
        helper.make_tensor_value_info("image", TensorProto.UINT8, [rows, height, width, 3]),
        helper.make_tensor_value_info("prompt", TensorProto.FLOAT, [rows, WORDS, CHANNELS]),
        helper.make_tensor_value_info("word_mask", TensorProto.FLOAT, [rows, WORDS]),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [rows, 2, height, width]),
        helper.make_tensor_value_info("mask", TensorProto.UINT8, [rows, height, width]),
    ]
    constants = {
        "full": np.float32(255),
        "last": np.array([2]),
        "words_axis": np.array([1]),
        "colour_axis": np.array([3]),
        "projection": weights(seed)[1],
    }
    return _model(nodes, inputs, outputs, constants)


def write_bundle(folder: Path, batch: Batch = 1, seed: int = 0, external: bool = False) -> Path:
    """Write a bundle, with the text graph's weights beside it where `external`. Returns its folder."""
    if READY_BUNDLES in os.environ:
        return Path(shutil.copytree(ready_bundle(Path(os.environ[READY_BUNDLES]), batch, seed, external), folder))
    import onnx

    folder.mkdir(parents=True)
    build_tokenizer(VOCAB).save(str(folder / "tokenizer.json"))
    data = "text_encoder.onnx.data"
    onnx.save(text_graph(batch, seed), folder / "text_encoder.onnx", save_as_external_data=external, location=data)
    onnx.save(image_graph(batch, seed), folder / "segmenter.onnx")
    files: dict[str, FileEntry] = {
        "tokenizer.json": file_entry(folder / "tokenizer.json", "tokenizer"),
        "text_encoder.onnx": file_entry(folder / "text_encoder.onnx", "text_encoder", "fp32"),
        "segmenter.onnx": file_entry(folder / "segmenter.onnx", "segmenter", "fp32"),
    }
    if external:
        files[data] = file_entry(folder / data, "weights")
    (folder / "lavt.json").write_text(manifest_for(files, batch, seed).to_json())
    return folder


def ready_bundle(root: Path, batch: Batch, seed: int, external: bool) -> Path:
    """Where `write_bundle` finds a bundle that was written before."""
    return root / f"{batch}-{seed}{'-external' if external else ''}"


def manifest_for(files: dict[str, FileEntry], batch: Batch = 1, seed: int = 0) -> Manifest:
    """The manifest of a bundle with these files."""
    return Manifest(
        generator={"lavt_edge": "0.1.0"},
        model={"variant": "lavt", "swin": "tiny", "window": 7, "fusion_heads": [1, 1, 1, 1]},
        input=InputSpec(height=HEIGHT, width=WIDTH, batch=batch, max_words=WORDS, prompt_channels=CHANNELS),
        checkpoint=CheckpointInfo(name="small.pth", sha256=f"{seed:064x}"),
        files=files,
        parity={"segmenter": {"relative_error": 1e-6, "pixel_agreement": 1.0, "cases": 6}},
    )


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, npt.NDArray],
) -> onnx.ModelProto:
    import onnx
    from onnx import helper, numpy_helper

    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model
