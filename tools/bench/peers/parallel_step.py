#!/usr/bin/env python3
"""The DCGAN step of networks.py over several processes of one thread each, with PyTorch's DDP or FSDP on Gloo.

    parallel_step.py --ranks 2 --split ddp [--model dcgan64] [--width 64] [--batch 64] [--threads 1] [--steps 3] [--serve]

`--batch` is of all ranks together. Without --serve: takes --steps steps and prints one JSON line with the memory that they took, of
the rank that took most:
  import_bytes    resident after the imports, the meeting of the ranks and a step of a tiny network
  peak_bytes      the process at its fullest moment after that
  step_bytes      the difference: what this step adds to a process that has loaded PyTorch
With --serve: the protocol of step benchmarks (README.md). With one rank there is neither DDP nor FSDP.
"""

import argparse
import contextlib
import gc
import json
import math
import os
import pathlib
import sys
import time


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--split", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--model", default="dcgan64")
    parser.add_argument("--mode", choices=("eager", "channels-last"), default="eager", help="FSDP takes eager only")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--serve", action="store_true")
    arguments = parser.parse_args()
    if min(arguments.ranks, arguments.width, arguments.threads, arguments.steps) < 1 or arguments.batch < arguments.ranks:
        parser.error("numbers must be positive, and the batch at least the number of ranks")
    return arguments


ARGUMENTS = parse_arguments()
# Before torch is imported, as in step.py.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(ARGUMENTS.threads)
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import numpy  # noqa: E402
import torch  # noqa: E402
import torch.distributed as distributed  # noqa: E402
import torch.multiprocessing as multiprocessing  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

import networks  # noqa: E402


