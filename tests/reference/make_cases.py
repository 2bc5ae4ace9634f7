#!/usr/bin/env python3
"""Makes reference cases: short adversarial runs computed by PyTorch, in the format of README.md.

    python3 make_cases.py FOLDER     writes FOLDER/<case> for every case below; needs torch and numpy, no onnx package

Runs in float64 and float32; the .onnx files are written here, byte by byte, so that running statistics are the fresh ones.
"""
import copy
import json
import os
import struct
import sys

import numpy as np
import torch
from torch import nn

F = nn.functional


# ---- the smallest ONNX writer that says what these networks need (onnx.proto3, field numbers of IR version 8) ----

def varint(n):
    n &= (1 << 64) - 1
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name, array):
    types = {"float32": 1, "int64": 7}
    return (b"".join(field(1, d) for d in array.shape) + field(2, types[str(array.dtype)]) + field(8, name) +
            field(9, array.tobytes()))


def attribute(name, value):
    if isinstance(value, float):
        return field(1, name) + field(2, value) + field(20, 1)
    if isinstance(value, int):
        return field(1, name) + field(3, value) + field(20, 2)
    return field(1, name) + b"".join(field(8, v) for v in value) + field(20, 7)


def node(op, inputs, outputs, **attributes):
    return (b"".join(field(1, i) for i in inputs) + b"".join(field(2, o) for o in outputs) + field(4, op) +
            b"".join(field(5, attribute(k, v)) for k, v in attributes.items()))


def value_info(name, shape):
    dims = field(1, field(2, "batch")) + b"".join(field(1, field(1, d)) for d in shape)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))


def export(network, path, shape):
    """An nn.Sequential of the modules used below as an ONNX file, opset 15, with its present weights."""
    nodes, weights, value, count = [], [], "input", 0
    sample = torch.zeros((2,) + tuple(shape), dtype=next(network.parameters()).dtype)
    for index, module in enumerate(network):
        state = {k: v for k, v in module.state_dict().items() if k != "num_batches_tracked"}
        names = {k: f"{index}.{k}" for k in state}
        weights += [tensor(names[k], v.detach().numpy().astype(np.float32)) for k, v in state.items()]
        result, extra, outputs = f"value{index}", {}, []
        inputs = [value] + [names[k] for k in ("weight", "bias") if k in names]
        if isinstance(module, nn.Linear):
            op, extra = "Gemm", {"transB": 1}
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            op = "Conv" if isinstance(module, nn.Conv2d) else "ConvTranspose"
            extra = {"kernel_shape": list(module.kernel_size), "strides": list(module.stride), "pads": list(module.padding) * 2}
        elif isinstance(module, nn.BatchNorm2d):
            op, extra = "BatchNormalization", {"epsilon": module.eps, "momentum": 1.0 - module.momentum, "training_mode": 1}
            inputs += [names["running_mean"], names["running_var"]]
            outputs = [f"mean{index}", f"var{index}"]
        elif isinstance(module, nn.LeakyReLU):
            op, extra = "LeakyRelu", {"alpha": module.negative_slope}
        elif isinstance(module, (nn.ReLU, nn.Tanh, nn.Softplus)):
            op = type(module).__name__.replace("ReLU", "Relu")
        elif isinstance(module, (nn.Flatten, nn.Unflatten)):
            target = [-1] if isinstance(module, nn.Flatten) else list(module.unflattened_size)
            op, inputs = "Reshape", [value, f"onnx::shape{count}"]
            weights.append(tensor(inputs[1], np.array([0] + target, dtype=np.int64)))
            count += 1
        else:
            raise ValueError(type(module))
        nodes.append(node(op, inputs, [result] + outputs, **extra))
        value, sample = result, copy.deepcopy(module)(sample)
    graph = (b"".join(field(1, n) for n in nodes) + field(2, "network") + b"".join(field(5, w) for w in weights) +
             field(11, value_info("input", shape)) + field(12, value_info(value, sample.shape[1:])))
    with open(path, "wb") as file:
        file.write(field(1, 8) + field(2, "make_cases.py") + field(7, graph) + field(8, field(1, "") + field(2, 15)))


# ---- one adversarial run ----

