"""What an engine's layers run in: counted from TensorRT's own layer report.

Two sources, one meaning. The inspector's JSON (`EngineInspector.get_engine_information`) needs a GPU; its fields are
`Format/Datatype` in TensorRT 10 and `Datatype` beside `Format` in 11 and RTX. Without a GPU, TensorRT for RTX writes
the same report as text to its log when a build ends, one layer a line.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..rewrites.names import product_type

LOG_TITLE = "Layers:"

# Names of types in both reports; formats of TensorRT 10 hold one of them among other words.
_PRECISIONS = (
    ("int8", re.compile(r"\b(int8|s8)\b", re.IGNORECASE)),
    ("fp8", re.compile(r"\b(fp8|float8)\b", re.IGNORECASE)),
    ("bf16", re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE)),
    ("fp16", re.compile(r"\b(half|fp16)\b", re.IGNORECASE)),
    ("fp32", re.compile(r"\b(float|fp32)\b", re.IGNORECASE)),
)
# Signals between streams and the like compute nothing.
_BOOKKEEPING = frozenset({"signal", "wait", "shape_call", "NoOp", "Constant"})
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: (?P<inputs>.*?), Constants: (?P<constants>.*?), "
    r"Outputs: (?P<outputs>.*?), TacticName: "
)
_TENSOR = re.compile(r"Dimensions: \[(?P<dims>[-\d,]*)\][^{}]*?Datatype: (?P<type>\w+)")
_BYTES = {"float": 4, "int32": 4, "int64": 8, "half": 2, "bfloat16": 2}  # of the rest, one
_COMPUTES_PRODUCTS = re.compile(r"gemm|conv|correlation|matmul|matrix|mha|(?:^|_)Fc", re.IGNORECASE)


@dataclass(frozen=True)
class EngineLayer:
    """A layer of an engine: the lowest precision that it reads, and in `onnx` the graph's nodes that it computes.

    `moved` are the bytes of the tensors that it reads and writes, `constants` those of its weights; caches are not
    considered. None if the report does not say.
    """

    name: str
    kind: str
    precision: str
    onnx: tuple[str, ...]
    moved: int | None = None
    constants: int | None = None

    @property
    def is_kernel(self) -> bool:
        """Whether it runs on the GPU; signals between streams and the like do not."""
        return self.kind not in _BOOKKEEPING


def layers_from_log(text: str) -> list[EngineLayer]:
    """The layers in the message that TensorRT for RTX logs under the title "Layers:" after a build."""
    layers = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match:
            inputs, constants, outputs = (_TENSOR.findall(match[part]) for part in ("inputs", "constants", "outputs"))
            layer = _layer(match["name"], match["kind"], [kind for _, kind in inputs or outputs], line)
            layers.append(replace(layer, moved=_bytes(inputs) + _bytes(outputs), constants=_bytes(constants)))
    return layers


def _bytes(tensors: Iterable[tuple[str, str]]) -> int:
    """Of tensors, given as dimensions and type."""
    return sum(
        math.prod(map(int, filter(None, dims.split(",")))) * _BYTES.get(kind.lower(), 1) for dims, kind in tensors
    )


def layers_from_inspector(text: str) -> list[EngineLayer]:
    """The layers in the inspector's JSON, of an engine built with detailed profiling verbosity."""
    layers = []
    for entry in json.loads(text).get("Layers", []):
        if isinstance(entry, str):  # names alone: it was built with another verbosity
            layers.append(EngineLayer(entry, "", "other", ()))
            continue
        types = [
            str(tensor.get("Datatype") or tensor.get("DataType") or tensor.get("Format/Datatype") or "")
            for tensor in entry.get("Inputs") or entry.get("Outputs") or []
        ]
        layers.append(
            _layer(str(entry.get("Name", "")), str(entry.get("LayerType", "")), types, str(entry.get("Metadata", "")))
        )
    return layers


def _layer(name: str, kind: str, types: Iterable[str], metadata: str) -> EngineLayer:
    text = " ".join(types)  # the lowest counts: a product of INT8 operands reads INT8 alone
    precision = next((precision for precision, pattern in _PRECISIONS if pattern.search(text)), "other")
    return EngineLayer(name, kind, precision, tuple(_ONNX_LAYER.findall(metadata)))


def count_precisions(layers: Iterable[EngineLayer]) -> dict[str, int]:
    """Layers by the lowest precision that they read; such as {"int8": 206, "fp16": 61, "fp32": 12}."""
    return dict(Counter(layer.precision for layer in layers if layer.is_kernel))


def product_precisions(layers: Iterable[EngineLayer]) -> dict[str, str]:
    """The precision that each convolution and matrix product of the graph is computed in, by its ONNX name.

    A fused engine layer computes several. If other layers name a product too, such as the one that adds its bias, the
    layer that is a product itself counts.
    """
    ranks = {precision: rank for rank, (precision, _) in enumerate(_PRECISIONS)}
    best: dict[str, tuple[bool, int, str]] = {}
    for layer in layers:
        other = not _COMPUTES_PRODUCTS.search(f"{layer.kind} {layer.name}")
        for name in layer.onnx:
            if product_type(name):
                candidate = (other, ranks.get(layer.precision, len(ranks)), layer.precision)
                best[name] = min(best.get(name, candidate), candidate)
    return {name: precision for name, (_, _, precision) in best.items()}


def count_products(layers: Iterable[EngineLayer]) -> dict[str, dict[str, int]]:
    """The graph's products by kind and precision: {"Conv": {"int8": 6, "fp16": 1}, "MatMul": {...}}."""
    counts: dict[str, Counter[str]] = {}
    for name, precision in product_precisions(layers).items():
        counts.setdefault(str(product_type(name)), Counter())[precision] += 1
    return {kind: dict(counter) for kind, counter in sorted(counts.items())}
