"""The sides of a comparison: what a name on the command line stands for, and what each has in common.

Every side answers one question: how long one call of the image graph takes on a batch of images and their sentences,
from arrays in host memory to logits in host memory. Text is encoded before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import BackendError, BundleError, LavtError
from ...export.source import Source
from ...runtime.bundle import Bundle, open_bundle
from ...runtime.manifest import MANIFEST_NAME
from ...runtime.signature import TensorSpec

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SideSpec:
    """What to open, as plain values, since it travels to another process.

    `engine` is the bundle that is measured (or a graph in it), from which peers take size and model. `path` is a side's
    own file or folder, `plain` the plain export for sides that run it. `source` says the weights of those that run the
    reference in PyTorch.
    `batch` is in images; `threads` None is one per core; `frame` the size of the noise that is measured on, if any.
    """

    name: str
    kind: str
    engine: Path
    path: Path | None = None
    plain: Path | None = None
    source: Source | None = None
    batch: int = 1
    threads: int | None = None
    device: str = "auto"
    text: str = "the man in red"
    image: Path | None = None
    frame: tuple[int, int] | None = None
    precision: str = "fp32"


@dataclass(frozen=True)
class SideInfo:
    """What an opened side is: `size` is the height and width of its input, `batch` images per call; a bundle's `file`
    is its image graph."""

    precision: str
    size: tuple[int, int]
    batch: int
    device: str
    runtime: str
    file: str | None = None


class Side(Protocol):
    """An opened side."""

    about: SideInfo

    def run(self) -> object:
        """One call, finished when it returns. Raises LavtError if it fails."""


@dataclass(frozen=True)
class Peer:
    """A name for `--against`: the adapter's kind, its precision, and whether it runs the plain export."""

    kind: str
    precision: str = "fp32"
    plain: bool = False


PEERS: Mapping[str, Peer] = {
    "torch": Peer("torch"),
    "torch-compile": Peer("torch", "compile"),
    "onnx-plain": Peer("onnx", plain=True),
    "openvino": Peer("openvino"),
    "openvino-bf16": Peer("openvino", "bf16"),
    "openvino-int8": Peer("openvino", "int8-cpu"),
    "openvino-plain": Peer("openvino", plain=True),
    "openvino-plain-bf16": Peer("openvino", "bf16", plain=True),
    "tensorrt-plain": Peer("tensorrt", "fp16", plain=True),
}


def specify(engine: Path, against: Sequence[str], **common: Any) -> list[SideSpec]:
    """The engine's specification and its peers', in order, with names that differ; plain exports are not made yet.

    A peer is a name in PEERS, or the path of a bundle, a graph in one, or any .onnx with the image graph's inputs.
    `common` goes into each, as SideSpec takes it.

    Raises LavtError if the engine is not a bundle, or a peer is neither a name nor a path.
    """
    open_bundle(engine)
    specs = [SideSpec(_label(engine), "bundle", engine, path=engine, **common)]
    for name in against:
        if name in PEERS:
            peer = PEERS[name]
            specs.append(SideSpec(name, peer.kind, engine, precision=peer.precision, **common))
        else:
            path = Path(name)
            specs.append(SideSpec(_label(path), _kind_of(path), engine, path=path, **common))
    names = [spec.name for spec in specs]
    counts = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return [
        spec if count == 1 else replace(spec, name=f"{spec.name} #{count}")
        for spec, count in zip(specs, counts, strict=True)
    ]


def _label(path: Path) -> str:
    """Folder for a bundle; folder/file for a graph."""
    path = path.resolve()
    return path.name if path.is_dir() else f"{path.parent.name}/{path.name}"


def _kind_of(path: Path) -> str:
    if not path.exists():
        raise LavtError(f"--against {path}: no such file, and no peer of that name; peers: {', '.join(PEERS)}")
    if path.is_dir():
        open_bundle(path)
        return "bundle"
    if path.suffix not in (".onnx", ".engine"):
        raise LavtError(f"--against {path}: give a bundle, an .onnx or an .engine")
    try:
        open_bundle(path)
    except BundleError:
        beside_manifest = (path.parent / MANIFEST_NAME).is_file()
        if path.suffix == ".engine" or (beside_manifest and path.name in open_bundle(path.parent).manifest.files):
            raise
        return "onnx"
    return "bundle"


def batch_of(bundle: Bundle, batch: int) -> int:
    """The images per call: the bundle's own, or `batch` if it is dynamic. Raises LavtError if they differ."""
    fixed = bundle.manifest.input.batch
    if fixed is not None and batch not in (1, fixed):
        raise LavtError(f"{bundle.root} was exported for batches of {fixed}, not {batch}")
    return fixed or batch


def feeds_for(inputs: Sequence[TensorSpec], batch: int) -> dict[str, Array]:
    """Arrays for a graph's inputs: noise, with every word real; a dynamic batch becomes `batch`.

    Raises LavtError if an input has no batch, another size is dynamic, or a fixed batch is not `batch`.
    """
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for tensor in inputs:
        name, dtype, shape = tensor.name, tensor.dtype, tensor.shape
        sizes = [batch if number == 0 and size is None else size for number, size in enumerate(shape)]
        if any(size is None for size in sizes):
            raise BackendError(f"input {name} has dynamic sizes {list(shape)}; only the batch may be dynamic")
        full = [int(size) for size in sizes if size is not None]
        if not full:
            raise BackendError(f"input {name} is a single number; each input needs a batch")
        if full[0] != batch:
            raise LavtError(f"input {name} is for batches of {full[0]}, not {batch}")
        if dtype == "uint8":
            feeds[name] = rng.integers(0, 256, full, dtype=np.uint8)
        elif "mask" in name:
            feeds[name] = np.ones(full, dtype)
        else:
            feeds[name] = rng.standard_normal(full).astype(dtype)
    return feeds


def image_size(feeds: Mapping[str, Array]) -> tuple[int, int]:
    """Height and width of the input `image`, whose channels come first or last."""
    shape = feeds["image"].shape if "image" in feeds else ()
    if len(shape) != 4:
        raise BackendError(f"the graph has no image input of 4 sizes, but {', '.join(feeds)}")
    return (shape[2], shape[3]) if shape[1] == 3 else (shape[1], shape[2])