def discriminator_loss(kind, r, f):
    return {"nonsaturating": lambda: F.softplus(-r).mean() + F.softplus(f).mean(),
            "hinge": lambda: F.relu(1 - r).mean() + F.relu(1 + f).mean(),
            "wgan": lambda: f.mean() - r.mean(),
            "leastsquares": lambda: ((r - 1) ** 2).mean() + (f ** 2).mean(),
            "relativistic": lambda: F.softplus(-(r - f)).mean()}[kind]()


def generator_loss(kind, r, f):
    return {"nonsaturating": lambda: F.softplus(-f).mean(), "hinge": lambda: -f.mean(), "wgan": lambda: -f.mean(),
            "leastsquares": lambda: ((f - 1) ** 2).mean(),
            "relativistic": lambda: F.softplus(-(f - r)).mean()}[kind]()


def make_optimizer(settings, parameters):
    s = settings
    if s["name"] == "sgd":
        return torch.optim.SGD(parameters, lr=s["lr"], momentum=s.get("momentum", 0), nesterov=s.get("nesterov", False),
                               weight_decay=s.get("weight_decay", 0))
    kind = torch.optim.Adam if s["name"] == "adam" else torch.optim.AdamW
    return kind(parameters, lr=s["lr"], betas=(s["beta1"], s["beta2"]), eps=s["epsilon"], weight_decay=s.get("weight_decay", 0))


def squared_gradient(network, logits, samples):
    gradient, = torch.autograd.grad(logits.sum(), samples, create_graph=True)
    return gradient.flatten(1).square().sum(1)


def run(case, networks, real, noise, mix, dtype):
    generator, discriminator = (copy.deepcopy(n).to(dtype).train() for n in networks)
    real, noise, mix = (torch.tensor(x).to(dtype) for x in (real, noise, mix))
    g_optimizer = make_optimizer(case["optimizer"], generator.parameters())
    d_optimizer = make_optimizer(case["optimizer"], discriminator.parameters())
    average = {k: p.detach().clone() for k, p in generator.named_parameters()}
    log, norms = [], {}
    for step in range(case["steps"]):
        for draw in range(step * case["n_critic"], (step + 1) * case["n_critic"]):
            fake = generator(noise[draw])
            real_in, fake_in = real[draw].clone().requires_grad_(), fake.detach().requires_grad_()
            r, f = discriminator(real_in), discriminator(fake_in)
            loss = discriminator_loss(case["loss"], r, f)
            total, penalties = loss, {"r1": 0.0, "r2": 0.0, "gradient_penalty": 0.0}
            for name, logits, samples in (("r1", r, real_in), ("r2", f, fake_in)):
                if case[name] is not None and step % case["r1_every"] == 0:
                    penalty = squared_gradient(discriminator, logits, samples).mean()
                    total, penalties[name] = total + case[name] / 2 * penalty, penalty.item()
            if case["gradient_penalty"] is not None:
                e = mix[draw].view(-1, *[1] * (fake.dim() - 1))
                mixed = (e * real[draw] + (1 - e) * fake.detach()).requires_grad_()
                penalty = ((squared_gradient(discriminator, discriminator(mixed), mixed).sqrt() - 1) ** 2).mean()
                total, penalties["gradient_penalty"] = total + case["gradient_penalty"] * penalty, penalty.item()
            d_optimizer.zero_grad()
            total.backward()
            if draw == 0:
                norms.update({"discriminator." + k: p.grad.norm().item() for k, p in discriminator.named_parameters()})
            d_optimizer.step()
        again = discriminator(real[draw]).detach() if case["loss"] == "relativistic" else None
        g_loss = generator_loss(case["loss"], again, discriminator(fake))
        g_optimizer.zero_grad()
        g_loss.backward()
        if step == 0:
            norms.update({"generator." + k: p.grad.norm().item() for k, p in generator.named_parameters()})
        g_optimizer.step()
        if case["ema"] is not None:
            for k, p in generator.named_parameters():
                average[k] = case["ema"] * average[k] + (1 - case["ema"]) * p.detach()
        log.append([loss.item(), penalties["r1"], penalties["r2"], penalties["gradient_penalty"], g_loss.item(), r.mean().item(),
                    f.mean().item()])
    weights = {f"{role}.{k}": v.detach() for role, n in (("generator", generator), ("discriminator", discriminator))
               for k, v in n.state_dict().items() if not k.endswith("num_batches_tracked")}
    if case["ema"] is not None:
        weights.update({"ema." + k: v for k, v in average.items()})
    return log, norms, {k: v.numpy() for k, v in weights.items()}


