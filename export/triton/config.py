"""Triton's `config.pbtxt`: what a model takes, gives and needs, as protobuf's text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ...runtime.signature import Signature, TensorSpec

Config: TypeAlias = Mapping[str, Any]

TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}


class Word(str):
    """A value without quotes: one of an enumeration."""


def to_text(message: Config, indent: str = "") -> str:
    """A message as protobuf's text: mappings are messages, sequences repeated fields, strings (ASCII) are quoted."""
    lines = []
    for name, value in message.items():
        several = isinstance(value, Sequence) and not isinstance(value, str)
        if several and not any(isinstance(item, Mapping) for item in value):
            lines.append(f"{indent}{name}: [{', '.join(map(_scalar, value))}]\n")
            continue
        for item in value if several else (value,):
            if isinstance(item, Mapping):
                lines.append(f"{indent}{name} {{\n{to_text(item, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(item)}\n")
    return "".join(lines)


def _scalar(value: object) -> str:
    return str(value) if isinstance(value, Word) else json.dumps(value)


def lavt_config(version: int, file: str, max_batch: int, instances: int) -> Config:
    """That of `lavt`, on the Python backend; `file` is the bundle's file that was chosen, "" for the whole bundle.

    Its instances are processes that look for their device themselves, so that there are as many as asked for: KIND_GPU
    would mean as many for each GPU. Images and sentences of one batch may differ in shape.
    """
    ragged = {"allow_ragged_batch": True}
    return {
        **_head("lavt", "python", "model.py", version),
        "max_batch_size": max_batch,
        "input": [
            {"name": "sentences", "data_type": Word("TYPE_STRING"), "dims": [-1], **ragged},
            {"name": "image", "data_type": Word("TYPE_STRING"), "dims": [1], "optional": True},
            {"name": "array", "data_type": Word("TYPE_UINT8"), "dims": [-1, -1, 3], "optional": True, **ragged},
        ],
        "output": [
            {"name": "masks", "data_type": Word("TYPE_BOOL"), "dims": [-1, -1, -1]},
            {"name": "scores", "data_type": Word("TYPE_FP32"), "dims": [-1]},
        ],
        "instance_group": [{"count": instances, "kind": Word("KIND_CPU")}],
        "dynamic_batching": {},
        "parameters": {"key": "file", "value": {"string_value": file}},
    }


def graph_config(
    name: str, backend: str, file: str, version: int, signature: Signature, max_batch: int, instances: int
) -> Config:
    """That of a bare graph; `max_batch` counts if its batch is dynamic, else Triton batches nothing."""
    dynamic = signature.inputs[0].shape[0] is None
    kind = {"kind": Word("KIND_GPU")} if backend == "tensorrt" else {}  # ONNX Runtime: a GPU if there is one
    return {
        **_head(name, backend, file, version),
        "max_batch_size": max_batch if dynamic else 0,
        "input": [_tensor(spec) for spec in signature.inputs],
        "output": [_tensor(spec) for spec in signature.outputs],
        "instance_group": [{"count": instances, **kind}],
        **({"dynamic_batching": {}} if dynamic else {}),
    }


def _head(name: str, backend: str, file: str, version: int) -> Config:
    """`specific`, since a bundle's number says nothing of its age: the highest would be served otherwise."""
    policy = {"specific": {"versions": [version]}}
    return {"name": name, "backend": backend, "default_model_filename": file, "version_policy": policy}


def _tensor(spec: TensorSpec) -> Config:
    dims = [size for size in spec.shape if size is not None]
    return {"name": spec.name, "data_type": Word(TYPES[spec.dtype]), "dims": dims}
