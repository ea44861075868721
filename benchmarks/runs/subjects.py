"""What the standing comparison is of: full-size base and the demo model, exported and quantised for CPUs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.bundle import open_bundle

if TYPE_CHECKING:
    from ...calibration import DataOptions

INT8_FILE = "segmenter.int8-cpu.onnx"


@dataclass(frozen=True)
class Subject:
    """A model of the comparison: `swin` None is the demo model, judged on `sentences` of generated val.

    INT8 is calibrated on `samples` sentences. Each side runs `rounds` times, and frames of every size `frames` times.
    """

    name: str
    rounds: int
    samples: int
    swin: str | None = None
    window: int = 12
    size: int = 480
    sentences: int = 0
    frames: int = 0
    threads: int | None = None

    @property
    def checkpoint(self) -> str:
        return "demo" if self.swin is None else "random"


SUBJECTS = (
    Subject("base, window 12", rounds=24, samples=2, swin="base"),
    Subject("demo model", rounds=64, samples=128, sentences=520, frames=12),
)


def winograd_bundle(root: Path) -> Path:
    """The bundle with Winograd products, beside the bundle `root`."""
    return root.with_name(f"{root.name}-winograd")


def make_bundle(subject: Subject, root: Path) -> None:
    """Writes the subject's bundle with its INT8 graph for CPUs, and `winograd_bundle`. Raises LavtError."""
    from ...calibration import DataOptions, QuantizeOptions, quantize_bundle

    _export(subject, root)
    data = DataOptions(samples=subject.samples)
    if subject.swin is None:
        # Accuracy is shown beside it, so the budget is the default one and not widened here.
        quantize_bundle(root, "int8", QuantizeOptions(rest="fp32", data=data))
    else:
        add_int8(root, data)


def _export(subject: Subject, root: Path) -> None:
    import torch

    from ...export import ExportOptions, export_bundle
    from ...export.source import open_source
    from ...reference import LAVT, LAVTConfig
    from ...reference.words import BERT_VOCABULARY
    from ...runtime.manifest import CheckpointInfo

    if subject.swin is None:
        source = open_source(None)
        model, info, size, vocabulary = source.load(), source.info(), source.size, source.vocabulary
    else:
        torch.manual_seed(0)
        model = LAVT(LAVTConfig(swin=subject.swin, window=subject.window)).eval()
        info, size, vocabulary = CheckpointInfo("random", "0" * 64), (subject.size,) * 2, BERT_VOCABULARY
    for path, winograd in ((root, False), (winograd_bundle(root), True)):
        options = ExportOptions(size=size, winograd=winograd)
        export_bundle(model.float(), path, info, vocabulary=vocabulary, options=options)


def add_int8(root: Path, data: DataOptions) -> None:
    """Adds the INT8 graph for CPUs, every product with a weight in INT8: of random weights accuracy is no guide.

    Raises LavtError.
    """
    from ...calibration.products import candidates, image_products
    from ...calibration.quantize import bundle_calibration, quantized_graph
    from ...calibration.sample import draw_sample
    from ...export.edits import load_graph, save_graph
    from ...runtime.bundle import file_entry
    from ...runtime.update import update_bundle

    with update_bundle(root) as change:
        bundle = open_bundle(root)
        calibration = bundle_calibration(bundle, draw_sample(data), change)
        products = candidates(image_products(bundle, load_graph(bundle, "segmenter")), "full")
        model = quantized_graph(bundle, calibration, products, calibration.clipped("mse"), "fp32")
        (path,) = save_graph(model, change.new(INT8_FILE))
        change.commit({INT8_FILE: file_entry(path, "segmenter", "int8-cpu")})


def make_gpu_graphs(root: Path) -> dict[str, Path]:
    """Image graphs as a GPU gets them, by name: a plain export all in FP16, ours in FP16 and in INT8 by policy `bytes`.

    By the calibration of the bundle `root`, beside which they are written. Raises LavtError.
    """
    import onnx_ir as ir

    from ...calibration.half import to_half
    from ...calibration.products import candidates, image_products
    from ...calibration.quantize import half_graph, quantized_graph, type_rest
    from ...calibration.record import kept_calibration
    from ...export.edits import save_graph
    from ...export.source import peer_source
    from ..peers.plain import plain_export

    bundle = open_bundle(root)
    plain = ir.load(plain_export(root, peer_source(bundle, None)))
    to_half(plain, {})
    calibration = kept_calibration(bundle)
    assert calibration is not None  # of `make_bundle`
    half, _ = half_graph(bundle, "segmenter", calibration)
    products = candidates(image_products(bundle, half), "bytes")
    int8 = quantized_graph(bundle, calibration, products, calibration.clipped("mse"), "fp16")
    type_rest(int8, calibration)
    paths: dict[str, Path] = {}
    for name, graph in (("plain export, FP16", plain), ("FP16", half), ("INT8, `bytes`", int8)):
        (paths[name],) = save_graph(graph, root.with_name(f"gpu{len(paths)}.onnx"))
    return paths
