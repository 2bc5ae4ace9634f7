"""The DCGAN of the training-step benchmark in PyTorch, one adversarial step of it, and its weights and data on disk."""

import json
import pathlib
import struct

import numpy
import torch
import saved_tensors
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

NOISE_CHANNELS = 100
SIZES = {f"dcgan{size}": (1 if size == 32 else 3, size) for size in (16, 32, 64, 128, 256, 512)}  # image channels, height and width
LEARNING_RATE, BETAS = 2e-4, (0.5, 0.999)


def features_of(size, width):
    """Channels of the layers from the image inwards: they double with every halving down to 4x4, up to 8 * width."""
    halvings = (size // 4).bit_length() - 1
    return [width * min(8, 2**halving) for halving in range(halvings)]


def make_generator(channels, size, width):
    """[n, 100, 1, 1] to [n, channels, size, size]: k4 s1 up to 4x4, then k4 s2 p1 up to `size`, batch norm and ReLU."""
    first, *others = reversed(features_of(size, width))
    layers = [nn.ConvTranspose2d(NOISE_CHANNELS, first, 4, 1, 0, bias=False), nn.BatchNorm2d(first), nn.ReLU(True)]
    before = first
    for features in others:
        layers += [nn.ConvTranspose2d(before, features, 4, 2, 1, bias=False), nn.BatchNorm2d(features), nn.ReLU(True)]
        before = features
    return nn.Sequential(*layers, nn.ConvTranspose2d(before, channels, 4, 2, 1, bias=False), nn.Tanh())


def make_discriminator(channels, size, width):
    """The mirror image: [n, channels, size, size] to n logits, LeakyReLU 0.2, no norm after the first convolution."""
    first, *others = features_of(size, width)
    layers = [nn.Conv2d(channels, first, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
    before = first
    for features in others:
        layers += [nn.Conv2d(before, features, 4, 2, 1, bias=False), nn.BatchNorm2d(features), nn.LeakyReLU(0.2, True)]
        before = features
    return nn.Sequential(*layers, nn.Conv2d(before, 1, 4, 1, 0, bias=False), nn.Flatten(0))


class Trainer:
    """Both networks, their Adam states, and the step that the benchmark times.

    mode: "eager", "channels-last", "compiled" or "compiled-channels-last".
    weights: {"generator.0.weight": array, ...}, or None for DCGAN's initialization from a fixed seed.
    wrap: what is made of each network before its optimizer: itself, or a network split over processes.
    memory: "plain", "checkpoint" (torch.utils.checkpoint, in `segments` parts a network) or "save-on-cpu" (saved tensors are copied).
    """

    def __init__(self, model, width, batch, mode, weights=None, dtype=torch.float32, memory="plain", segments=2, wrap=lambda network: network):
        channels, size = SIZES[model]
        torch.manual_seed(1)
        self.generator = make_generator(channels, size, width)
        self.discriminator = make_discriminator(channels, size, width)
        for network, name in ((self.generator, "generator"), (self.discriminator, "discriminator")):
            initialize(network)
            if weights is not None:
                load_weights(network, name, weights)
        self.layout = torch.channels_last if mode.endswith("channels-last") else torch.contiguous_format
        self.dtype = dtype
        for network in (self.generator, self.discriminator):
            network.to(dtype=dtype, memory_format=self.layout).train()
        self.generator, self.discriminator = wrap(self.generator), wrap(self.discriminator)
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), LEARNING_RATE, BETAS, fused=True)
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), LEARNING_RATE, BETAS, fused=True
        )
        self.ones, self.zeros = torch.ones(batch, dtype=dtype), torch.zeros(batch, dtype=dtype)
        self.generate, self.judge = self.generator, self._judge
        self.discriminate = self.discriminator
        self.host_copies = saved_tensors.HostCopies() if memory == "save-on-cpu" else None
        if memory == "checkpoint":
            self.generate = saved_tensors.checkpointed(self.generator, segments)
            self.discriminate = saved_tensors.checkpointed(self.discriminator, segments)
        if mode.startswith("compiled"):
            self.generate = torch.compile(self.generator, dynamic=False)
            self.judge = torch.compile(self._judge, dynamic=False)

    def _judge(self, images, labels):
        logits = self.discriminate(images)
        return binary_cross_entropy_with_logits(logits, labels), logits

    def place(self, real, noise):
        """Tensors of one batch in the trainer's type and layout; noise becomes [n, 100, 1, 1]."""
        real = torch.as_tensor(real).to(self.dtype).contiguous(memory_format=self.layout)
        noise = torch.as_tensor(noise).to(self.dtype).reshape(len(noise), NOISE_CHANNELS, 1, 1)
        return real, noise.contiguous(memory_format=self.layout)

    def step(self, real, noise):
        """One discriminator update (real, then fake, as two batches) and one generator update through the new one.

        Returns the two losses and the mean logits of the discriminator's two passes, as tensors.
        """
        if self.host_copies is not None:
            with self.host_copies.hooks():
                return self._step(real, noise)
        return self._step(real, noise)

    def _step(self, real, noise):
        fake = self.generate(noise)
        self.discriminator_optimizer.zero_grad()
        real_loss, real_logits = self.judge(real, self.ones)
        real_loss.backward()
        fake_loss, fake_logits = self.judge(fake.detach(), self.zeros)
        fake_loss.backward()
        self.discriminator_optimizer.step()

        self.generator_optimizer.zero_grad()
        self.discriminator.requires_grad_(False)  # no gradients that nobody uses
        generator_loss, _ = self.judge(fake, self.ones)
        generator_loss.backward()
        self.generator_optimizer.step()
        self.discriminator.requires_grad_(True)
        return (real_loss + fake_loss).detach(), generator_loss.detach(), real_logits.detach(), fake_logits.detach()


