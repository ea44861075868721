"""What quantisation and FP16 do to a graph, against the same arithmetic in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from lavt_edge.calibration.half import MAX_HALF, emulate_half, find_islands, to_half
from lavt_edge.calibration.products import find_products, int8_macs
from lavt_edge.calibration.qdq import convolution_outputs, operands, quantize_products
from lavt_edge.calibration.smoothing import ChannelStatistics, choose_strength, factors, find_pairs, smooth, weight_of
from lavt_edge.export.macs import count_macs
from lavt_edge.runtime.backend import create_session
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)


def build(nodes: list[onnx.NodeProto], shape: list[int], outputs: dict[str, list[int]], **constants: Array) -> ir.Model:
    """A FP32 graph of one input `x` with its types inferred."""
    floats = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in outputs.items()}
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], list(floats.values()), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))


def run(model: ir.Model, x: Array, output: str = "y") -> Array:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return np.asarray(create_session(proto.SerializeToString()).run([output], {"x": x})[0])


def linear(weight: Array, name: str = "stage0.block0.attn.qkv") -> ir.Model:
    node = helper.make_node("MatMul", ["x", "w"], ["m"], name=f"{name}/MatMul")
    add = helper.make_node("Add", ["m", "b"], ["y"], name=f"{name}/Add")
    bias = np.ones(weight.shape[1], np.float32)
    return build([node, add], [4, weight.shape[0]], {"y": [4, weight.shape[1]]}, w=weight, b=bias)


def convolution(weight: Array) -> ir.Model:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="decoder.level0.conv/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="decoder.level0/Relu_2"),
        helper.make_node("ReduceSum", ["r", "axes"], ["y"], name="sum", keepdims=1),
    ]
    channels = len(weight)
    return build(
        nodes,
        [1, weight.shape[1], 6, 6],
        {"y": [1, 1, 6, 6]},
        w=weight,
        b=np.linspace(-1, 1, channels).astype(np.float32),
        axes=np.array([1]),
    )


def rounded(x: Array, scale: Array | float, zero: int = 0, low: int = -128, high: int = 127) -> Array:
    return (np.rint(np.asarray(x, np.float64) / scale + zero).clip(low, high) - zero) * scale


class TestQuantisation:
    def test_a_product_is_that_of_the_rounded_operands(self) -> None:
        weight, x = RNG.normal(size=(16, 5)).astype(np.float32), RNG.normal(size=(4, 16)).astype(np.float32)
        weight[:, 2] *= 50  # per channel: the others keep their steps
        model = linear(weight)
        quantize_products(model, ["stage0.block0.attn.qkv/MatMul"], {"x": (-2.0, 1.0)})
        expected = rounded(x, 2 / 127) @ rounded(weight, np.abs(weight).max(axis=0) / 127) + 1
        np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-5)

    def test_a_convolution_has_a_scale_for_each_output_channel(self) -> None:
        weight = (
            RNG.normal(size=(3, 2, 3, 3)).astype(np.float32) * np.array([1, 30, 0.1], np.float32)[:, None, None, None]
        )
        x = RNG.normal(size=(1, 2, 6, 6)).astype(np.float32)
        model = convolution(weight)
        quantize_products(model, ["decoder.level0.conv/Conv"], {"x": (-3.0, 3.0)})
        scale = (np.abs(weight).max(axis=(1, 2, 3)) / 127)[:, None, None, None]
        plain = convolution(rounded(weight, scale).astype(np.float32))
        np.testing.assert_allclose(run(model, x), run(plain, rounded(x, 3 / 127).astype(np.float32)), atol=2e-4)

    def test_zero_points_are_zero_and_biases_stay(self) -> None:
        model = linear(RNG.normal(size=(16, 5)).astype(np.float32))
        quantize_products(model, ["stage0.block0.attn.qkv/MatMul"], {"x": (-2.0, 1.0)})
        zeros = [value for name, value in model.graph.initializers.items() if name.endswith(".zero")]
        assert len(zeros) == 2
        for value in zeros:
            assert value.dtype == ir.DataType.INT8
            assert not value.const_value.numpy().any()
        add = next(node for node in model.graph if node.op_type == "Add")
        assert "b" in [value.name for value in add.inputs]

    def test_scales_for_fp16_are_its_numbers_and_saturate_nothing(self) -> None:
        weight = RNG.normal(size=(64, 300)).astype(np.float32)
        model = linear(weight)
        quantize_products(model, ["stage0.block0.attn.qkv/MatMul"], {"x": (-0.7, 0.3)}, half=True)
        scale = model.graph.initializers["w.scale"].const_value.numpy()
        assert np.array_equal(scale, scale.astype(np.float16).astype(np.float32))
        assert (scale * 127 >= np.abs(weight).max(axis=0)).all()
        assert (scale <= np.abs(weight).max(axis=0) / 127 * (1 + 2**-10)).all()

    @pytest.mark.parametrize("half", [False, True])
    def test_for_fp16_a_product_that_is_only_moved_has_one_scale_and_puts_out_int8(self, half: bool) -> None:
        weight, x = RNG.normal(size=(16, 6)).astype(np.float32), RNG.normal(size=(4, 16)).astype(np.float32)
        weight[:, 2] *= 50
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="decoder.level0.upsampled.taps/MatMul"),
            helper.make_node("Reshape", ["m", "sizes"], ["r"], name="moved"),
            helper.make_node("Mul", ["r", "two"], ["y"], name="read"),
        ]
        model = build(nodes, [4, 16], {"y": [8, 3]}, w=weight, sizes=np.array([8, 3]), two=np.array(2, np.float32))
        quantize_products(
            model, ["decoder.level0.upsampled.taps/MatMul"], {"x": (-2.0, 1.0), "m": (-200.0, 250.0)}, half=half
        )
        found = model.graph.initializers["w.scale"].const_value.numpy()
        assert (found.ndim, "m.scale" in model.graph.initializers) == ((0, True) if half else (1, False))
        product = rounded(x, model.graph.initializers["x.scale"].const_value.numpy()) @ rounded(weight, found)
        if half:
            scale = float(model.graph.initializers["m.scale"].const_value.numpy())
            assert 250 / 127 <= scale <= 250 / 127 * (1 + 2**-10)
            product = rounded(product, scale)
        np.testing.assert_allclose(run(model, x), 2 * product.reshape(8, 3), rtol=1e-5, atol=1e-4)

    def test_unsigned_uses_the_range_as_it_is_and_quantises_what_convolutions_put_out(self) -> None:
        weight = RNG.normal(size=(3, 2, 3, 3)).astype(np.float32)
        model = convolution(weight)
        (output,) = convolution_outputs(model, ["decoder.level0.conv/Conv"]).values()
        assert output.name == "r"  # behind the Relu
        quantize_products(model, ["decoder.level0.conv/Conv"], {"x": (-1.0, 4.0), "r": (0.0, 14.0)}, unsigned=True)
        assert [node.op_type for node in model.graph].count("QuantizeLinear") == 2
        scale, zero = (model.graph.initializers[f"x.{n}"].const_value.numpy() for n in ("scale", "zero"))
        assert (float(scale), int(zero), zero.dtype) == (pytest.approx(5 / 255), 51, np.uint8)
        assert int(model.graph.initializers["r.zero"].const_value.numpy()) == 0
        x = RNG.normal(size=(1, 2, 6, 6)).astype(np.float32)
        exact = run(convolution(weight), x.clip(-1, 4))
        assert np.abs(run(model, x) - exact).max() < 0.02 * exact.max()

    def test_unsigned_products_have_int32_biases_in_steps_of_the_product(self) -> None:
        weight, x = RNG.normal(size=(16, 5)).astype(np.float32), RNG.normal(size=(4, 16)).astype(np.float32)
        model = linear(weight)
        quantize_products(model, ["stage0.block0.attn.qkv/MatMul"], {"x": (-3.0, 4.0)}, unsigned=True)
        name = "stage0.block0.attn.qkv/MatMul.bias"
        bias, step = (model.graph.initializers[f"{name}.{n}"].const_value.numpy() for n in ("int32", "scale"))
        assert bias.dtype == np.int32
        np.testing.assert_allclose(step, np.abs(weight).max(axis=0) / 127 * 7 / 255, rtol=1e-5)
        np.testing.assert_allclose(bias * step, 1, rtol=1e-3)
        scale, zero = 7 / 255, round(3 * 255 / 7)
        product = rounded(x, scale, zero, 0, 255) @ rounded(weight, np.abs(weight).max(axis=0) / 127)
        np.testing.assert_allclose(run(model, x), product + bias * step, rtol=1e-4, atol=1e-4)
        symmetric = linear(weight)
        quantize_products(symmetric, ["stage0.block0.attn.qkv/MatMul"], {"x": (-3.0, 4.0)})
        assert f"{name}.int32" not in symmetric.graph.initializers

    def test_products_of_large_numbers_do_not_saturate(self) -> None:
        """Without VNNI, x86-64 adds pairs of uint8 x int8 in 16 bits, which two of the largest overflow."""
        weight, x = np.ones((16, 5), np.float32), np.full((4, 16), 9, np.float32)
        model = linear(weight)
        quantize_products(model, ["stage0.block0.attn.qkv/MatMul"], {"x": (0.0, 9.0)}, unsigned=True)
        np.testing.assert_allclose(run(model, x), 16 * 9 + 1, rtol=1e-4)
        settings = create_session(ir.to_proto(model).SerializeToString()).get_session_options()
        assert settings.get_session_config_entry("session.x64quantprecision") == "1"

    def test_a_channel_of_zeros_stays_zero(self) -> None:
        weight = RNG.normal(size=(16, 5)).astype(np.float32)
        weight[:, 1] = 0
        model = linear(weight)
        quantize_products(model, ["stage0.block0.attn.qkv/MatMul"], {"x": (0.0, 0.0)})
        assert (run(model, np.zeros((4, 16), np.float32)) == 1).all()

    def test_macs_count_as_int8_only_with_both_operands_dequantised(self) -> None:
        model = linear(np.ones((16, 5), np.float32))
        macs = count_macs(ir.to_proto(model))
        assert int8_macs(model, macs) == 0
        assert [one.group for one in find_products(model, macs)] == ["stage0.attn.qkv"]
        assert operands(model, ["stage0.block0.attn.qkv/MatMul"]) == ["x"]
        quantize_products(model, ["stage0.block0.attn.qkv/MatMul"], {"x": (-2.0, 1.0)})
        assert int8_macs(model, macs) == 4 * 16 * 5
        product = next(node for node in model.graph if node.op_type == "MatMul")
        product.replace_input_with(0, model.graph.inputs[0])
        assert int8_macs(model, macs) == 0


def overflowing(factor: float) -> ir.Model:
    """y = ((x w1) w2) with w1 scaled up and w2 scaled down by a factor: the same function for each."""
    rng = np.random.default_rng(1)
    first, second = (rng.normal(size=(8, 8)).astype(np.float32) for _ in range(2))
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first/MatMul"),
        helper.make_node("Relu", ["a"], ["r"], name="between/Relu"),
        helper.make_node("Transpose", ["r"], ["t"], name="between/Transpose", perm=[0, 1]),
        helper.make_node("MatMul", ["t", "w2"], ["m"], name="second/MatMul"),
        helper.make_node("Tanh", ["m"], ["y"], name="last/Tanh"),
    ]
    return build(nodes, [4, 8], {"y": [4, 8]}, w1=first * np.float32(factor), w2=second / np.float32(16 * factor))


class TestHalf:
    x = 16 * np.random.default_rng(2).normal(size=(4, 8)).astype(np.float32)

    def test_all_is_fp16_where_nothing_speaks_against_it(self) -> None:
        model = overflowing(1.0)
        assert find_islands(model, {"a": (-9.0, 9.0), "r": (0.0, 9.0), "m": (-9.0, 9.0)}) == {}
        to_half(model, {})
        assert all(
            value.dtype == ir.DataType.FLOAT16
            for node in model.graph
            for value in node.outputs
            if node.name != "y/Cast.fp32"
        )
        assert [value.dtype for value in (*model.graph.inputs, *model.graph.outputs)] == [ir.DataType.FLOAT] * 2
        assert np.abs(run(model, self.x) - run(overflowing(1.0), self.x)).max() < 0.01

    def test_an_overflow_shows_in_the_emulation_though_the_runtime_hides_it(self) -> None:
        model = overflowing(2.0**11)
        to_half(model, {})
        truth = run(overflowing(2.0**11), self.x)
        assert np.abs(run(model, self.x) - truth).max() < 0.01  # ONNX Runtime on a CPU computes in FP32
        emulate_half(model)
        assert not np.abs(run(model, self.x) - truth).max() < 0.5

    def test_islands_by_range_make_it_right(self) -> None:
        model = overflowing(2.0**11)
        truth = run(model, self.x)
        ranges = {"a": (-2e5, 3e5), "r": (0.0, 3e5), "m": (-9.0, 9.0)}
        islands = find_islands(model, ranges)
        assert islands.keys() == {"first/MatMul", "between/Relu", "second/MatMul"}
        assert "a reaches 3e+05" in islands["first/MatMul"]
        to_half(model, islands)
        emulate_half(model)
        assert np.abs(run(model, self.x) - truth).max() < 0.01

    def test_the_headroom_is_a_factor_of_8(self) -> None:
        model = overflowing(1.0)
        assert "first/MatMul" in find_islands(model, {"a": (-MAX_HALF / 8, 0.0)})
        assert find_islands(model, {"a": (-MAX_HALF / 8.01, 0.0)}) == {}

    def test_a_word_bias_needs_no_headroom_and_scores_below_it_do(self) -> None:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="scores/MatMul"),
            helper.make_node("Mul", ["x", "large"], ["b"], name="bias/Mul"),
            helper.make_node("Unsqueeze", ["b", "axis"], ["u"], name="bias/Unsqueeze"),
            helper.make_node("Add", ["m", "u"], ["a"], name="scores/Add"),
            helper.make_node("Softmax", ["a"], ["y"], name="scores/Softmax"),
        ]
        weight, large, axis = np.ones((8, 8), np.float32), np.float32(1e4), np.array([0])
        model = build(nodes, [4, 8], {"y": [1, 4, 8]}, w=weight, large=large, axis=axis)
        ranges = {"b": (-1e4, 0.0), "a": (-1e4, 9.0)}
        assert find_islands(model, {**ranges, "m": (-9.0, 9.0)}).keys() == {"bias/Mul"}
        assert find_islands(model, {**ranges, "m": (-9e3, 9.0)}).keys() >= {"scores/MatMul", "scores/Softmax"}

    @pytest.mark.parametrize("shared", [True, False])
    def test_a_norm_of_a_norm_reads_what_is_stored_in_16_bits_anyway(self, shared: bool) -> None:
        nodes = [
            helper.make_node("LayerNormalization", ["x", "w", "b"], ["n"], name="first/LayerNormalization"),
            helper.make_node("LayerNormalization", ["n", "w", "b"], ["m"], name="second/LayerNormalization"),
            helper.make_node("Add", ["n" if shared else "m", "m"], ["y"], name="block/Add"),
        ]
        model = build(nodes, [4, 8], {"y": [4, 8]}, w=np.full(8, 3, np.float32), b=np.ones(8, np.float32))
        to_half(model, find_islands(model, {}))
        named = {node.name: node for node in model.graph}
        source = named["second/LayerNormalization"].inputs[0]
        assert source.dtype == ir.DataType.FLOAT
        stored = source.producer().inputs[0]
        assert (stored is named["block/Add"].inputs[0]) == shared
        assert (stored.dtype == ir.DataType.FLOAT16) == shared
        assert sum(node.op_type == "Cast" and node.inputs[0].name == "n" for node in model.graph) == shared

    def test_an_island_reads_what_is_stored_in_16_bits_and_constants_as_they_are(self) -> None:
        """What cancels between the scores of queries and of their mean must be of the same keys."""
        nodes = [
            helper.make_node("Mul", ["x", "w"], ["k"], name="stage0.pwam.query_norm/Mul"),
            helper.make_node("MatMul", ["x", "k"], ["m"], name="stage0.pwam.query_norm/MatMul"),
            helper.make_node("MatMul", ["x", "k"], ["s"], name="stage0.pwam/MatMul"),
            helper.make_node("Mul", ["s", "w"], ["t"], name="stage0.pwam/Mul"),
            helper.make_node("Sub", ["t", "m"], ["y"], name="stage0.pwam/Sub"),
        ]
        model = build(nodes, [8, 8], {"y": [8, 8]}, w=np.full(8, 1.0001, np.float32))
        to_half(model, find_islands(model, {}))
        named = {node.name: node for node in model.graph}
        back = named["stage0.pwam.query_norm/MatMul"].inputs[1]
        assert back.dtype == ir.DataType.FLOAT
        assert back.producer().inputs[0] is named["stage0.pwam/MatMul"].inputs[1]
        weight = named["stage0.pwam.query_norm/Mul"].inputs[1].const_value.numpy()
        assert (weight == np.float32(1.0001)).all()  # FP16 has 1.0

    def test_a_norm_that_is_no_island_has_one_type(self) -> None:
        node = helper.make_node("LayerNormalization", ["x", "w", "b"], ["n"], name="norm")
        last = helper.make_node("LayerNormalization", ["n", "w", "b"], ["y"], name="last")
        model = build([node, last], [4, 8], {"y": [4, 8]}, w=np.full(8, 3, np.float32), b=np.ones(8, np.float32))
        to_half(model, {})
        for norm in (node for node in model.graph if node.op_type == "LayerNormalization"):
            assert {value.dtype for value in (*norm.inputs, *norm.outputs)} == {ir.DataType.FLOAT16}

    @pytest.mark.filterwarnings("ignore:overflow encountered in cast")
    def test_tensors_and_weights_too_small_for_fp16_stay_fp32(self) -> None:
        tiny = overflowing(2.0**-20)
        islands = find_islands(tiny, {"a": (-1e-6, 2e-6), "r": (0.0, 2e-6), "m": (-9.0, 9.0)})
        assert islands.keys() == {"first/MatMul", "between/Relu", "second/MatMul"}
        truth = run(tiny, self.x)
        lost = overflowing(2.0**-20)
        for model, kept, fits in ((tiny, islands, True), (lost, {}, False)):
            to_half(model, kept)
            emulate_half(model)
            assert (np.abs(run(model, self.x) - truth).max() < 0.01) == fits

    def test_the_emulation_rounds_every_tensor_once(self) -> None:
        model = linear(RNG.normal(size=(16, 5)).astype(np.float32))
        weight = model.graph.initializers["w"].const_value.numpy().astype(np.float16).astype(np.float64)
        x = RNG.normal(size=(4, 16)).astype(np.float32)
        to_half(model, {})
        emulate_half(model)
        product = (x.astype(np.float16).astype(np.float64) @ weight).astype(np.float32).astype(np.float16)
        expected = (product.astype(np.float32) + 1).astype(np.float16).astype(np.float32)
        assert np.abs(run(model, x) - expected).max() <= np.spacing(np.float16(np.abs(expected).max()))
        assert np.mean(run(model, x) == expected) > 0.9


def normed(weight: Array, gamma: Array) -> ir.Model:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"], name="stage0.block0.norm1/LayerNormalization"),
        helper.make_node("Pad", ["n", "pads"], ["p"], name="stage0.block0.attn/Pad"),
        helper.make_node("MatMul", ["p", "w"], ["y"], name="stage0.block0.attn.qkv/MatMul"),
    ]
    return build(
        nodes,
        [1, 7, 12],
        {"y": [1, 8, 5]},
        g=gamma,
        b=gamma / 3,
        pads=np.array([0, 0, 0, 0, 1, 0]),
        w=weight,
    )


class TestSmoothing:
    gamma = np.array([60, *([1] * 10), 0.01], np.float32)
    weight = np.random.default_rng(3).normal(size=(12, 5)).astype(np.float32)
    x = np.random.default_rng(4).normal(size=(1, 7, 12)).astype(np.float32)

    def statistics(self) -> ChannelStatistics:
        model = normed(self.weight, self.gamma)
        model.graph.outputs.append(next(node for node in model.graph if node.op_type == "Pad").outputs[0])
        values = run(model, self.x, "p").reshape(-1, 12).astype(np.float64)
        return ChannelStatistics(np.abs(values).max(axis=0), (values**2).mean(axis=0))

    def test_the_function_stays_and_the_ranges_move(self) -> None:
        model, plain = (normed(self.weight, self.gamma) for _ in range(2))
        (pair,) = find_pairs(model, {"stage0.block0.attn.qkv/MatMul"})
        assert (pair.norm, pair.product) == ("stage0.block0.norm1/LayerNormalization", "stage0.block0.attn.qkv/MatMul")
        statistics = self.statistics()
        factor = factors(statistics, weight_of(model, pair.product), 0.5)
        smooth(model, {pair: factor})
        np.testing.assert_allclose(run(model, self.x), run(plain, self.x), rtol=1e-4, atol=1e-4)
        before, after = statistics.amax, statistics.amax / factor
        assert after.max() / np.median(after) < before.max() / np.median(before) / 4

    def test_the_chosen_strength_lowers_the_error_of_the_int8_product(self) -> None:
        statistics = self.statistics()
        strength = choose_strength(statistics, self.weight.astype(np.float64))
        assert strength is not None
        errors = []
        for chosen in (None, strength):
            model = normed(self.weight, self.gamma)
            (pair,) = find_pairs(model, {"stage0.block0.attn.qkv/MatMul"})
            factor = np.ones(12) if chosen is None else factors(statistics, weight_of(model, pair.product), chosen)
            smooth(model, {pair: factor})
            bound = float((statistics.amax / factor).max())
            quantize_products(model, [pair.product], {"p": (-bound, bound)})
            errors.append(np.linalg.norm(run(model, self.x) - run(normed(self.weight, self.gamma), self.x)))
        assert errors[1] < errors[0] / 2

    def test_even_channels_are_left_as_they_are(self) -> None:
        even = ChannelStatistics(np.ones(12), np.full(12, 0.3))
        assert choose_strength(even, np.ones((12, 5))) is None

    def test_a_norm_with_a_second_reader_is_no_pair(self) -> None:
        model = normed(self.weight, self.gamma)
        norm = next(node for node in model.graph if node.op_type == "LayerNormalization")
        model.graph.append(ir.node("Relu", [norm.outputs[0]], name="other"))
        assert find_pairs(model, {"stage0.block0.attn.qkv/MatMul"}) == []
