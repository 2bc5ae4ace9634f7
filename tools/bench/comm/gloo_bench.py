"""What comm_bench measures, by PyTorch's Gloo: gloo_bench.py RANKS [ROUNDS] [LARGEST]. Starts its ranks itself; same method and rows."""
import json
import os
import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def measure(rank, ranks, rounds, largest, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    cores = sorted(os.sched_getaffinity(0))
    if ranks <= len(cores):
        os.sched_setaffinity(0, {cores[rank]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    size = 8
    while size <= largest:
        data = torch.empty(size // 4)
        data.fill_(rank + 1)
        dist.all_reduce(data)
        assert bool((data == ranks * (ranks + 1) // 2).all()), "all_reduce is wrong"
        repetitions = min(max((16 << 20) // max(size, 65536), 3), 100)
        alone, both = [], []
        for round_number in range(rounds + 1):
            dist.barrier()
            begin = time.perf_counter()
            for _ in range(repetitions):
                data.fill_(1)
            first = time.perf_counter() - begin
            dist.barrier()
            begin = time.perf_counter()
            for _ in range(repetitions):
                data.fill_(1)
                dist.all_reduce(data)
            second = time.perf_counter() - begin
            if round_number > 0:
                alone.append(first / repetitions * 1e6)
                both.append(second / repetitions * 1e6)
        alone.sort()
        both.sort()
        if rank == 0:
            row = {"name": "all_reduce", "ranks": ranks, "bytes": size, "us": both[rounds // 2] - alone[rounds // 2],
                   "best_us": both[0] - alone[0]}
            print(json.dumps(row), flush=True)
        size *= 2 if size < 1024 else 4
    dist.destroy_process_group()


if __name__ == "__main__":
    rank_count = int(sys.argv[1])
    round_count = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    largest_size = int(sys.argv[3]) if len(sys.argv) > 3 else 64 << 20
    multiprocessing.spawn(measure, (rank_count, round_count, largest_size, 20000 + os.getpid() % 20000), nprocs=rank_count)
