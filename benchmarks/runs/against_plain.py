"""The rewritten image graph against a plain export of the reference, interleaved on ONNX Runtime.

    python -m lavt_edge.benchmarks.runs.against_plain --swin base --window 12 --image-size 480 --threads 2

Time does not depend on the weights, so they are random. Both sides get the same image and sentence, one as bytes and
a prompt, the other as normalised floats and word features.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from ..._base.exits import run_main
from ...export.graph import export_graph, save_graph
from ...export.rewrites.image_model import ImageModel
from ...export.rewrites.words import prompt_channels
from ...reference import LAVT, LAVTConfig
from ...reference.config import SWIN
from ..peers.plain import export_plain
from ..peers.process import RemoteSide
from ..peers.sides import SideSpec
from ..timing.measure import interleave
from ..timing.statistics import paired_ratio, summarise


def export_rewritten(model: LAVT, size: tuple[int, int], path: Path) -> None:
    """The image graph of a bundle."""
    words = model.config.max_words
    inputs = {
        "image": torch.zeros(1, *size, 3, dtype=torch.uint8),
        "prompt": torch.zeros(1, words, prompt_channels(model.config)),
        "word_mask": torch.ones(1, words),
    }
    save_graph(export_graph(ImageModel(model, *size), inputs, ("logits", "mask")), path)


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
        graphs = [("plain export", plain), ("rewritten", rewritten), *((path.name, path) for path in arguments.graph)]
        specs = [SideSpec(name, "onnx", path, path, threads=arguments.threads, device="cpu") for name, path in graphs]
        seconds = _measure(specs, arguments.rounds)
    for spec, values in zip(specs, seconds, strict=True):
        found = summarise(values)
        print(f"{spec.name:24s} median {1e3 * found.median:7.1f} ms, p90 {1e3 * found.p90:7.1f} ms")
    for spec, values in zip(specs[1:], seconds[1:], strict=True):
        ratio = paired_ratio(values, seconds[0], period=len(specs))
        print(
            f"{spec.name} over plain export: ratio of medians {ratio.ratio:.3f}, "
            f"95 % interval {ratio.low:.3f} to {ratio.high:.3f}"
        )


def _measure(specs: Sequence[SideSpec], rounds: int) -> list[list[float]]:
    """Seconds of each side by round."""
    console = Console(stderr=True)
    with ExitStack() as stack:
        sides = [stack.enter_context(RemoteSide(spec)) for spec in specs]
        progress = stack.enter_context(Progress(console=console, transient=True, disable=not console.is_terminal))
        task = progress.add_task("measuring")
        return interleave(sides, 3, rounds, lambda done, total: progress.update(task, completed=done, total=total))


if __name__ == "__main__":
    run_main(main)
