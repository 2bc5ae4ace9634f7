"""What PyTorch offers to make a step smaller, and how many bytes a step has live: for step.py and tools/bench/offload."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.checkpoint import checkpoint_sequential

MEMORY = ("plain", "checkpoint", "save-on-cpu")


class HostCopies:
    """torch.autograd.graph.save_on_cpu, whose tensors are copies here too: for a tensor that is on the CPU already, .cpu() is the
    tensor itself and nothing would be saved. With pin_memory=True it makes an empty tensor and copies, which is done here."""

    def __init__(self):
        self.live_bytes = self.peak_bytes = 0
        self.storages = set()  # of the copies: not on the "device"

    def _freed(self, key, count):
        self.storages.discard(key)
        self.live_bytes -= count

    def pack(self, tensor):
        with _disable_current_modes():  # not a tensor of the device
            copy = torch.empty(tensor.size(), dtype=tensor.dtype, layout=tensor.layout)
            storage = copy.untyped_storage()
            self.storages.add(id(storage))
            self.live_bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            weakref.finalize(storage, self._freed, id(storage), storage.nbytes())
            copy.copy_(tensor)
        return copy

    @staticmethod
    def unpack(copy):
        return copy.clone()  # back to where kernels read it

    def hooks(self):
        return torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors that ops made while it was on, at the fullest moment; those in `host` apart. What oneDNN takes inside of
    an op is not seen."""

    def __init__(self, host=None):
        super().__init__()
        self.host, self.known = host, {}
        self.live_bytes = self.peak_bytes = 0

    def _freed(self, key):
        self.live_bytes -= self.known.pop(key, 0)

    def _note(self, tensor, made):
        if not isinstance(tensor, torch.Tensor):
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self.known or (self.host is not None and key in self.host.storages):
            return
        self.known[key] = storage.nbytes() if made else 0
        self.live_bytes += self.known[key]
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._freed, key)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        for argument in torch.utils._pytree.tree_leaves((arguments, keywords or {})):
            self._note(argument, made=False)  # what was there before (weights, moments, the batch) is no part of it
        result = function(*arguments, **(keywords or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            self._note(tensor, made=True)
        return result


def checkpointed(network, segments):
    """network(x) in so many parts, each of which keeps its input alone and runs again in backward."""
    return lambda x: checkpoint_sequential(network, segments, x, use_reentrant=False, preserve_rng_state=False)
