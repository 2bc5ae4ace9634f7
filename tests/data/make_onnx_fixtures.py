#!/usr/bin/env python3
"""Writes operators.npz, training.npz and layers.npz to tests/data/onnx, and the seeds of the ONNX fuzzer.

operators.npz: one small ONNX model a case, with inputs and the outputs that ONNX Runtime computes (float32).
training.npz:  small networks exported by PyTorch in training mode, with the outputs, and the running statistics after one
               forward pass, that PyTorch computes in float64.
layers.npz:    layers with torch.nn.utils.spectral_norm in float64: weights before, and results and gradients of two passes.
Arrays are named "<case>/model" (the file's bytes), "<case>/in/<name>", "<case>/out/<name>" and "<case>/state/<name>".

Needs numpy, onnx, onnxruntime, torch and onnxscript. Usage: make_onnx_fixtures.py [tests/data/onnx] [tests/fuzz/corpus/onnx]
"""

import io
import pathlib
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).resolve().parent
random = np.random.default_rng(20)
arrays = {}


def normal(*shape):
    return random.standard_normal(shape).astype(np.float32)


def positive(*shape):
    return (random.random(shape) + 0.5).astype(np.float32)


def model_of(nodes, inputs, outputs, weights, opset):
    """inputs: name -> array or (array, declared dims); the first declared dimension may be a string."""
    declared = []
    for name, value in inputs.items():
        kind = TensorProto.INT64 if value.dtype == np.int64 else TensorProto.FLOAT
        declared.append(helper.make_tensor_value_info(name, kind, ["batch", *value.shape[1:]]))
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "graph", declared, made, constants)
    # Files of IR version 8 and before can be read by every runtime of the last years.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10 if opset > 19 else 8)


def save_case(name, model, inputs, outputs):
    assert f"{name}/model" not in arrays, name
    arrays[f"{name}/model"] = np.frombuffer(model.SerializeToString(), np.uint8)
    for key, value in inputs.items():
        arrays[f"{name}/in/{key}"] = value
    for key, value in outputs.items():
        arrays[f"{name}/out/{key}"] = value


def run_onnxruntime(model, inputs, outputs):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(list(outputs), inputs)))


def case(name, nodes, inputs, weights=None, outputs=("y",), opset=17, expected=None):
    model = model_of(nodes, inputs, outputs, weights or {}, opset)
    save_case(name, model, inputs, expected or run_onnxruntime(model, inputs, outputs))


def op(kind, inputs="x", outputs="y", **attributes):
    return helper.make_node(kind, inputs.split(" ") if inputs else [], outputs.split(" "), name=f"{kind} to {outputs}", **attributes)


def ints(*values):
    return np.array(values, np.int64)


def floats(*values):
    return np.array(values, np.float32)