# ---- the cases ----

ADAM = {"name": "adam", "lr": 2e-4, "beta1": 0.5, "beta2": 0.999, "epsilon": 1e-8}


def mlp(inputs, outputs, width=24):
    return nn.Sequential(nn.Linear(inputs, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.Softplus(), nn.Linear(width, outputs))


def image_generator(bias):
    return nn.Sequential(nn.Linear(12, 8 * 4 * 4), nn.Unflatten(1, (8, 4, 4)), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=bias), nn.BatchNorm2d(6), nn.ReLU(),
                         nn.ConvTranspose2d(6, 3, 4, 2, 1), nn.Tanh())


def image_discriminator(bias):
    return nn.Sequential(nn.Conv2d(3, 6, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(6, 8, 4, 2, 1, bias=bias), nn.BatchNorm2d(8),
                         nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8 * 4 * 4, 1))


def plain_discriminator():
    return nn.Sequential(nn.Conv2d(3, 6, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(6, 8, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(),
                         nn.Linear(8 * 4 * 4, 1))


CASES = [
    # name, networks, shape of a sample, noise, settings
    ("batch-norm", lambda: (image_generator(False), image_discriminator(False)), (3, 16, 16), 12, dict(steps=6)),
    ("hinge-sgd", lambda: (mlp(6, 3), mlp(3, 1)), (3,), 6,
     dict(loss="hinge", r2=0.5, r1_every=3, n_critic=2,
          optimizer=dict(name="sgd", lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3))),
    ("relativistic-adamw", lambda: (image_generator(True), plain_discriminator()), (3, 16, 16), 12,
     dict(loss="relativistic", r1=1.0, r2=1.5, ema=0.95, steps=6,
          optimizer=dict(name="adamw", lr=1e-3, beta1=0.0, beta2=0.99, epsilon=1e-8, weight_decay=0.02))),
    ("least-squares", lambda: (mlp(6, 3), mlp(3, 1)), (3,), 6,
     dict(loss="leastsquares", r1=0.7, r1_every=2, gradient_penalty=3.0,
          optimizer=dict(ADAM, weight_decay=1e-2, lr=1e-3))),
]
COLUMNS = ["discriminator_loss", "r1", "r2", "gradient_penalty", "generator_loss", "mean_logit_real", "mean_logit_fake"]


def make(folder, name, networks, shape, noise_size, settings):
    case = dict(name=name, steps=8, batch=8, loss="nonsaturating", r1=None, r2=None, r1_every=1, gradient_penalty=None, n_critic=1,
                ema=None, optimizer=ADAM)
    case.update(settings)
    torch.manual_seed(sum(name.encode()))
    networks = networks()
    draws = case["steps"] * case["n_critic"]
    real = torch.tanh(torch.randn(draws, case["batch"], *shape)).numpy()
    noise = torch.randn(draws, case["batch"], noise_size).numpy()
    mix = torch.rand(draws, case["batch"]).numpy()
    log, norms, weights = run(case, networks, real, noise, mix, torch.float64)
    log32, _, weights32 = run(case, networks, real, noise, mix, torch.float32)
    drift = np.abs(np.array(log) - np.array(log32)).max(axis=1).tolist()
    relative = max(float(np.abs(weights[k] - weights32[k]).max() / np.abs(weights[k]).max()) for k in weights)
    case.update(columns=COLUMNS, log_float64=log, log_float32=log32, gradient_norm_step1=norms,
                float32_vs_float64=dict(max_abs_log=drift, max_rel_final_weights=relative),
                made_with="make_cases.py, PyTorch " + torch.__version__)
    path = os.path.join(folder, name)
    os.makedirs(path, exist_ok=True)
    export(networks[0], os.path.join(path, "generator.onnx"), (noise_size,))
    export(networks[1], os.path.join(path, "discriminator.onnx"), shape)
    np.save(os.path.join(path, "real.npy"), real)
    np.save(os.path.join(path, "noise.npy"), noise)
    if case["gradient_penalty"] is not None:
        np.save(os.path.join(path, "mix.npy"), mix)
    np.savez(os.path.join(path, "expected.npz"), **weights)
    with open(os.path.join(path, "case.json"), "w") as file:
        json.dump(case, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    for arguments in CASES:
        make(sys.argv[1], *arguments)
