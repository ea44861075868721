"""What each precision of the demo model keeps and costs, beside ModelOpt's own default, over the same sentences.

    python -m lavt_edge.benchmarks.runs.precisions --sentences 520 --samples 512

Exports the demo model, makes its FP16 and INT8 graphs, lets ModelOpt quantise the same FP32 graph with its defaults on
the same calibration sentences, and judges all on generated val. FP16 tensors are rounded one by one, as a GPU stores
them; INT8 runs as it is written, without a CPU's own kernels.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from ..._base.exits import run_main
from ..._base.files import write_whole
from ..._base.records import to_plain
from ...data.sentences import open_split
from ...runtime.bundle import Bundle, open_bundle

if TYPE_CHECKING:
    from ...calibration.evaluator import Figures
    from ...calibration.sample import Sample

MODELOPT_SAMPLES = 128  # it keeps all calibration data, and all activations of a histogram, in memory


@dataclass(frozen=True)
class Costs:
    """An image graph: its share of MACs in INT8, 0 to 1, and the size of its file."""

    name: str
    int8_share: float
    bytes: int


def measure(folder: Path, sentences: int, samples: int, console: Console) -> list[tuple[Costs, Figures]]:
    """What each precision costs and keeps."""
    import onnx_ir as ir

    from ...calibration.evaluator import Evaluator
    from ...calibration.products import int8_macs
    from ...calibration.quantize import QuantizeOptions, quantize_bundle
    from ...calibration.sample import DataOptions, Sample, draw_sample
    from ...export import ExportOptions
    from ...export.macs import count_macs
    from ...export.source import open_source
    from ..evaluation.fidelity import evaluate_file

    source = open_source(None)
    root = folder / "bundle"
    with console.status("exporting") as status:
        source.export(root, ExportOptions(size=source.size))
        data = DataOptions(samples=samples)
        for precision in ("fp16", "int8"):
            quantize_bundle(root, precision, QuantizeOptions(data=data), report=status.update)
        bundle = open_bundle(root)
        status.update("ModelOpt's default")
        default = modelopt_default(bundle, draw_sample(data), folder / "modelopt.onnx")
        status.update("judging")
        val = open_split("shapes", "val").sentences[:sentences]
        evaluator = Evaluator(bundle, Sample((), val, {}))
        graphs = [
            ("fp32", root / "segmenter.onnx"),
            ("fp16", root / "segmenter.fp16.onnx"),
            ("int8", root / "segmenter.int8.onnx"),
            ("int8, ModelOpt's default", default),
        ]
        rows = []
        for name, path in graphs:
            macs = count_macs(path)
            share = int8_macs(ir.load(path), macs) / sum(macs.values())
            figures = evaluate_file(evaluator, bundle, path, text=name == "fp16")
            rows.append((Costs(name, share, path.stat().st_size), figures))
    return rows


def modelopt_default(bundle: Bundle, sample: Sample, output: Path) -> Path:
    """What `modelopt.onnx.quantization.quantize` makes of the FP32 image graph when only the data is given."""
    from modelopt.onnx.quantization import quantize

    from ...calibration.observers import Session
    from ...calibration.sample import cases, image_inputs, text_inputs
    from ...export.edits import load_graph

    chosen = list(cases(bundle, sample.calibrated[:MODELOPT_SAMPLES]))
    text = Session(load_graph(bundle, "text_encoder"))
    prompts = [text.run(text_inputs([case]), ["prompt"])[0] for case in chosen]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it prints a line for every sentence
        quantize(
            str(bundle.file("segmenter")),
            calibration_data=image_inputs(chosen, list(np.concatenate(prompts))),
            calibration_eps=["cpu"],
            output_path=str(output),
            log_level="ERROR",
        )
    return output


def markdown(rows: Sequence[tuple[Costs, Figures]]) -> str:
    """The rows as a table."""
    lines = [
        "| image graph | MACs in INT8 | MB | mean IoU | lost | pixel agreement | logit error |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {costs.name} | {100 * costs.int8_share:.1f} % | {costs.bytes / 1e6:.1f} | {figures.mean_iou:.2f} | "
        f"{figures.drop:+.2f} | {100 * figures.pixel_agreement:.3f} % | {figures.relative_error:.1e} |"
        for costs, figures in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=520, help="sentences of generated val")
    parser.add_argument("--samples", type=int, default=512, help="sentences to calibrate on")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), arguments.sentences, arguments.samples, console)
    if arguments.json is not None:
        plain = [{**to_plain(costs), **to_plain(figures)} for costs, figures in rows]
        write_whole(arguments.json, (json.dumps(plain, indent=1, allow_nan=False) + "\n").encode())
    print(markdown(rows))


if __name__ == "__main__":
    run_main(main)
