"""`lavt-export frame`: graphs from a camera's bytes to the model's image, and from its logits to the mask's bytes.

Three engines in a row, frame -> segmenter -> mask, rather than one: the segmenter, which takes minutes to build and
most of the memory, serves cameras of several sizes and layouts, and images of any size besides. The links are small:
an image of 0.7 MB and logits of 1.8 MB at 480x480, against the 1.5 GB that the segmenter moves.

Along each axis a resized value is a weighted sum of a few neighbours, the same few for a whole row or column: gathers
with constant indices, products and sums. TensorRT makes one kernel of each graph, which reads the bytes and writes the
bytes; its arithmetic is in registers, so half precision would save nothing and cost the exact rounding.
Dense products move 170 MB for a frame of 1080p, and convolutions with a stride 87 MB, where this moves 7.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from .._base.progress import Report, ignore
from ..errors import ExportError
from ..runtime.backend import OnnxRuntimeBackend
from ..runtime.bundle import file_entry
from ..runtime.images import LAYOUTS, prepare, result_of
from ..runtime.images.layouts import YUV_TO_RGB
from ..runtime.manifest import FrameEntry, InputSpec
from ..runtime.signature import check_signature, frame_signature, mask_signature
from ..runtime.update import BundleUpdate, update_bundle
from .edits import save_graph
from .graph import export_graph
from .samples import sample_frame, sample_logits

# Against the general path: the share of prepared bytes that may differ, by 1, and of the mask's pixels that must agree.
MOST_BYTES, LEAST_PIXELS = 0.02, 0.999
_MOST_SIDE = 16384
_CASES = 2  # frames and logits that are compared
_ONE = 1 << 22  # 1 as a weight of Pillow's sums over bytes


@dataclass(frozen=True)
class FrameOptions:
    """A camera's frames: height and width in pixels, and their layout, of `runtime.images.LAYOUTS`.

    Raises ExportError if there are no such frames.
    """

    height: int
    width: int
    pixels: str = "rgb"

    def __post_init__(self) -> None:
        shown = f"--size {self.height}x{self.width}"
        if self.pixels not in LAYOUTS:
            raise ExportError(f"--pixels {self.pixels!r}: give one of {', '.join(LAYOUTS)}")
        if not all(2 <= side <= _MOST_SIDE for side in (self.height, self.width)):
            raise ExportError(f"{shown}: each side must be 2 to {_MOST_SIDE} pixels")
        if self.pixels == "nv12" and (self.height % 2 or self.width % 2):
            raise ExportError(f"{shown}: frames in nv12 have even sides")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that a frame is."""
        return LAYOUTS[self.pixels].shape(self.height, self.width)


@dataclass(frozen=True)
class FrameParity:
    """The graphs beside the general path: the share of prepared bytes that differ, by at most `largest_step`, and the
    share of the mask's pixels that agree, the worst of `cases`."""

    bytes_differing: float
    largest_step: int
    pixel_agreement: float
    cases: int


class BandedSums(nn.Module):
    """A bilinear resize along one axis, antialiased where it shrinks, from `source` to `size` values.

    Each value is a sum of `weights` times the values that `indices` names; see `band`.
    """

    def __init__(self, indices: npt.NDArray[np.int64], weights: npt.NDArray[Any], axis: int) -> None:
        super().__init__()
        self.axis = axis
        shape = [-1 if i == axis else 1 for i in range(4)]
        self.taps = [
            (torch.from_numpy(index), torch.from_numpy(weight).reshape(shape))
            for index, weight in zip(indices.T.copy(), weights.T.copy(), strict=True)
        ]

    def forward(self, x: Tensor) -> Tensor:
        total, *terms = [x.index_select(self.axis, index) * weight for index, weight in self.taps]
        for term in terms:
            total = total + term
        return total


