#!/usr/bin/env python3
"""Writes torch_ops.txt: what PyTorch computes, in f64, for the convolution, pooling, resize and normalization ops.

Run with any PyTorch from 1.11 on:  python3 make_torch_ops.py > torch_ops.txt

The file is a list of lines, read by tests/unit/ops/torch_ops_test.cc:
  case NAME                                     the tensors of the case before are forgotten
  tensor NAME DIMS = VALUES                     row-major; DIMS is "-" for a scalar
  run OP INPUTS > OUTPUTS ; ATTRIBUTES          tensors by name ("_": not checked); attributes as name=value
"""
import random
import sys

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
torch.manual_seed(7)
random.seed(7)


def draw(*shape):
    """Multiples of 1/32 in [-2, 2]: exact, and short in print."""
    return (torch.randint(-64, 65, shape) / 32.0).requires_grad_(True)


def distinct(*shape):
    """No two values are equal, so that a maximum has one place."""
    count = 1
    for dim in shape:
        count *= dim
    return ((torch.randperm(count) - count // 2) / 32.0).reshape(shape).requires_grad_(True)


def text(value):
    if isinstance(value, str):
        return '"' + value + '"'
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(text(v) for v in value) + "]"
    return repr(value)


class Case:
    def __init__(self, name):
        print("case", name)

    def tensor(self, name, value):
        dims = ",".join(str(d) for d in value.shape) or "-"
        values = value.detach().reshape(-1).tolist()
        print("tensor", name, dims, "=", " ".join(repr(v).removesuffix(".0") for v in values))

    def run(self, op, inputs, outputs, **attributes):
        shown = " ".join(k + "=" + text(v) for k, v in sorted(attributes.items()))
        print("run", op, " ".join(inputs), ">", " ".join(outputs), ";", shown)


def flipped_pads(pads):
    """Begin pads, then end pads, as F.pad wants them: last dimension first, begin and end together."""
    rank = len(pads) // 2
    return [pads[rank * end + axis] for axis in reversed(range(rank)) for end in (0, 1)]


CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def conv(name, x_shape, outputs, kernel, strides, pads, dilations, groups):
    case = Case("conv_" + name)
    rank = len(kernel)
    x, w, b = draw(*x_shape), draw(outputs, x_shape[1] // groups, *kernel), draw(outputs)
    y = CONV[rank](F.pad(x, flipped_pads(pads)), w, b, strides, 0, dilations, groups)
    g = draw(*y.shape)
    y.backward(g)
    common = dict(strides=strides, pads=pads, dilations=dilations, groups=groups)
    for key, value in dict(x=x, w=w, b=b, y=y, g=g, dx=x.grad, dw=w.grad).items():
        case.tensor(key, value)
    case.run("conv", ["x", "w", "b"], ["y"], **common)
    case.run("conv_transpose", ["g", "w"], ["dx"], output_spatial=list(x_shape[2:]), **common)
    case.run("conv_weight_grad", ["x", "g"], ["dw"], kernel=kernel, **common)


def conv_transpose(name, y_shape, outputs, kernel, strides, pads, output_padding, dilations, groups):
    """pads are begin pads only; the same at the end."""
    case = Case("conv_transpose_" + name)
    rank = len(kernel)
    y, w, b = draw(*y_shape), draw(y_shape[1], outputs // groups, *kernel), draw(outputs)
    x = CONV_TRANSPOSE[rank](y, w, b, strides, pads, output_padding, groups, dilations)
    g = draw(*x.shape)
    x.backward(g)
    common = dict(strides=strides, pads=pads + pads, dilations=dilations, groups=groups)
    for key, value in dict(y=y, w=w, b=b, x=x, g=g, dy=y.grad, dw=w.grad).items():
        case.tensor(key, value)
    case.run("conv_transpose", ["y", "w", "b"], ["x"], output_spatial=list(x.shape[2:]), **common)
    case.run("conv", ["g", "w"], ["dy"], **common)
    case.run("conv_weight_grad", ["g", "y"], ["dw"], kernel=kernel, **common)


def avg_pool(name, x_shape, kernel, strides, pads, ceil_mode, count_include_pad):
    case = Case("avg_pool_" + name)
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]
    x = draw(*x_shape)
    y = pool(x, kernel, strides, pads, ceil_mode, count_include_pad)
    g = draw(*y.shape)
    y.backward(g)
    common = dict(kernel=kernel, strides=strides, pads=pads + pads, ceil_mode=int(ceil_mode),
                  count_include_pad=int(count_include_pad))
    for key, value in dict(x=x, y=y, g=g, dx=x.grad).items():
        case.tensor(key, value)
    case.run("avg_pool", ["x"], ["y"], **common)
    case.run("avg_pool_grad", ["g"], ["dx"], output_spatial=list(x_shape[2:]), **common)


def max_pool(name, x_shape, kernel, strides, pads, dilations, ceil_mode):
    case = Case("max_pool_" + name)
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(kernel)]
    x = distinct(*x_shape)
    y = pool(x, kernel, strides, pads, dilations, ceil_mode)
    g = draw(*y.shape)
    (dx,) = torch.autograd.grad(y, x, g, create_graph=True)
    v = draw(*x_shape)
    (selected,) = torch.autograd.grad(dx, g, v)
    common = dict(kernel=kernel, strides=strides, pads=pads + pads, dilations=dilations, ceil_mode=int(ceil_mode))
    for key, value in dict(x=x, y=y, g=g, dx=dx, v=v, selected=selected).items():
        case.tensor(key, value)
    case.run("max_pool", ["x"], ["y"], **common)
    case.run("max_pool_grad", ["g", "x"], ["dx"], **common)
    case.run("max_pool_select", ["v", "x"], ["selected"], **common)


def resize(name, x_shape, mode, attributes, size=None, scales=None, align_corners=None):
    case = Case("resize_" + name)
    x = draw(*x_shape)
    y = F.interpolate(x, size=size, scale_factor=scales, mode=mode, align_corners=align_corners)
    g = draw(*y.shape)
    y.backward(g)
    if scales is not None:
        attributes = dict(attributes, scales=[float(s) for s in scales])
    for key, value in dict(x=x, y=y, g=g, dx=x.grad).items():
        case.tensor(key, value)
    case.run("resize", ["x"], ["y"], output_spatial=list(y.shape[2:]), **attributes)
    case.run("resize_grad", ["g"], ["dx"], output_spatial=list(x_shape[2:]), **attributes)


def norm(name, x_shape, axes, parameter_shape, torch_norm, eps):
    """torch_norm(x, scale, bias) on tensors of the shapes given; scale and bias broadcast to x."""
    case = Case("normalize_" + name)
    x, scale, bias = draw(*x_shape), draw(*parameter_shape), draw(*parameter_shape)
    y = torch_norm(x, scale, bias)
    g = draw(*x_shape)
    y.backward(g)
    mean = x.mean(axes, keepdim=True)
    variance = x.var(axes, unbiased=False, keepdim=True)
    for key, value in dict(x=x, scale=scale, bias=bias, y=y, mean=mean, variance=variance, g=g, dx=x.grad,
                           dscale=scale.grad, dbias=bias.grad).items():
        case.tensor(key, value)
    case.run("normalize", ["x", "scale", "bias"], ["y", "mean", "variance"], axes=axes, eps=eps)
    case.run("normalize_grad", ["g", "x", "scale", "mean", "variance"], ["dx", "dscale", "dbias"], axes=axes, eps=eps)


print("# PyTorch", torch.__version__.split("+")[0], "on the CPU in f64; made by make_torch_ops.py")

conv("1d", (2, 3, 11), 4, [4], [2], [1, 1], [1], 1)
conv("1d_groups_dilated_asymmetric", (2, 4, 13), 6, [3], [2], [3, 0], [2], 2)
conv("2d_gan", (2, 3, 8, 8), 4, [4, 4], [2, 2], [1, 1, 1, 1], [1, 1], 1)
conv("2d_head", (3, 5, 4, 4), 1, [4, 4], [1, 1], [0, 0, 0, 0], [1, 1], 1)
conv("2d_odd", (1, 4, 9, 7), 6, [3, 2], [3, 2], [0, 2, 1, 1], [1, 3], 2)
conv("2d_depthwise", (2, 3, 6, 5), 6, [3, 3], [1, 2], [1, 1, 1, 1], [1, 1], 3)
conv("2d_pointwise", (2, 5, 3, 4), 3, [1, 1], [1, 1], [0, 0, 0, 0], [1, 1], 1)
conv("2d_rows_left_over", (1, 2, 10, 11), 2, [2, 3], [3, 4], [0, 0, 0, 0], [2, 1], 1)
conv("3d", (1, 2, 5, 6, 4), 3, [3, 3, 2], [2, 1, 1], [1, 1, 0, 1, 0, 1], [1, 2, 1], 1)
conv("3d_groups", (1, 4, 3, 5, 5), 4, [2, 3, 3], [1, 2, 2], [0, 1, 1, 0, 1, 1], [1, 1, 1], 2)

conv_transpose("1d_output_padding", (2, 4, 5), 3, [4], [3], [1], [2], [1], 1)
conv_transpose("2d_gan", (2, 4, 4, 4), 3, [4, 4], [2, 2], [1, 1], [0, 0], [1, 1], 1)
conv_transpose("2d_stem", (3, 6, 1, 1), 4, [4, 4], [1, 1], [0, 0], [0, 0], [1, 1], 1)
conv_transpose("2d_odd", (1, 4, 3, 4), 6, [3, 2], [2, 3], [1, 0], [1, 2], [2, 1], 2)
conv_transpose("3d", (1, 4, 2, 3, 2), 2, [3, 2, 3], [2, 1, 2], [1, 0, 1], [1, 0, 1], [1, 2, 1], 2)

avg_pool("1d", (2, 2, 9), [3], [2], [1], False, False)
avg_pool("1d_ceil_include", (1, 2, 8), [3], [3], [1], True, True)
avg_pool("2d", (2, 2, 6, 6), [2, 2], [2, 2], [0, 0], False, True)
avg_pool("2d_ceil", (1, 3, 7, 8), [3, 2], [2, 3], [1, 1], True, False)
avg_pool("2d_ceil_include", (1, 3, 7, 8), [3, 4], [3, 3], [1, 2], True, True)
avg_pool("3d_ceil_include", (1, 2, 4, 5, 6), [2, 3, 4], [3, 2, 3], [1, 1, 2], True, True)
max_pool("1d_dilated", (2, 2, 10), [3], [2], [1], [2], False)
max_pool("2d", (2, 2, 6, 6), [2, 2], [2, 2], [0, 0], [1, 1], False)
max_pool("2d_overlapping_ceil", (1, 3, 7, 8), [3, 3], [2, 3], [1, 0], [1, 2], True)
max_pool("2d_last_window_dropped", (1, 2, 5, 6), [2, 2], [3, 5], [1, 1], [1, 1], True)
max_pool("3d", (1, 2, 4, 5, 6), [2, 3, 2], [2, 2, 3], [1, 1, 0], [1, 1, 2], True)

NEAREST = dict(mode="nearest", coordinates="asymmetric", rounding="floor")
EXACT = dict(mode="nearest", coordinates="half_pixel", rounding="round_prefer_ceil")
HALF = dict(mode="linear", coordinates="half_pixel")
ALIGN = dict(mode="linear", coordinates="align_corners")
resize("nearest_1d", (1, 2, 5), "nearest", NEAREST, size=[13])
resize("nearest_2d", (2, 2, 3, 4), "nearest", NEAREST, scales=[2, 2])
resize("nearest_2d_odd", (1, 2, 7, 9), "nearest", NEAREST, size=[10, 4])
resize("nearest_2d_scales", (1, 2, 5, 6), "nearest", NEAREST, scales=[1.7, 0.6])
resize("nearest_3d", (1, 1, 3, 4, 5), "nearest", NEAREST, size=[5, 3, 7])
resize("exact_2d", (1, 2, 7, 9), "nearest-exact", EXACT, size=[10, 4])
resize("exact_3d", (1, 1, 3, 4, 5), "nearest-exact", EXACT, size=[5, 2, 10])
resize("linear_1d", (1, 2, 5), "linear", HALF, size=[12], align_corners=False)
resize("linear_1d_align", (1, 2, 5), "linear", ALIGN, size=[12], align_corners=True)
resize("bilinear", (1, 2, 4, 6), "bilinear", HALF, size=[9, 4], align_corners=False)
resize("bilinear_double", (1, 2, 4, 4), "bilinear", HALF, scales=[2, 2], align_corners=False)
resize("bilinear_scales", (1, 2, 5, 6), "bilinear", HALF, scales=[1.7, 0.6], align_corners=False)
resize("bilinear_align", (1, 2, 4, 6), "bilinear", ALIGN, size=[9, 4], align_corners=True)
resize("bilinear_align_one", (1, 2, 4, 6), "bilinear", ALIGN, size=[1, 5], align_corners=True)
resize("trilinear", (1, 1, 3, 4, 3), "trilinear", HALF, size=[4, 6, 5], align_corners=False)
resize("trilinear_align", (1, 1, 3, 4, 3), "trilinear", ALIGN, size=[4, 6, 5], align_corners=True)


def batch_norm(x, scale, bias):
    return F.batch_norm(x, None, None, scale.reshape(-1), bias.reshape(-1), training=True, eps=1e-5)


norm("batch_1d", (6, 5), [0], (1, 5), batch_norm, 1e-5)
norm("batch_2d", (3, 4, 5, 3), [0, 2, 3], (1, 4, 1, 1), batch_norm, 1e-5)
norm("batch_3d", (2, 3, 2, 3, 4), [0, 2, 3, 4], (3, 1, 1, 1), batch_norm, 1e-5)
norm("instance", (2, 3, 4, 5), [2, 3], (1, 3, 1, 1),
     lambda x, s, b: F.instance_norm(x, weight=s.reshape(-1), bias=b.reshape(-1), eps=1e-3), 1e-3)
norm("layer", (3, 2, 6), [-1], (6,), lambda x, s, b: F.layer_norm(x, (6,), s, b, 1e-5), 1e-5)
norm("layer_two", (3, 4, 5), [1, 2], (4, 5), lambda x, s, b: F.layer_norm(x, (4, 5), s, b, 1e-2), 1e-2)
norm("group", (2, 3, 2, 3, 3), [2, 3, 4], (1, 3, 2, 1, 1),
     lambda x, s, b: F.group_norm(x.reshape(2, 6, 3, 3), 3, s.reshape(-1), b.reshape(-1), 1e-5).reshape(x.shape), 1e-5)

sys.stdout.flush()
