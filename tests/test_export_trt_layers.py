"""What TensorRT says of an engine's layers, in its log and by its inspector: precisions and products."""

from __future__ import annotations

import json

import pytest
from lavt_edge.export.engines.layers import (
    count_precisions,
    count_products,
    layers_from_inspector,
    layers_from_log,
    product_precisions,
)


def line(name: str, kind: str, inputs: str, outputs: str, onnx: str) -> str:
    """A layer as TensorRT for RTX 1.7 logs it; types and ONNX nodes are words."""

    def tensors(types: str) -> str:
        parts = [
            f"{{ Name: t{i}, Dimensions: [-1,24], Strides: [24,1], StrideOrder: [1,0], Datatype: {one}, "
            "Format: (Linear) Row major linear format }"
            for i, one in enumerate(types.split())
        ]
        return "[" + "".join(f" {part}," for part in parts).rstrip(",") + "]"

    return (
        f"Name: {name}, LayerType: {kind}, Inputs: {tensors(inputs)}, Constants: {tensors('Float Half')}, "
        f"Outputs: {tensors(outputs)}, TacticName: __myelin_CASK_STUB, StreamId: 0, "
        f"Metadata: {''.join(f'[ONNX Layer: {one}]' for one in onnx.split())}"
    )


LOG = "\n".join(
    (
        "Layers:",
        line(
            "stage0.qkv/MatMul_U487_myl0_4",
            "gemm",
            "Int8",
            "Half",
            "stage0.qkv/MatMul stage0.qkv.weight/DequantizeLinear",
        ),
        line("_gemm_mha_v2_myl0_53", "kgen", "Int8 Int8", "Int8", "stage1.attn/MatMul stage1.attn/MatMul_2"),
        line("decoder.skip/Conv_U13_myl0_232", "correlation", "Half", "Half", "decoder.skip/Conv"),
        line("__myl_AddReluRounCast_myl0_233", "kgen", "Int8 Half", "Int8", "decoder.skip/Conv decoder/Relu"),
        line("__mye294017_myl0_254", "signal", "", "", ""),
        "",
        "I/O Tensors:",
        " Name: image, IOMode: Input, DataType: UInt8, Dimensions: [-1,240,240,3], Location: Device",
    )
)


def test_the_layer_report_in_the_log_is_read() -> None:
    layers = layers_from_log(LOG)
    assert [layer.kind for layer in layers] == ["gemm", "kgen", "correlation", "kgen", "signal"]
    assert count_precisions(layers) == {"int8": 3, "fp16": 1}
    assert product_precisions(layers) == {
        "stage0.qkv/MatMul": "int8",
        "stage1.attn/MatMul": "int8",
        "stage1.attn/MatMul_2": "int8",
        "decoder.skip/Conv": "fp16",  # the layer that only adds to it reads INT8
    }
    assert count_products(layers) == {"Conv": {"fp16": 1}, "MatMul": {"int8": 3}}


def inspector(key: str, conv: str, gemm: str) -> str:
    """The inspector's JSON with types under `key`."""
    return json.dumps(
        {
            "Layers": [
                {
                    "Name": "decoder.skip/Conv",
                    "LayerType": "CaskConvolution",
                    "Inputs": [{"Name": "x", "Dimensions": [1, 96, 15, 15], key: conv}],
                    "Outputs": [{"Name": "y", "Dimensions": [1, 96, 15, 15], key: gemm}],
                    "Metadata": "[ONNX Layer: decoder.skip/Conv]",
                },
                {
                    "Name": "mlp.fc1/MatMul",
                    "LayerType": "gemm",
                    "Inputs": [{"Name": "y", "Dimensions": [225, 96], key: gemm}],
                    "Outputs": [{"Name": "z", "Dimensions": [225, 96], key: gemm}],
                    "Metadata": "[ONNX Layer: mlp.fc1/MatMul]",
                },
                {"Name": "n", "LayerType": "NoOp", "Inputs": [{"Name": "z", key: gemm}], "Outputs": []},
            ]
        }
    )


@pytest.mark.parametrize(
    "text",
    [
        inspector(
            "Format/Datatype",
            "Thirty-two wide channel vectorized row major Int8 format",
            "Row major linear FP16 format",
        ),
        inspector("Datatype", "Int8", "Half"),
    ],
    ids=["TensorRT 10", "TensorRT 11"],
)
def test_the_inspectors_report_is_read(text: str) -> None:
    layers = layers_from_inspector(text)
    assert count_precisions(layers) == {"int8": 1, "fp16": 1}
    assert count_products(layers) == {"Conv": {"int8": 1}, "MatMul": {"fp16": 1}}


def test_a_report_of_names_alone_has_no_precisions() -> None:
    assert count_precisions(layers_from_inspector('{"Layers": ["a", "b"]}')) == {"other": 2}