def elementwise():
    x, y = normal(2, 3, 4), positive(2, 3, 4)
    for kind in ["Neg", "Abs", "Exp", "Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Elu", "Selu", "HardSigmoid", "Erf",
                 "Celu", "HardSwish", "ThresholdedRelu", "Sign"]:
        case(f"elementwise_{kind}", [op(kind)], {"x": x})
    for kind in ["Sqrt", "Log", "Reciprocal"]:
        case(f"elementwise_{kind}", [op(kind)], {"x": y})
    case("elementwise_Mish", [op("Mish")], {"x": x}, opset=18)
    case("elementwise_gelu", [op("Gelu")], {"x": x}, opset=20)
    case("elementwise_gelu_tanh", [op("Gelu", approximate="tanh")], {"x": x}, opset=20)
    case("elementwise_rsqrt", [op("Sqrt", "x", "s"), op("Reciprocal", "s", "y")], {"x": y})
    case("elementwise_elu_alpha", [op("Elu", alpha=0.5)], {"x": x})
    case("elementwise_leaky", [op("LeakyRelu", alpha=0.2)], {"x": x})
    case("elementwise_leaky_negative", [op("LeakyRelu", alpha=-0.3)], {"x": x})
    case("elementwise_prelu", [op("PRelu", "x slope")], {"x": x}, {"slope": normal(3, 1)})
    case("elementwise_prelu_shared", [op("PRelu", "x slope")], {"x": x}, {"slope": floats(0.25)})
    case("elementwise_clip_attributes", [op("Clip", min=-0.5, max=0.75)], {"x": x}, opset=7)
    case("elementwise_clip_inputs", [op("Clip", "x low high")], {"x": x}, {"low": np.float32(-0.5), "high": np.float32(0.75)})
    case("elementwise_clip_one_side", [op("Clip", "x  high")], {"x": x}, {"high": np.float32(0.25)})
    for kind in ["Add", "Sub", "Mul", "Div"]:
        case(f"elementwise_two_{kind}", [op(kind, "x y_in")], {"x": x, "y_in": y})
        case(f"elementwise_scalar_{kind}", [op(kind, "x c")], {"x": x}, {"c": np.float32(0.3)})
        case(f"elementwise_scalar_first_{kind}", [op(kind, "c x")], {"x": y}, {"c": np.float32(0.3)})
        case(f"elementwise_broadcast_{kind}", [op(kind, "x c")], {"x": x}, {"c": positive(3, 1)})
        case(f"elementwise_widening_{kind}", [op(kind, "x c")], {"x": x}, {"c": np.full((5, 1, 3, 4), 1.5, np.float32)[:, :, :1, :1]})
    for exponent in [2.0, 3.0, 4.0, 0.5, -0.5, -1.0, 1.0, 1.7]:
        case(f"elementwise_pow_{exponent}", [op("Pow", "x e")], {"x": y}, {"e": np.float32(exponent)})
    case("elementwise_pow_two", [op("Pow", "x e")], {"x": y, "e": normal(2, 3, 4)})
    case("elementwise_pow_base", [op("Pow", "b x")], {"x": x}, {"b": np.float32(2.0)})
    for kind in ["Sum", "Mean", "Min", "Max"]:
        case(f"elementwise_variadic_{kind}", [op(kind, "x y_in c")], {"x": x, "y_in": y}, {"c": normal(3, 1)})
    case("elementwise_one_Max", [op("Max", "x")], {"x": x})
    for kind in ["Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal"]:
        nodes = [op(kind, "x y_in", "b"), op("Cast", "b", "y", to=TensorProto.FLOAT)]
        same = x.copy()
        same[:, 1] = y[:, 1]
        case(f"elementwise_{kind}", nodes, {"x": same, "y_in": y}, opset=16)
    nodes = [op("Greater", "x zero", "a"), op("Less", "x y_in", "b"), op("And", "a b", "c"), op("Not", "c", "d"),
             op("Or", "d a", "e"), op("Xor", "e c", "f"), op("Where", "f x y_in", "y")]
    case("elementwise_logic", nodes, {"x": x, "y_in": y}, {"zero": np.float32(0)})
    silu = [op("Sigmoid", "x", "s"), op("Mul", "x s", "y")]
    case("elementwise_silu", silu, {"x": x})
    gelu = [op("Div", "x root", "a"), op("Erf", "a", "b"), op("Add", "b one", "c"), op("Mul", "x c", "d"), op("Mul", "d half", "y")]
    numbers = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    case("elementwise_gelu_parts", gelu, {"x": x}, numbers)
    labels = random.integers(0, 9, (2, 5))
    case("elementwise_cast", [op("Cast", to=TensorProto.FLOAT)], {"x": labels})
    case("elementwise_cast_like", [op("CastLike", "x c")], {"x": labels}, {"c": np.float32(0)})


def softmax_and_reductions():
    x = normal(2, 3, 4)
    for kind in ["Softmax", "LogSoftmax"]:
        case(f"softmax_{kind}_last", [op(kind)], {"x": x})
        case(f"softmax_{kind}_axis", [op(kind, axis=1)], {"x": x})
        case(f"softmax_{kind}_old", [op(kind)], {"x": x}, opset=11)
    for kind in ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"]:
        case(f"reduce_{kind}_all", [op(kind)], {"x": x}, opset=11)
        case(f"reduce_{kind}_attribute", [op(kind, axes=[0, -1], keepdims=0)], {"x": x}, opset=11)
        case(f"reduce_{kind}_input", [op(kind, "x axes", keepdims=0)], {"x": x}, {"axes": ints(-2)}, opset=18)
    case("reduce_ReduceLogSum", [op("ReduceLogSum", axes=[1])], {"x": positive(2, 3, 4)}, opset=11)
    case("reduce_noop", [op("ReduceMean", "x axes", noop_with_empty_axes=1)], {"x": x}, {"axes": ints()}, opset=18)