def of_process(key):
    """Bytes of VmRSS or VmHWM, proc(5)."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def wrapped(network):
    if ARGUMENTS.ranks == 1:
        return network
    if ARGUMENTS.split == "ddp":
        return DistributedDataParallel(network, gradient_as_bucket_view=True)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (ARGUMENTS.ranks,))
    for layer in network:
        if next(layer.parameters(), None) is not None:
            fully_shard(layer, mesh=mesh)
    return fully_shard(network, mesh=mesh)


class ParallelTrainer(networks.Trainer):
    """The step, with each gradient exchanged once."""

    def _step(self, real, noise):
        frozen = self.discriminator  # as the generator's judge: nothing of it is exchanged
        first_pass = contextlib.nullcontext
        if isinstance(self.discriminator, DistributedDataParallel):
            frozen, first_pass = self.discriminator.module, self.discriminator.no_sync
        fake = self.generate(noise)
        self.discriminator_optimizer.zero_grad()
        with first_pass():
            real_loss, real_logits = self.judge(real, self.ones)
            real_loss.backward()
        fake_loss, fake_logits = self.judge(fake.detach(), self.zeros)
        fake_loss.backward()
        self.discriminator_optimizer.step()

        self.generator_optimizer.zero_grad()
        sharded = ARGUMENTS.split == "fsdp" and ARGUMENTS.ranks > 1  # gathered copies keep the requires_grad they were made with
        if not sharded:
            frozen.requires_grad_(False)
        generator_loss = nn.functional.binary_cross_entropy_with_logits(frozen(fake), self.ones)
        generator_loss.backward()
        self.generator_optimizer.step()
        if not sharded:
            frozen.requires_grad_(True)
        return (real_loss + fake_loss).detach(), generator_loss.detach(), real_logits.detach(), fake_logits.detach()


def emit(output, record):
    print(json.dumps(record), file=output, flush=True)


def from_rank_0(number):
    """`number` of rank 0, on all ranks. The others sleep here between rounds."""
    if ARGUMENTS.ranks == 1:
        return number
    message = torch.tensor([number], dtype=torch.float64)
    distributed.broadcast(message, 0)
    return message.item()


def of_all(numbers, operation):
    if ARGUMENTS.ranks == 1:
        return numbers
    message = torch.tensor(numbers, dtype=torch.float64)
    distributed.all_reduce(message, operation)
    return message.tolist()


def prepared(model, width, batch, rank):
    trainer = ParallelTrainer(model, width, batch, ARGUMENTS.mode, wrap=wrapped)
    channels, size = networks.SIZES[model]
    random = numpy.random.default_rng(rank)
    real = numpy.tanh(random.standard_normal((batch, channels, size, size), dtype=numpy.float32))
    noise = random.standard_normal((batch, networks.NOISE_CHANNELS), dtype=numpy.float32)
    return trainer, trainer.place(real, noise)


def train(rank, port):
    # Only our JSON lines go to standard output; whatever libraries print goes to standard error.
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(ARGUMENTS.threads)
    if ARGUMENTS.ranks > 1:
        cores = sorted(os.sched_getaffinity(0))
        if ARGUMENTS.ranks * ARGUMENTS.threads <= len(cores):
            os.sched_setaffinity(0, cores[rank * ARGUMENTS.threads : (rank + 1) * ARGUMENTS.threads])
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        distributed.init_process_group("gloo", rank=rank, world_size=ARGUMENTS.ranks)
    batch = ARGUMENTS.batch * (rank + 1) // ARGUMENTS.ranks - ARGUMENTS.batch * rank // ARGUMENTS.ranks
    # What a first step loads is the library's: a tiny one comes before the memory is read.
    trainer, batches = prepared("dcgan16", 8, batch, rank)
    trainer.step(*batches)
    del trainer, batches
    gc.collect()
    before = of_process("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    trainer, batches = prepared(ARGUMENTS.model, ARGUMENTS.width, batch, rank)
    losses = []
    for _ in range(ARGUMENTS.steps):
        losses.append([float(loss) for loss in trainer.step(*batches)[:2]])
    if not all(math.isfinite(loss) for pair in losses for loss in pair):
        raise SystemExit(f"losses are not finite: {losses}")
    if ARGUMENTS.split == "ddp":  # all ranks must have the same weights
        total = sum(float(weight.detach().double().sum()) for weight in trainer.generator.parameters())
        if of_all([total], distributed.ReduceOp.MAX) != of_all([total], distributed.ReduceOp.MIN):
            raise SystemExit("ranks have different weights")
    version = torch.__version__
    if not ARGUMENTS.serve:
        peak = of_process("VmHWM")
        most = distributed.ReduceOp.MAX
        peak, before, step = of_all([peak, before, peak - before], most)
        if rank == 0:
            emit(output, {"name": "parallel_step", "version": version, "ranks": ARGUMENTS.ranks, "split": ARGUMENTS.split,
                          "model": ARGUMENTS.model, "width": ARGUMENTS.width, "batch": ARGUMENTS.batch, "import_bytes": int(before),
                          "peak_bytes": int(peak), "step_bytes": int(step), "losses": losses})
    else:
        if rank == 0:
            emit(output, {"ready": True, "losses": losses, "version": version})
        while True:
            count = 0
            if rank == 0:
                words = sys.stdin.readline().split()
                count = int(words[1]) if len(words) == 2 and words[0] == "run" else 0
            count = int(from_rank_0(count))
            if count == 0:
                break
            samples = []
            for _ in range(count):
                begin = time.perf_counter()
                trainer.step(*batches)
                samples.append(time.perf_counter() - begin)
            if rank == 0:
                emit(output, {"samples_s": samples})
    if ARGUMENTS.ranks > 1:
        distributed.destroy_process_group()


def main():
    port = 20000 + os.getpid() % 20000
    # Rank 0 is this process: it has standard input, and its memory is what others see.
    others = []
    context = multiprocessing.get_context("spawn")
    for rank in range(1, ARGUMENTS.ranks):
        others.append(context.Process(target=train, args=(rank, port), daemon=True))
        others[-1].start()
    train(0, port)
    for other in others:
        other.join()


if __name__ == "__main__":
    main()
