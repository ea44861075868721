"""From a rewritten module to an ONNX graph: exported by torch.onnx, cleaned, and named after the module tree."""

from __future__ import annotations

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxscript.optimizer
import onnxscript.rewriter
import torch
from onnxscript.rewriter.rules.common import transpose_transpose_rule, unsqueeze_unsqueeze_rule
from torch import Tensor, nn

from ..errors import ExportError
from .edits import constant

OPSET = 20

# Those of onnxscript's rules that find something; to try all at every node is a tenth and more of an export's time.
_RULES = (transpose_transpose_rule, unsqueeze_unsqueeze_rule)
_SCOPES = "pkg.torch.onnx.name_scopes"


def export_graph(
    module: nn.Module,
    inputs: dict[str, Tensor],
    outputs: tuple[str, ...],
    *,
    dynamic_batch: bool = False,
    opset: int = OPSET,
) -> ir.Model:
    """The ONNX graph of `module` at the sizes of `inputs`; with `dynamic_batch` their first axis may be any size.

    Weights are shared with the module, not copied. Raises ExportError if the graph would need shapes at run time.
    """
    batch = torch.export.Dim("batch", min=1, max=1024)
    with _quiet():
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            verbose=False,
            optimize=False,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple({0: batch} for _ in inputs) if dynamic_batch else None,
        )
        assert program is not None
        model = program.model
        onnxscript.optimizer.fold_constants(model, onnx_shape_inference=True)  # which finds the shapes as well
        onnxscript.rewriter.rewrite(model, _RULES)
    _constant_reshapes(model)
    simplify(model)
    _refuse_dynamic(model)
    _name_nodes(model)
    return model


def simplify(model: ir.Model) -> None:
    """Folds constants and merges common subexpressions until neither finds anything; in place."""
    while True:
        before = model.graph.num_nodes()
        with _quiet():
            onnxscript.optimizer.fold_constants(
                model, onnx_shape_inference=True, input_size_limit=1 << 24, output_size_limit=1 << 24
            )
            passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
            passes.CommonSubexpressionEliminationPass()(model)
            passes.DeduplicateHashedInitializersPass()(model)
            passes.RemoveUnusedNodesPass()(model)
        if model.graph.num_nodes() == before:
            return


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx and onnxscript log and warn about their own internals; their errors still surface."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _constant_reshapes(model: ir.Model) -> None:
    """Replaces each computed shape of a Reshape by a constant: its static sizes, and -1 for the batch."""
    for node in model.graph:
        if node.op_type != "Reshape" or node.inputs[1] is None or node.inputs[1].const_value is not None:
            continue
        shape = node.outputs[0].shape
        sizes = [dim if isinstance(dim, int) else -1 for dim in shape] if shape is not None else []
        if not sizes or sizes.count(-1) > 1:
            raise ExportError(f"internal: {node.name} reshapes to {shape}, which no constant can express")
        node.replace_input_with(1, constant(model.graph, f"{node.name}_shape", np.array(sizes, np.int64)))


def _refuse_dynamic(model: ir.Model) -> None:
    forbidden = {"Shape", "Size", "NonZero", "Loop", "If", "Scan", "ScatterND", "ScatterElements", "Expand", "Range"}
    for node in model.graph:
        if node.op_type in forbidden:
            raise ExportError(f"internal: the graph has a {node.op_type} ({node.name}), whose shape is not static")


def _name_nodes(model: ir.Model) -> None:
    """Names each node, and its output, after the module it comes from: `stage2.block5.attn.qkv/MatMul`."""
    taken: Counter[str] = Counter()
    outputs = set(model.graph.outputs)
    for node in model.graph:
        base = f"{_place(node) or 'graph'}/{node.op_type}"
        taken[base] += 1
        node.name = base if taken[base] == 1 else f"{base}_{taken[base]}"
        node.metadata_props.clear()
        node.doc_string = None
        for i, output in enumerate(node.outputs):
            if output not in outputs:
                output.name = node.name if i == 0 else f"{node.name}:{i}"
            output.metadata_props.clear()


def _place(node: ir.Node) -> str:
    """The module that a node comes from, such as `stage2.block5.attn.qkv`; empty for the model itself."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    if scopes:
        # The last scope is the operation itself, the one before it the innermost module.
        return scopes[-2] if len(scopes) >= 2 else ""
    # A node that the optimizer made, a Split: it belongs where all its readers do.
    readers = [_place(reader).split(".") for output in node.outputs for reader, _ in output.uses()]
    common = takewhile(lambda parts: len(set(parts)) == 1, zip(*readers, strict=False))
    return ".".join(parts[0] for parts in common)