def products():
    x = normal(4, 6)
    case("gemm_plain", [op("Gemm", "x w")], {"x": x}, {"w": normal(6, 5)})
    case("gemm_full", [op("Gemm", "x w c", alpha=0.5, beta=0.25, transB=1)], {"x": x}, {"w": normal(5, 6), "c": normal(5)})
    case("gemm_scalar_bias", [op("Gemm", "x w c")], {"x": x}, {"w": normal(6, 5), "c": normal(1)})
    case("gemm_trans_a", [op("Gemm", "w x c", transA=1, beta=0.0)], {"x": x}, {"w": normal(4, 5), "c": normal(5, 6)})
    case("matmul_weight", [op("MatMul", "x onnx::MatMul_7")], {"x": normal(2, 3, 6)}, {"onnx::MatMul_7": normal(6, 5)})
    case("matmul_batched", [op("MatMul", "x z")], {"x": normal(2, 3, 6), "z": normal(2, 6, 4)})
    case("matmul_vector_right", [op("MatMul", "x v")], {"x": normal(2, 3, 6)}, {"v": normal(6)})
    case("matmul_vector_left", [op("MatMul", "v x")], {"x": normal(2, 6, 3)}, {"v": normal(6)})
    case("matmul_transposed_weight", [op("Transpose", "0.weight", "w", perm=[1, 0]), op("MatMul", "x w", "y")], {"x": x},
         {"0.weight": normal(5, 6)})


def convolutions():
    x, weight, bias = normal(2, 4, 7, 8), normal(6, 4, 3, 3), normal(6)
    case("conv_plain", [op("Conv", "x w")], {"x": x}, {"w": weight})
    case("conv_bias", [op("Conv", "x w b", pads=[1, 1, 1, 1], strides=[2, 2], kernel_shape=[3, 3])], {"x": x}, {"w": weight, "b": bias})
    case("conv_asymmetric", [op("Conv", "x w b", pads=[0, 1, 2, 1], dilations=[2, 1])], {"x": x}, {"w": weight, "b": bias})
    case("conv_groups", [op("Conv", "x w b", group=2)], {"x": x}, {"w": normal(6, 2, 3, 3), "b": bias})
    case("conv_depthwise", [op("Conv", "x w", group=4, pads=[1, 1, 1, 1])], {"x": x}, {"w": normal(4, 1, 3, 3)})
    for auto in ["SAME_UPPER", "SAME_LOWER", "VALID"]:
        case(f"conv_{auto}", [op("Conv", "x w", auto_pad=auto, strides=[2, 3], kernel_shape=[4, 4])], {"x": x}, {"w": normal(6, 4, 4, 4)})
    case("conv_1d", [op("Conv", "x w b", pads=[1, 1])], {"x": normal(2, 4, 9)}, {"w": normal(6, 4, 3), "b": bias})
    case("conv_3d", [op("Conv", "x w b", strides=[1, 2, 1])], {"x": normal(2, 4, 4, 5, 3)}, {"w": normal(6, 4, 2, 3, 2), "b": bias})

    weight = normal(4, 5, 4, 4)
    deconv = {"x": normal(2, 4, 3, 5)}
    def transposed(name, kernel=weight, **attributes):
        case(f"deconv_{name}", [op("ConvTranspose", "x w b", **attributes)], deconv, {"w": kernel, "b": normal(5)})
    transposed("plain")
    transposed("stride", strides=[2, 2], pads=[1, 1, 1, 1])
    transposed("output_padding", strides=[2, 3], pads=[1, 1, 1, 1], output_padding=[1, 2])
    transposed("asymmetric", strides=[2, 2], pads=[0, 1, 2, 1])
    transposed("dilated", strides=[2, 1], dilations=[1, 2])
    transposed("output_shape", strides=[2, 2], output_shape=[7, 10])
    transposed("output_shape_upper", strides=[2, 2], output_shape=[7, 11], auto_pad="SAME_UPPER")
    transposed("same_upper", strides=[3, 3], auto_pad="SAME_UPPER")
    transposed("same_lower", strides=[3, 3], auto_pad="SAME_LOWER")
    transposed("valid", strides=[2, 2], auto_pad="VALID")
    case("deconv_groups", [op("ConvTranspose", "x w", group=2, strides=[2, 2])], deconv, {"w": normal(4, 3, 2, 2)})
    case("deconv_1d", [op("ConvTranspose", "x w", strides=[2])], {"x": normal(2, 4, 5)}, {"w": normal(4, 3, 4)})


