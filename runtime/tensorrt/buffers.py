"""What memory an engine needs and how a call fills it: sizes, batches, checks. Plain arithmetic, no CUDA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
class BufferPlan:
    """The buffers of an engine, allocated once for batches of up to `max_batch`; `dynamic`: smaller ones fit too."""

    signature: Signature
    max_batch: int
    dynamic: bool


def plan_buffers(engine: tensorrt.ICudaEngine) -> BufferPlan:
    """The plan of a deserialised engine with one optimisation profile.

    Raises ValueError if an input or output has a type that numpy lacks, or another dimension than the first is
    dynamic.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    specs = [_tensor_spec(engine, name) for name in names]
    inputs = tuple(spec for spec in specs if engine.get_tensor_mode(spec.name).name == "INPUT")
    outputs = tuple(spec for spec in specs if spec not in inputs)
    batches = {spec.shape[0] or int(engine.get_tensor_profile_shape(spec.name, 0)[2][0]) for spec in inputs}
    if len(batches) != 1:
        raise ValueError(f"its inputs take batches of {sorted(batches)}, expected one size")
    return BufferPlan(Signature(inputs, outputs), batches.pop(), any(spec.shape[0] is None for spec in inputs))


def _tensor_spec(engine: tensorrt.ICudaEngine, name: str) -> TensorSpec:
    kind = engine.get_tensor_dtype(name).name
    if kind not in _DTYPES:
        raise ValueError(f"{name} is of type {kind}")
    shape = tuple(engine.get_tensor_shape(name))
    if not shape or any(size < 0 for size in shape[1:]):
        raise ValueError(f"{name} has the shape {shape}, only its first dimension may be dynamic")
    return TensorSpec(name, _DTYPES[kind], (None if shape[0] < 0 else shape[0], *shape[1:]))


def validate_feeds(plan: BufferPlan, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]) -> int:
    """The batch size of a call's inputs. Raises ValueError if a name, a type or a shape does not fit the plan."""
    wanted = {spec.name: spec for spec in plan.signature.inputs}
    known = {spec.name for spec in plan.signature.outputs}
    for name in (*feeds.keys() - wanted.keys(), *(name for name in outputs if name not in known)):
        raise ValueError(f"it has no {'input' if name in feeds else 'output'} {name}")
    for name in wanted.keys() - feeds.keys():
        raise ValueError(f"the input {name} is missing")
    sizes = {len(array) if array.ndim else 0 for array in feeds.values()}
    rows = sizes.pop() if len(sizes) == 1 else 0
    for name, spec in wanted.items():
        array = feeds[name]
        if array.dtype.name != spec.dtype or array.shape != spec.at(rows):
            raise ValueError(f"expected the input {spec}, found {array.dtype} {array.shape}")
    if rows < 1 or (not plan.dynamic and rows != plan.max_batch):
        raise ValueError(f"expected a batch of {plan.max_batch}, found {rows}")
    return rows
