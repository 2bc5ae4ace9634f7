"""What `comm_bench --only link` measures, by PyTorch's Gloo: link_gloo.py RANK INTERFACE ADDRESS_OF_RANK_0 [ROUNDS]. One rank of two."""
import json
import os
import sys
import time

import torch
import torch.distributed as dist


def median(samples):
    return sorted(samples)[len(samples) // 2]


def compute(rounds):
    """Arithmetic on a small tensor, which stays in the cache."""
    x = torch.ones(4096)
    for _ in range(rounds):
        x = x * 1.0000001 + 1e-9
    return x


def main():
    rank, interface, address = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    measured = int(sys.argv[4]) if len(sys.argv) > 4 else 5
    os.environ.update(MASTER_ADDR=address, MASTER_PORT="4712", GLOO_SOCKET_IFNAME=interface)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    begin = time.perf_counter()
    compute(20000)
    per_round = (time.perf_counter() - begin) / 20000
    for size in (256 << 10, 2 << 20, 16 << 20):
        data = torch.empty(size // 4)

        def start():
            dist.barrier()
            data.fill_(rank + 1)
            dist.barrier()
            return time.perf_counter()

        alone, computing, both, beside = [], [], [], []
        for _ in range(measured + 1):
            begin = start()
            dist.all_reduce(data)
            alone.append(time.perf_counter() - begin)
            assert bool((data == 3).all()), "the sum over the link is wrong"
        exchange = torch.tensor([median(alone[1:])], dtype=torch.float64)
        dist.all_reduce(exchange, op=dist.ReduceOp.MAX)
        rounds = int(exchange.item() / per_round)
        for _ in range(measured + 1):
            begin = start()
            compute(rounds)
            computing.append(time.perf_counter() - begin)
            begin = start()
            work = dist.all_reduce(data, async_op=True)
            compute(rounds)
            beside.append(time.perf_counter() - begin)
            work.wait()
            both.append(time.perf_counter() - begin)
        hidden = 1 - (median(both[1:]) - median(computing[1:])) / exchange.item()
        slower = median(beside[1:]) / median(computing[1:]) - 1
        if rank == 0:
            print(json.dumps({"name": "link_all_reduce", "ranks": 2, "bytes": size, "us": exchange.item() * 1e6, "hidden": hidden,
                              "slower": slower}), flush=True)
    dist.destroy_process_group()


main()
