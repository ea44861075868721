"""What memory an engine needs and how a call fills it: sizes, batches, checks. Plain arithmetic, no CUDA."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..signature import Signature, TensorSpec

if TYPE_CHECKING:
    import tensorrt

# tensorrt.DataType by name; the bundle's contract needs no other.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class TensorPlan:
    """An input or output: `spec` as the graph declares it, `largest` its shape at the largest batch."""

    spec: TensorSpec
    largest: tuple[int, ...]
    is_input: bool

    @property
    def nbytes(self) -> int:
        """Bytes of a buffer that holds the largest batch."""
        return math.prod(self.largest) * np.dtype(self.spec.dtype).itemsize

    def at(self, batch: int) -> tuple[int, ...]:
        """The shape with this many rows."""
        return (batch, *self.largest[1:])


@dataclass(frozen=True)
class BufferPlan:
    """The buffers of an engine, allocated once for batches of up to `max_batch`; `dynamic`: smaller ones fit too."""

    tensors: tuple[TensorPlan, ...]
    max_batch: int
    dynamic: bool

    @property
    def inputs(self) -> tuple[TensorPlan, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.is_input)

    @property
    def signature(self) -> Signature:
        """The inputs and outputs; the batch is None if it is dynamic."""
        outputs = tuple(tensor.spec for tensor in self.tensors if not tensor.is_input)
        return Signature(inputs=tuple(tensor.spec for tensor in self.inputs), outputs=outputs)

    @property
    def nbytes(self) -> int:
        """Bytes of one copy of all buffers."""
        return sum(tensor.nbytes for tensor in self.tensors)


def plan_buffers(engine: tensorrt.ICudaEngine) -> BufferPlan:
    """The plan of a deserialised engine with one optimisation profile.

    Raises ValueError if an input or output has a type that numpy lacks, or another dimension than the first is
    dynamic.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name).name == "INPUT"]
    dynamic = False
    batches: set[int] = set()
    for name in inputs:
        shape = _sizes(engine.get_tensor_shape(name))
        if not shape or any(size < 0 for size in shape[1:]):
            raise ValueError(f"the input {name} has the shape {shape}, only its first dimension may be dynamic")
        if shape[0] < 0:
            dynamic = True
            _, _, largest = engine.get_tensor_profile_shape(name, 0)
            batches.add(_sizes(largest)[0])
        else:
            batches.add(shape[0])
    if len(batches) != 1:
        raise ValueError(f"its inputs take batches of {sorted(batches)}, expected one size")
    (max_batch,) = batches
    tensors = tuple(_tensor_plan(engine, name, name in inputs, max_batch) for name in names)
    return BufferPlan(tensors, max_batch, dynamic)


def _tensor_plan(engine: tensorrt.ICudaEngine, name: str, is_input: bool, max_batch: int) -> TensorPlan:
    kind = engine.get_tensor_dtype(name).name
    if kind not in _DTYPES:
        raise ValueError(f"{name} is of type {kind}")
    shape = _sizes(engine.get_tensor_shape(name))
    if any(size < 0 for size in shape[1:]):
        raise ValueError(f"{name} has the shape {shape}, only its first dimension may be dynamic")
    spec = TensorSpec(name, _DTYPES[kind], (None if shape[0] < 0 else shape[0], *shape[1:]))
    return TensorPlan(spec, (max_batch, *shape[1:]), is_input)


def _sizes(shape: tensorrt.Dims) -> tuple[int, ...]:
    return tuple(int(shape[index]) for index in range(len(shape)))


def validate_feeds(plan: BufferPlan, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]) -> int:
    """The batch size of a call's inputs. Raises ValueError if a name, a type or a shape does not fit the plan."""
    wanted = {tensor.spec.name: tensor for tensor in plan.inputs}
    known = {tensor.name for tensor in plan.signature.outputs}
    for name in (*feeds.keys() - wanted.keys(), *(name for name in outputs if name not in known)):
        raise ValueError(f"it has no {'input' if name in feeds else 'output'} {name}")
    for name in wanted.keys() - feeds.keys():
        raise ValueError(f"the input {name} is missing")
    sizes = {len(array) if array.ndim else 0 for array in feeds.values()}
    rows = sizes.pop() if len(sizes) == 1 else 0
    for name, tensor in wanted.items():
        array = feeds[name]
        if array.dtype.name != tensor.spec.dtype or array.shape != tensor.at(rows):
            raise ValueError(f"expected the input {tensor.spec}, found {array.dtype} {array.shape}")
    if rows < 1 or (not plan.dynamic and rows != plan.max_batch):
        raise ValueError(f"expected a batch of {plan.max_batch}, found {rows}")
    return rows


def pieces(rows: int, max_batch: int) -> Iterator[slice]:
    """The parts that a batch runs in, each of at most `max_batch` rows."""
    for start in range(0, rows, max_batch):
        yield slice(start, min(start + max_batch, rows))


def is_immutable(array: npt.NDArray[Any]) -> bool:
    """Whether the array cannot change: read-only, and not a view of another. A copy on the device then stays good."""
    return not array.flags.writeable and bool(array.flags.owndata)
