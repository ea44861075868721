"""The rewrites against the published forms in PyTorch, each in a CUDA graph: what they win on a GPU before TensorRT.

    python -m lavt_edge.benchmarks.runs.gpu_rewrites --swin base --window 12 --image-size 480 --half

Both sides have the same random weights and take turns; a call is one replay of its graph, timed on the device. Prints
the ratio of rewritten over published, with its 95 % interval, for the whole image model, the decoder, and PWAM of each
stage. With `--device cpu` the same runs without graphs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ..._base.exits import run_main
from ..._base.timing import interleave, paired_ratio, summarise
from ...errors import LavtError
from ...export.rewrites.image_model import ImageDecoder, ImageModel, stage_sizes
from ...export.rewrites.pwam import FusedPWAM
from ...export.rewrites.words import prompt_channels
from ...reference import LAVT, LAVTConfig
from ...reference.config import SWIN
from ...reference.decoder import upsample

Call = Callable[[], object]


class DeviceSide:
    """A call on the CPU, or captured once and replayed on CUDA."""

    def __init__(self, call: Call, device: str) -> None:
        self._call, self._graph = call, None
        if device == "cuda":
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):  # libraries choose their kernels before the capture
                for _ in range(3):
                    call()
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                call()

    def run(self) -> float:
        """Seconds of one call."""
        if self._graph is None:
            start = time.perf_counter()
            self._call()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self._graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


def pairs(model: LAVT, size: int, dtype: torch.dtype, device: str) -> Iterator[tuple[str, Call, Call]]:
    """Name, published call and rewritten call of each part, on inputs of one image and 20 words."""
    config, words = model.config, model.config.max_words

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, device=device)

    language, mask = noise(1, config.text.hidden_size, words), torch.ones(1, words, dtype=dtype, device=device)
    image, column = noise(1, 3, size, size), mask.unsqueeze(-1)
    rewritten = ImageModel(model, size, size).to(device, dtype)
    pixels = torch.zeros(1, size, size, 3, dtype=torch.uint8, device=device)
    prompt = noise(1, words, prompt_channels(config))
    published = model.to(device, dtype)
    yield "image model", lambda: published.segment(image, language, column), lambda: rewritten(pixels, prompt, mask)

    sizes = stage_sizes(size, size)
    maps = [noise(1, channels, *sizes[i]) for i, channels in enumerate(config.channels)]
    rows = [part.flatten(2).transpose(1, 2).contiguous() for part in maps]
    decoder = ImageDecoder(published.classifier, sizes, (size, size))
    yield "decoder", lambda: upsample(published.classifier(maps), size, size), lambda: decoder(rows)

    for i, channels in enumerate(config.channels):
        pwam = published.backbone.stages[i].fusion
        fused, heads = FusedPWAM(pwam).to(device, dtype), config.fusion_heads[i]
        key, value = noise(1, words, channels), noise(1, heads * words, channels)

        yield (
            f"stage{i}.pwam",
            partial(pwam, rows[i], language, column),
            partial(fused, rows[i], key, value, torch.zeros_like(mask)),
        )


@torch.inference_mode()
def measure(model: LAVT, size: int, dtype: torch.dtype, device: str, rounds: int) -> Iterator[str]:
    """A line for each part."""
    for name, published, rewritten in pairs(model.eval(), size, dtype, device):
        before, after = interleave([DeviceSide(published, device), DeviceSide(rewritten, device)], 5, rounds)
        ratio = paired_ratio(after, before)
        medians = [1e3 * summarise(seconds).median for seconds in (before, after)]
        yield (
            f"{name:12} published {medians[0]:8.3f} ms, rewritten {medians[1]:8.3f} ms, ratio {ratio.ratio:.3f}, "
            f"95 % {ratio.low:.3f} to {ratio.high:.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swin", default="base", choices=sorted(SWIN))
    parser.add_argument("--window", type=int, default=12)
    parser.add_argument("--image-size", type=int, default=480)
    parser.add_argument("--half", action="store_true", help="FP16 instead of FP32")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise LavtError("PyTorch finds no CUDA device: run this where there is one, or give --device cpu")
    torch.manual_seed(0)
    model = LAVT(LAVTConfig(swin=options.swin, window=options.window))
    if options.device == "cuda":
        print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, {'FP16' if options.half else 'FP32'}")
    dtype = torch.float16 if options.half else torch.float32
    for line in measure(model, options.image_size, dtype, options.device, options.rounds):
        print(line)


if __name__ == "__main__":
    run_main(main)