def poolings():
    x = normal(2, 3, 7, 8)
    for kind in ["MaxPool", "AveragePool"]:
        case(f"pool_{kind}", [op(kind, kernel_shape=[2, 2], strides=[2, 2])], {"x": x})
        case(f"pool_{kind}_pads", [op(kind, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], {"x": x})
        case(f"pool_{kind}_ceil", [op(kind, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1)], {"x": x})
        case(f"pool_{kind}_same", [op(kind, kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER")], {"x": x})
        case(f"pool_{kind}_1d", [op(kind, kernel_shape=[3])], {"x": normal(2, 3, 9)})
        case(f"pool_{kind}_dilated", [op(kind, kernel_shape=[2, 2], dilations=[2, 3])], {"x": x}, opset=19)
    case("pool_average_count", [op("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)], {"x": x})
    case("pool_global_average", [op("GlobalAveragePool")], {"x": x})
    case("pool_global_max", [op("GlobalMaxPool")], {"x": x})


def resizes():
    x = normal(2, 3, 4, 5)
    for mode in ["nearest", "linear"]:
        for coordinates in ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]:
            for rounding in ["round_prefer_floor", "floor"] if mode == "nearest" else ["floor"]:
                attributes = dict(mode=mode, coordinate_transformation_mode=coordinates, nearest_mode=rounding)
                name = f"resize_{mode}_{coordinates}_{rounding}"
                case(name, [op("Resize", "x  s", **attributes)], {"x": x}, {"s": floats(1, 1, 2, 2)})
                case(f"{name}_sizes", [op("Resize", "x   s", **attributes)], {"x": x}, {"s": ints(2, 3, 7, 3)})
    nearest = dict(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    case("resize_fraction", [op("Resize", "x  s", **nearest)], {"x": x}, {"s": floats(1, 1, 1.3, 0.7)})
    case("resize_fraction_linear", [op("Resize", "x  s", mode="linear")], {"x": x}, {"s": floats(1, 1, 1.3, 1.7)})
    for rounding in ["ceil", "round_prefer_ceil"]:
        attributes = dict(mode="nearest", nearest_mode=rounding)
        case(f"resize_{rounding}", [op("Resize", "x  s", **attributes)], {"x": x}, {"s": floats(1, 1, 1.5, 2.5)})
    case("resize_axes", [op("Resize", "x  s", mode="linear", axes=[2, 3])], {"x": x}, {"s": floats(2, 3)}, opset=18)
    case("resize_10", [op("Resize", "x s", mode="linear")], {"x": x}, {"s": floats(1, 1, 2, 3)}, opset=10)
    case("resize_1d", [op("Resize", "x  s", mode="linear")], {"x": normal(2, 3, 5)}, {"s": floats(1, 1, 2)})
    case("upsample_7", [op("Upsample", mode="nearest", scales=[1.0, 1.0, 2.0, 3.0])], {"x": x}, opset=7)
    case("upsample_9", [op("Upsample", "x s", mode="linear")], {"x": x}, {"s": floats(1, 1, 2, 2)}, opset=9)


def shapes():
    x = normal(2, 3, 4, 6)
    def shaped(name, nodes, weights=None, **more):
        case(f"shape_{name}", nodes, {"x": x}, weights, **more)
    shaped("reshape", [op("Reshape", "x s")], {"s": ints(0, -1, 6)})
    shaped("flatten", [op("Flatten", axis=2)])
    shaped("flatten_0", [op("Flatten", axis=0)])
    shaped("squeeze_all", [op("Unsqueeze", "x a", "u"), op("Squeeze", "u", "y")], {"a": ints(0, 2)})
    shaped("squeeze_input", [op("Unsqueeze", "x a", "u"), op("Squeeze", "u b", "y")], {"a": ints(0, 2), "b": ints(-4)})
    shaped("squeeze_attribute", [op("Unsqueeze", "x", "u", axes=[1, 5]), op("Squeeze", "u", "y", axes=[1])], opset=11)
    shaped("transpose", [op("Transpose", perm=[0, 2, 3, 1])])
    shaped("transpose_default", [op("Transpose")])
    shaped("expand", [op("Slice", "x s e a", "z"), op("Expand", "z t", "y")], {"s": ints(1), "e": ints(2), "a": ints(1), "t": ints(5, 1, 3, 1, 1)})
    shaped("tile", [op("Tile", "x r")], {"r": ints(1, 2, 1, 3)})
    shaped("slice_attribute", [op("Slice", starts=[1, -5], ends=[3, 100], axes=[1, 3])], opset=9)
    shaped("slice_steps", [op("Slice", "x s e a t")], {"s": ints(-1, 0), "e": ints(-100, 100), "a": ints(3, 2), "t": ints(-2, 3)})
    shaped("concat", [op("Concat", "x x c", axis=-1)], {"c": normal(2, 3, 4, 2)})
    split = [op("Split", "x l", "a b", axis=3), op("Concat", "b a", "y", axis=3)]
    shaped("split_input", split, {"l": ints(2, 4)})
    shaped("split_attribute", [op("Split", "x", "a b", axis=3, split=[1, 5]), op("Concat", "b a", "y", axis=3)], opset=11)
    shaped("split_even", [op("Split", "x", "a b", axis=2), op("Sub", "b a", "y")])
    shaped("split_uneven", [op("Split", "x", "a b", axis=1, num_outputs=2), op("Concat", "b a", "y", axis=1)], opset=18)
    shaped("depth_to_space", [op("Tile", "x r", "t"), op("DepthToSpace", "t", "y", blocksize=2)], {"r": ints(1, 4, 1, 1)})
    shaped("depth_to_space_crd", [op("Tile", "x r", "t"), op("DepthToSpace", "t", "y", blocksize=2, mode="CRD")], {"r": ints(1, 4, 1, 1)})
    shaped("space_to_depth", [op("SpaceToDepth", blocksize=2)])
    shaped("pad_attribute", [op("Pad", pads=[0, 0, 1, 2, 0, 1, 0, 3], value=0.5)], opset=10)
    shaped("pad_input", [op("Pad", "x p v")], {"p": ints(0, 0, 1, 2, 0, 1, 0, 3), "v": np.float32(-1)})
    shaped("pad_axes", [op("Pad", "x p  a")], {"p": ints(1, 0, 2, 3), "a": ints(-1, 1)}, opset=18)
    shaped("pad_reflect", [op("Pad", "x p", mode="reflect")], {"p": ints(0, 0, 1, 2, 0, 0, 3, 5)})
    shaped("pad_edge", [op("Pad", "x p", mode="edge")], {"p": ints(0, 0, 1, 2, 0, 0, 3, 5)})
    shaped("pad_negative", [op("Pad", "x p")], {"p": ints(0, 0, -1, 2, 0, 0, 1, -2)})
    shaped("gather_scalar", [op("Gather", "x i", axis=1)], {"i": np.array(-1, np.int64)})
    shaped("gather_run", [op("Gather", "x i", axis=3)], {"i": ints(5, 3, 1)})
    shaped("gather_any", [op("Gather", "x i", axis=2)], {"i": np.array([[0, 3], [3, 1]], np.int64)})
    case("shape_embedding", [op("Gather", "emb.weight x")], {"x": random.integers(0, 7, (2, 5))}, {"emb.weight": normal(7, 3)})


def folding():
    """What exporters leave of shape arithmetic, all of it constant."""
    x = normal(2, 3, 4, 6)
    nodes = [
        op("Shape", "x", "shape"), op("Gather", "shape zero", "n"), op("Gather", "shape three", "w"), op("Unsqueeze", "n first", "nv"),
        op("Mul", "w two", "double"), op("Div", "double four", "half"), op("Unsqueeze", "half first", "hv"),
        op("Concat", "nv minus hv", "new", axis=0), op("Reshape", "x new", "r"),
        op("ConstantOfShape", "new_like", "ones", value=numpy_helper.from_array(floats(1.5))), op("Add", "r ones", "y"),
    ]
    case("fold_reshape", nodes, {"x": x}, {"zero": np.array(0), "three": np.array(3), "first": ints(0), "two": np.array(2),
                                         "four": np.array(4), "minus": ints(-1), "new_like": ints(1, 1, 3)})
    nodes = [
        op("Range", "start limit step", "range"), op("Cast", "range", "f", to=TensorProto.FLOAT), op("Mul", "f scale", "g"),
        op("Sqrt", "g", "s"), op("Reshape", "s row", "t"), op("Transpose", "t", "u"), op("Expand", "u wide", "v"),
        op("Greater", "v one", "m"), op("Where", "m v one", "w"), op("ReduceSum", "w axes", "sum", keepdims=1), op("Div", "w sum", "p"),
        op("Slice", "p s0 s1", "q"), op("Concat", "q q", "c", axis=0), op("Add", "x c", "y"),
    ]
    case("fold_floats", nodes, {"x": x}, {"start": np.array(0), "limit": np.array(12), "step": np.array(2), "scale": np.float32(0.7),
                                        "row": ints(1, 6), "wide": ints(6, 6), "one": np.float32(1), "axes": ints(0), "s0": ints(0),
                                        "s1": ints(2)}, opset=13)
    nodes = [op("Size", "x", "n"), op("Cast", "n", "f", to=TensorProto.FLOAT), op("Div", "x f", "y")]
    case("fold_size", nodes, {"x": x})
    nodes = [op("Shape", "x", "s", start=1, end=-1), op("ReduceProd", "s", "p", keepdims=1), op("Concat", "minus p six", "t", axis=0),
             op("Reshape", "x t", "y")]
    case("fold_shape_range", nodes, {"x": x}, {"minus": ints(-1), "six": ints(6)}, opset=17)
    case("fold_constant_output", [op("Relu", "x", "unused"), op("Exp", "c", "y")], {"x": x}, {"c": normal(3)})


def normalizations():
    x = normal(2, 6, 4, 5)
    scale, bias, mean, variance = positive(6), normal(6), normal(6), positive(6)
    inference = {"scale": scale, "b": bias, "m": mean, "v": variance}
    case("norm_batch_inference", [op("BatchNormalization", "x scale b m v", epsilon=1e-3)], {"x": x}, inference)
    case("norm_instance", [op("InstanceNormalization", "x scale b", epsilon=1e-3)], {"x": x}, {"scale": scale, "b": bias})
    case("norm_layer", [op("LayerNormalization", "x scale b", axis=2)], {"x": x}, {"scale": normal(4, 5), "b": normal(4, 5)})
    case("norm_layer_no_bias", [op("LayerNormalization", "x scale")], {"x": x}, {"scale": normal(5)})
    case("norm_group_21", [op("GroupNormalization", "x scale b", num_groups=3)], {"x": x}, {"scale": scale, "b": bias}, opset=21)
    grouped = [op("GroupNormalization", "x scale b", num_groups=3)]
    weights = {"scale": positive(3), "b": normal(3)}
    model = model_of(grouped, {"x": x}, ["y"], weights, 18)
    y = x.reshape(2, 3, -1).astype(np.float64)
    y = (y - y.mean(2, keepdims=True)) / np.sqrt(y.var(2, keepdims=True) + 1e-5)
    y = y * weights["scale"][:, None] + weights["b"][:, None]
    save_case("norm_group_18", model, {"x": x}, {"y": y.reshape(x.shape)})


def files_of_other_exporters():
    """The networks that lie here as files (see README.md), with outputs of ONNX Runtime."""
    for path in sorted((HERE / "onnx").glob("*-*.onnx")):
        model = onnx.load(path)
        dims = [d.dim_value or 4 for d in model.graph.input[0].type.tensor_type.shape.dim]
        inputs = {model.graph.input[0].name: normal(*dims)}
        outputs = run_onnxruntime(model, inputs, [output.name for output in model.graph.output])
        for key, value in inputs.items():
            arrays[f"file_{path.stem}/in/{key}"] = value
        for key, value in outputs.items():
            arrays[f"file_{path.stem}/out/{key}"] = value


def write(path):
    np.savez_compressed(path, **arrays)
    print(path, path.stat().st_size, "bytes,", sum(name.endswith("/model") for name in arrays), "cases")
    arrays.clear()


def torch_networks():
    import torch
    from torch import nn
    from torch.nn import functional

    class Attention(nn.Module):
        """Self-attention of SAGAN (Zhang et al. 2019)."""

        def __init__(self, channels):
            super().__init__()
            self.query, self.key, self.value = (nn.Conv2d(channels, channels, 1) for _ in range(3))
            self.gamma = nn.Parameter(torch.full((1,), 0.5))

        def forward(self, x):
            batch, channels, height, width = x.shape
            query = self.query(x).view(batch, channels, -1).transpose(1, 2)
            weights = torch.softmax(query @ self.key(x).view(batch, channels, -1) / channels**0.5, dim=-1)
            mixed = self.value(x).view(batch, channels, -1) @ weights.transpose(1, 2)
            return x + self.gamma * mixed.view(batch, channels, height, width)

    class Style(nn.Module):
        """A learned constant, modulated, upsampled and blurred."""

        def __init__(self):
            super().__init__()
            self.const = nn.Parameter(torch.randn(1, 6, 4, 4))
            self.style = nn.Linear(5, 6)
            self.conv = nn.Conv2d(6, 3, 3)
            self.bias = nn.Parameter(torch.randn(3))

        def forward(self, z):
            x = self.const * (self.style(z).view(-1, 6, 1, 1) + 1)
            x = x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)
            x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = self.conv(functional.pad(x, (1, 1, 1, 1), mode="reflect")) + self.bias.view(1, 3, 1, 1)
            return torch.tanh(functional.avg_pool2d(x, 2))

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.SiLU(), nn.Conv2d(6, 6, 3, padding=1))
            self.skip = nn.Conv2d(3, 6, 1)
            self.norm = nn.InstanceNorm2d(6)
            self.layer = nn.LayerNorm(6)
            self.head = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 1))

        def forward(self, x):
            x = self.norm(self.skip(x) + self.first(x))
            x = functional.hardswish(functional.max_pool2d(x, 2, ceil_mode=True))
            return self.head(self.layer(x.mean(dim=(2, 3)) + x.std(dim=0).mean()))

    class Labelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(4, 3)
            self.body = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.PReLU(), nn.Linear(12, 6))

        def forward(self, z, label):
            a, b = self.body(torch.cat([z, self.embedding(label)], dim=1)).chunk(2, dim=1)
            return functional.glu(torch.cat([a, b], dim=1), dim=1)[:, ::2]

    def dcgan(sizes, channels):
        up, down = [], []
        before = 7
        for index, size in enumerate(sizes):
            up += [nn.ConvTranspose2d(before, size, 4, 2 if index else 1, 1 if index else 0, bias=False), nn.BatchNorm2d(size), nn.ReLU()]
            before = size
        up += [nn.ConvTranspose2d(before, channels, 4, 2, 1, bias=False), nn.Tanh()]
        before = channels
        for index, size in enumerate(reversed(sizes)):
            down += [nn.Conv2d(before, size, 4, 2, 1, bias=False)] + ([nn.BatchNorm2d(size)] if index else []) + [nn.LeakyReLU(0.2)]
            before = size
        return nn.Sequential(*up), nn.Sequential(*down, nn.Conv2d(before, 1, 4, bias=False), nn.Flatten())

    torch.manual_seed(7)
    generator, discriminator = dcgan([8, 4, 2], 3)
    z, image = torch.randn(2, 7, 1, 1), torch.randn(2, 3, 32, 32)
    twelve = torch.randn(5, 3, 9, 9)
    label = torch.tensor([0, 3, 1, 1, 2])
    old, new = [11, 15, 17], [20]
    spectral = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 6)), nn.LeakyReLU(0.1), nn.Linear(6, 1))
    networks = [
        ("dcgan_generator", generator, (z,), [9, 15, 20]),
        ("dcgan_discriminator", discriminator, (image,), [13, 20]),
        ("attention", nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), Attention(4), nn.Flatten(), nn.Linear(100, 1)), (twelve,), old),
        ("style", Style(), (torch.randn(5, 5),), old + new),
        ("residual", Residual(), (twelve,), old + new),
        ("labelled", Labelled(), (torch.randn(5, 5), label), old + new),
        ("spectral", spectral, (torch.randn(5, 5),), new),
    ]

    def statistics(network):
        return {name: value.clone() for name, value in network.named_buffers() if "running" in name}

    def stripped(model):
        for node in model.graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for group in [model.graph.value_info, model.graph.metadata_props, model.metadata_props]:
            del group[:]
        return model

    for name, network, inputs, opsets in networks:
        names = ["x", "label"][: len(inputs)]
        network.train()
        for exporter, opset in [("script", o) for o in opsets if o < 20] + [("dynamo", o) for o in opsets if o >= 20]:
            stream = io.BytesIO()
            if exporter == "script":
                torch.onnx.export(network, inputs, stream, dynamo=False, opset_version=opset, do_constant_folding=False,
                                  training=torch.onnx.TrainingMode.TRAINING, input_names=names, output_names=["y"],
                                  dynamic_axes={one: {0: "batch"} for one in names})
                model = stripped(onnx.load_from_string(stream.getvalue()))
            else:
                batch = torch.export.Dim("batch")
                program = torch.onnx.export(network, inputs, dynamo=True, optimize=False, opset_version=opset, input_names=names,
                                            output_names=["y"], dynamic_shapes=tuple({0: batch} for _ in names))
                model = stripped(program.model_proto)
            # Exporting runs the network in training mode, so the file's statistics have moved already.
            network.load_state_dict({w.name: torch.tensor(numpy_helper.to_array(w)) for w in model.graph.initializer
                                     if "running" in w.name}, strict=False)
            network.train()
            network.double()
            with torch.no_grad():
                y = network(*[value.double() if value.is_floating_point() else value for value in inputs])
            after = statistics(network)
            network.float()
            key = f"{exporter}{opset}_{name}"
            save_case(key, model, {one: value.numpy() for one, value in zip(names, inputs)}, {"y": y.numpy()})
            for one, value in after.items():
                arrays[f"{key}/state/{one}"] = value.numpy()


