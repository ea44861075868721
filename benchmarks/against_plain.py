"""The rewritten image graph against a plain export of the reference, interleaved on ONNX Runtime.

    python -m lavt_edge.benchmarks.against_plain --swin base --window 12 --image-size 480 --threads 2

Time does not depend on the weights, so they are random. Both sides get the same image and sentence, one as bytes and
a prompt, the other as normalised floats and word features.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from ..exits import run_main
from ..export.graph import export_graph, save_graph
from ..export.image_model import ImageModel
from ..export.words import prompt_channels
from ..reference import LAVT, LAVTConfig
from ..reference.config import SWIN


class PlainSegment(nn.Module):
    """`LAVT.segment` as a user would export it by hand."""

    def __init__(self, model: LAVT) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        return self.model.segment(image, words, word_mask)


def export_plain(model: LAVT, size: tuple[int, int], path: Path) -> None:
    """torch.onnx.export with its own defaults, nothing more: image (1,3,H,W), words (1,L,T), mask (1,T,1) to logits."""
    words = model.config.max_words
    inputs = (torch.zeros(1, 3, *size), torch.zeros(1, model.config.text.hidden_size, words), torch.ones(1, words, 1))
    program = torch.onnx.export(
        PlainSegment(model).eval(),
        inputs,
        dynamo=True,
        verbose=False,
        input_names=["image", "words", "word_mask"],
        output_names=["logits"],
    )
    assert program is not None
    program.save(str(path))


def export_rewritten(model: LAVT, size: tuple[int, int], path: Path) -> None:
    """The image graph of a bundle."""
    words = model.config.max_words
    inputs = {
        "image": torch.zeros(1, *size, 3, dtype=torch.uint8),
        "prompt": torch.zeros(1, words, prompt_channels(model.config)),
        "word_mask": torch.ones(1, words),
    }
    save_graph(export_graph(ImageModel(model, *size), inputs, ("logits", "mask")), path)


def session_runner(path: Path, threads: int) -> Callable[[], object]:
    """A call that runs a graph once on the CPU, on random inputs of its own shapes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds: dict[str, npt.NDArray[Any]] = {}
    for value in session.get_inputs():
        if value.type == "tensor(uint8)":
            feeds[value.name] = rng.integers(0, 256, value.shape, dtype=np.uint8)
        elif value.name == "word_mask":
            feeds[value.name] = np.ones(value.shape, np.float32)
        else:
            feeds[value.name] = rng.standard_normal(value.shape).astype(np.float32)
    return lambda: session.run(None, feeds)


def interleave(sides: Sequence[Callable[[], object]], rounds: int, warmup: int = 3) -> npt.NDArray[np.float64]:
    """Seconds of each side, (rounds,sides), measured in turn; which goes first changes from round to round."""
    seconds = np.zeros((warmup + rounds, len(sides)))
    for number in track(range(warmup + rounds), "measuring", console=Console(stderr=True), transient=True):
        for turn in range(len(sides)):
            side = (turn + number) % len(sides)
            start = time.perf_counter()
            sides[side]()
            seconds[number, side] = time.perf_counter() - start
    return seconds[warmup:]


def ratio_interval(seconds: npt.NDArray[np.float64], draws: int = 10_000) -> tuple[float, float, float]:
    """Ratio of the medians, second over first, and its 95 % bootstrap interval over rounds."""
    rng = np.random.default_rng(0)
    sample = seconds[rng.integers(0, len(seconds), (draws, len(seconds)))]
    ratios = np.median(sample[:, :, 1], axis=1) / np.median(sample[:, :, 0], axis=1)
    ratio = np.median(seconds[:, 1]) / np.median(seconds[:, 0])
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(ratio), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swin", default="base", choices=sorted(SWIN))
    parser.add_argument("--window", type=int, default=12)
    parser.add_argument("--image-size", type=int, default=480)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--graph", type=Path, nargs="*", default=[], help="image graphs of bundles to measure as well")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = LAVT(LAVTConfig(swin=arguments.swin, window=arguments.window)).eval()
    size = (arguments.image_size, arguments.image_size)
    with tempfile.TemporaryDirectory() as folder:
        plain, rewritten = Path(folder, "plain.onnx"), Path(folder, "rewritten.onnx")
        export_plain(model, size, plain)
        export_rewritten(model, size, rewritten)
        del model
        paths = [plain, rewritten, *arguments.graph]
        sides = [session_runner(path, arguments.threads) for path in paths]
    seconds = interleave(sides, arguments.rounds)
    names = ["plain export", "rewritten", *(path.name for path in arguments.graph)]
    for name, column in zip(names, seconds.T, strict=True):
        median, fastest, p90 = (1e3 * value for value in (np.median(column), column.min(), np.percentile(column, 90)))
        print(f"{name:24s} median {median:7.1f} ms, fastest {fastest:7.1f} ms, p90 {p90:7.1f} ms")
    for i, name in enumerate(names[1:], start=1):
        ratio, low, high = ratio_interval(seconds[:, [0, i]])
        least = seconds[:, i].min() / seconds[:, 0].min()
        print(
            f"{name} over plain export: ratio of medians {ratio:.3f}, 95 % interval {low:.3f} to {high:.3f}; "
            f"of the fastest runs {least:.3f}"
        )


if __name__ == "__main__":
    run_main(main)