def initialize(network):
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)


def load_weights(network, name, weights):
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            array = weights.get(f"{name}.{key}")
            if array is None or tuple(array.shape) != tuple(parameter.shape):
                found = "is missing" if array is None else f"has shape {list(array.shape)}"
                raise ValueError(f"weights: {name}.{key} {found}, expected shape {list(parameter.shape)}")
            parameter.copy_(torch.tensor(array))


def width_of(weights):
    """ngf = ndf of a set of weights."""
    return weights["discriminator.0.weight"].shape[0]


def read_weights(path):
    """Arrays by name from an .npz or .safetensors file, or from the two .onnx files of a folder."""
    path = pathlib.Path(path)
    if path.is_dir():
        for name in ("weights.safetensors", "weights.npz"):
            if (path / name).exists():
                return read_weights(path / name)
        return {
            **read_onnx_initializers(path / "generator.onnx", "generator"),
            **read_onnx_initializers(path / "discriminator.onnx", "discriminator"),
        }
    if path.suffix == ".npz":
        with numpy.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files}
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    raise ValueError(f"{path}: weights are read from .npz and .safetensors")


def read_safetensors(path):
    """float32 and float64 tensors of a safetensors file: u64 header length, JSON header, data (the format's README)."""
    content = path.read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + header_bytes])
    types = {"F32": "<f4", "F64": "<f8"}
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] in types:
            begin, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
            arrays[name] = numpy.frombuffer(content[begin:end], types[entry["dtype"]]).reshape(entry["shape"])
    return arrays


def write_safetensors(path, arrays):
    header, offset = {}, 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(numpy.ascontiguousarray(array, "<f4").tobytes())


def read_onnx_initializers(path, prefix):
    """float32 initializers of an ONNX file, named prefix.NAME. Reads the protobuf by hand: onnx.proto, ModelProto.graph
    = 7, GraphProto.initializer = 5, TensorProto dims = 1, data_type = 2 (1: float), name = 8, raw_data = 9."""
    arrays = {}
    for number, graph in protobuf_fields(path.read_bytes()):
        for kind, tensor in protobuf_fields(graph) if number == 7 else ():
            if kind != 5:
                continue
            shape, data_type, name, raw = [], 0, "", None
            for field, value in protobuf_fields(tensor):
                if field == 1:
                    shape += [value] if isinstance(value, int) else [item for item in varints(value)]
                elif field == 2:
                    data_type = value
                elif field == 8:
                    name = bytes(value).decode()
                elif field == 9:
                    raw = value
            if data_type == 1 and raw is not None:
                arrays[f"{prefix}.{name.removeprefix(prefix + '.')}"] = numpy.frombuffer(raw, "<f4").reshape(shape)
    return arrays


def varint(data, at):
    value, shift = 0, 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def varints(data):
    at = 0
    while at < len(data):
        value, at = varint(data, at)
        yield value


def protobuf_fields(data):
    """(field number, int or memoryview) of each field of a protobuf message."""
    data, at = memoryview(data), 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(data, at)
        else:
            length, at = varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value = data[at : at + length]
            at += length
        yield key >> 3, value