def spectral_layers():
    import torch
    from torch import nn

    torch.manual_seed(3)
    for name, layer, shape in [("linear", nn.Linear(5, 4), (3, 5)), ("conv", nn.Conv2d(3, 4, 3, padding=1), (2, 3, 5, 5))]:
        layer = nn.utils.spectral_norm(layer).double().train()
        for key, value in layer.state_dict().items():
            arrays[f"{name}/before/{key}"] = value.numpy().copy()
        for turn in [1, 2]:
            x = torch.randn(*shape, dtype=torch.float64)
            y = layer(x)
            layer.weight_orig.grad = None
            y.square().sum().backward()
            arrays[f"{name}/{turn}/x"] = x.numpy()
            arrays[f"{name}/{turn}/y"] = y.detach().numpy()
            arrays[f"{name}/{turn}/u"] = layer.weight_u.numpy().copy()
            arrays[f"{name}/{turn}/v"] = layer.weight_v.numpy().copy()
            arrays[f"{name}/{turn}/weight_gradient"] = layer.weight_orig.grad.numpy().copy()


def write_fuzz_seeds(folder):
    folder.mkdir(parents=True, exist_ok=True)
    seeds = ["elementwise_logic", "conv_bias", "deconv_output_shape", "fold_reshape", "fold_floats", "resize_axes", "shape_slice_steps",
             "shape_pad_reflect", "norm_group_21", "gemm_full", "shape_split_uneven", "pool_MaxPool_ceil", "reduce_noop",
             "shape_embedding", "upsample_7", "elementwise_clip_inputs"]
    for seed in seeds:
        (folder / f"{seed}.onnx").write_bytes(arrays[f"{seed}/model"].tobytes())


def main():
    target = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "onnx"
    corpus = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else HERE.parent / "fuzz" / "corpus" / "onnx"
    warnings.simplefilter("ignore")
    for make in [elementwise, softmax_and_reductions, products, convolutions, poolings, resizes, shapes, folding, normalizations,
                 files_of_other_exporters]:
        make()
    write_fuzz_seeds(corpus)
    write(target / "operators.npz")
    torch_networks()
    write(target / "training.npz")
    spectral_layers()
    write(target / "layers.npz")


if __name__ == "__main__":
    main()