def band(source: int, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Which of `source` values each of `size` is made of, and with what weights: both (size, taps).

    The weights are a triangle of half-width max(scale, 1) around (i + 0.5) scale, normalised after it is cut at the
    borders (Pillow, src/libImaging/Resample.c).
    """
    scale = source / size
    support = max(scale, 1.0)
    centres = (np.arange(size)[:, None] + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + support + 0.5).astype(np.int64), source)
    taps = int((last - first).max())
    indices = np.minimum(first, source - taps) + np.arange(taps)
    weights = np.maximum(1 - np.abs((indices - centres + 0.5) * (1 / support)), 0)
    weights[(indices < first) | (indices >= last)] = 0
    return indices, weights / weights.sum(1, keepdims=True)


class ByteResize(nn.Module):
    """Both axes of bytes, int32 (1, h, w, C), horizontal first, rounded after each: Pillow's fixed-point sums.

    Weights have 22 bits, so no sum passes 31. For export alone: torch itself cannot run it.
    """

    def __init__(self, source: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__()
        passes = []
        for axis in (2, 1):
            if source[axis - 1] != size[axis - 1]:
                indices, weights = band(source[axis - 1], size[axis - 1])
                passes.append(BandedSums(indices, (weights * _ONE + 0.5).astype(np.int32), axis))
        self.passes = nn.ModuleList(passes)

    def forward(self, x: Tensor) -> Tensor:
        for sums in self.passes:
            total = sums(x) + _ONE // 2
            # torch's own integer division is exported as one of floats.
            one = torch.tensor(_ONE, dtype=torch.int32)
            x = torch.onnx.ops.symbolic("Div", (total, one), dtype=torch.int32, shape=total.shape)
        return x


class FrameModel(nn.Module):
    """A frame of a layout, uint8 (1, *options.shape), to the segmenter's image, uint8 (1, h, w, 3) RGB."""

    def __init__(self, options: FrameOptions, size: tuple[int, int]) -> None:
        super().__init__()
        self.layout, self.height, self.width = LAYOUTS[options.pixels], options.height, options.width
        self.resize = ByteResize((self.height, self.width), size)
        self.resize_chroma = ByteResize((self.height // 2, self.width // 2), size)
        self.order = torch.tensor(self.layout.rgb, dtype=torch.int64)
        matrix = torch.tensor(YUV_TO_RGB).reshape(3, 4)
        self.factors, self.offset = matrix[:, :3].T.contiguous(), matrix[:, 3].clone()

    def forward(self, frame: Tensor) -> Tensor:
        x = frame.float().int()  # TensorRT's bytes become floats, and are made of floats, alone (NvInfer.h, kUINT8)
        if self.layout.channels:
            image = self.resize(x if x.ndim == 4 else x.unsqueeze(3)).index_select(3, self.order)
        else:
            image = self._from_nv12(x)
        return image.float().to(torch.uint8)

    def _from_nv12(self, x: Tensor) -> Tensor:
        """The planes are resized before they become RGB, as on the general path."""
        luma = self.resize(x[:, : self.height].unsqueeze(3)).float().clamp(min=16)
        chroma = self.resize_chroma(x[:, self.height :].reshape(1, self.height // 2, self.width // 2, 2)).float()
        # Three products by hand: a matrix product of three columns would be a kernel of its own.
        rgb = luma * self.factors[0] + chroma[..., :1] * self.factors[1] + chroma[..., 1:] * self.factors[2]
        return torch.floor(rgb + self.offset + 0.5).clamp(0, 255)


class MaskModel(nn.Module):
    """The segmenter's logits, float32 (1, 2, h, w), to the frame's mask, uint8 (1, H, W), and their difference, float32
    (1, h, w), which a probability is made of if somebody reads one."""

    def __init__(self, options: FrameOptions, size: tuple[int, int]) -> None:
        super().__init__()
        self.columns, self.rows = (
            BandedSums(indices, weights.astype(np.float32), axis)
            for axis, (indices, weights) in ((2, band(size[1], options.width)), (1, band(size[0], options.height)))
        )

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        logit = logits[:, 1] - logits[:, 0]
        resized = self.rows(self.columns(logit.unsqueeze(3))).squeeze(3)
        return (resized > 0).float().to(torch.uint8), logit


def add_frame_graphs(
    root: Path, options: FrameOptions, *, replace_existing: bool = False, report: Report = ignore
) -> FrameEntry:
    """Adds the graphs for a camera's frames to the bundle in folder `root`, checked against the general path.

    Returns the manifest's entry for them. Raises BundleError for a damaged bundle, ExportError if it has them already,
    takes several images at once, or if the graphs do not agree with the general path.
    """
    with update_bundle(root) as change:
        manifest = change.manifest()
        entry = FrameEntry.named(options.height, options.width, options.pixels)
        if entry.name in manifest.frames and not replace_existing:
            raise ExportError(f"{root} has graphs for frames {entry.name} already; pass --force to replace them")
        if manifest.input.batch not in (1, None):
            raise ExportError(
                f"the bundle's graphs take {manifest.input.batch} images at once, and a frame is one: export a bundle "
                "with lavt-export onnx --batch 1"
            )
        report(f"exporting the graphs for frames {entry.name}")
        size = manifest.input.height, manifest.input.width
        for name, model in zip((entry.frame, entry.mask), export_models(options, size), strict=True):
            save_graph(model, change.new(name))
        report("checking against the general path")
        parity = _measure(change, options, entry, manifest.input)
        _check(parity, entry)
        entry = replace(entry, parity=asdict(parity))
        files = {
            entry.frame: file_entry(change.path(entry.frame), "frame"),
            entry.mask: file_entry(change.path(entry.mask), "mask"),
        }
        change.commit(files, lambda old: replace(old, frames={**old.frames, entry.name: entry}))
    return entry


def export_models(options: FrameOptions, size: tuple[int, int]) -> tuple[ir.Model, ir.Model]:
    """The frame and the mask graph for a segmenter of this height and width."""
    frame, logits = torch.zeros(1, *options.shape, dtype=torch.uint8), torch.zeros(1, 2, *size)
    return (
        export_graph(FrameModel(options, size), {"frame": frame}, ("image",)),
        export_graph(MaskModel(options, size), {"logits": logits}, ("mask", "logit")),
    )


def _measure(change: BundleUpdate, options: FrameOptions, entry: FrameEntry, spec: InputSpec) -> FrameParity:
    frame_graph = OnnxRuntimeBackend(change.path(entry.frame), device="cpu")
    mask_graph = OnnxRuntimeBackend(change.path(entry.mask), device="cpu")
    check_signature(frame_graph.signature, frame_signature(entry, spec), entry.frame)
    check_signature(mask_graph.signature, mask_signature(entry, spec), entry.mask)
    differing, steps, agreement = [], [], []
    for seed in range(_CASES):
        frame, logits = sample_frame(options.shape, seed), sample_logits((2, spec.height, spec.width), seed)
        (image,) = frame_graph.run({"frame": frame[None]}, ["image"])
        wanted = prepare(frame, spec.height, spec.width, pixels=options.pixels).pixels
        step = np.abs(image[0].astype(np.int16) - wanted)
        differing.append(float((step > 0).mean()))
        steps.append(int(step.max()))
        (mask,) = mask_graph.run({"logits": logits[None]}, ["mask"])
        result = result_of(logits, "", (options.height, options.width))
        agreement.append(float((mask[0].astype(bool) == result.mask).mean()))
    return FrameParity(max(differing), max(steps), min(agreement), _CASES)


def _check(parity: FrameParity, entry: FrameEntry) -> None:
    near = parity.bytes_differing <= MOST_BYTES and parity.largest_step <= 1
    if not (near and parity.pixel_agreement >= LEAST_PIXELS):
        raise ExportError(
            f"the graphs for frames {entry.name} differ from the general path: {100 * parity.bytes_differing:.2f} % of "
            f"the prepared bytes, by up to {parity.largest_step}, and {100 * (1 - parity.pixel_agreement):.3f} % of "
            "the mask; nothing was written"
        )
