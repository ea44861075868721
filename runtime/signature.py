"""The inputs and outputs that the graphs of a bundle must have, and the check that they do."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BundleError
from .images import LAYOUTS
from .manifest import EXPORT_AGAIN, FrameEntry, InputSpec


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype name and shape of a graph's input or output; None in the shape is a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.dtype} ({sizes})"

    def at(self, batch: int) -> tuple[int, ...]:
        """The shape with this many rows, if nothing else is dynamic."""
        return (batch, *(size or 0 for size in self.shape[1:]))


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def text_signature(spec: InputSpec) -> Signature:
    """Token ids and mask (B, words) to the prompt (B, words, channels)."""
    words = (spec.batch, spec.max_words)
    return Signature(
        inputs=(TensorSpec("input_ids", "int64", words), TensorSpec("attention_mask", "int64", words)),
        outputs=(TensorSpec("prompt", "float32", (*words, spec.prompt_channels)),),
    )


def segmenter_signature(spec: InputSpec) -> Signature:
    """Image (B, H, W, 3), prompt and word mask to logits (B, 2, H, W) and mask (B, H, W)."""
    words = (spec.batch, spec.max_words)
    return Signature(
        inputs=(
            TensorSpec("image", "uint8", (spec.batch, spec.height, spec.width, 3)),
            TensorSpec("prompt", "float32", (*words, spec.prompt_channels)),
            TensorSpec("word_mask", "float32", words),
        ),
        outputs=(
            TensorSpec("logits", "float32", (spec.batch, 2, spec.height, spec.width)),
            TensorSpec("mask", "uint8", (spec.batch, spec.height, spec.width)),
        ),
    )


def frame_signature(entry: FrameEntry, spec: InputSpec) -> Signature:
    """A camera's frame to the segmenter's image (1, H, W, 3)."""
    shape = LAYOUTS[entry.pixels].shape(entry.height, entry.width)
    return Signature(
        inputs=(TensorSpec("frame", "uint8", (1, *shape)),),
        outputs=(TensorSpec("image", "uint8", (1, spec.height, spec.width, 3)),),
    )


def mask_signature(entry: FrameEntry, spec: InputSpec) -> Signature:
    """The segmenter's logits to the frame's mask, and to their difference at the segmenter's size."""
    return Signature(
        inputs=(TensorSpec("logits", "float32", (1, 2, spec.height, spec.width)),),
        outputs=(
            TensorSpec("mask", "uint8", (1, entry.height, entry.width)),
            TensorSpec("logit", "float32", (1, spec.height, spec.width)),
        ),
    )


def check_signature(found: Signature, expected: Signature, file: str) -> None:
    """Raise BundleError for the first input or output that is missing, superfluous, or of another type or shape."""
    for kind, given, wanted in (("input", found.inputs, expected.inputs), ("output", found.outputs, expected.outputs)):
        by_name = {tensor.name: tensor for tensor in given}
        for tensor in wanted:
            match = by_name.pop(tensor.name, None)
            if match != tensor:
                raise BundleError(f"{file}: expected the {kind} {tensor}, found {match or 'none'}: {EXPORT_AGAIN}")
        if by_name:
            raise BundleError(f"{file}: unexpected {kind} {next(iter(by_name.values()))}: {EXPORT_AGAIN}")
