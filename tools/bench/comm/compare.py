#!/usr/bin/env python3
"""Gantry's collectives beside those of other libraries of this machine, in one run.

  compare.py [--bin build/release/bin] [--ranks 2] [--rounds 5] [--largest BYTES] [--json] [--real-time]

Peers: Open MPI (its own shared memory, UCX, and UCX with what is known to help it), where mpicc and mpirun are there; PyTorch's Gloo, where
the python3 of PATH has torch. What is not there is said. Each program checks every size before it times it. `ratio` is the best peer's
median time by ours: above 1 Gantry is faster. --real-time runs all of them, ours too, under SCHED_RR (needs the right to), so that other
work on the machine does not count.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
# Open MPI 4.1 with UCX: the heap is kept (else every call of 64 MiB faults its buffer in anew), reduce-scatter and all-gather for all_reduce.
UCX = ["--mca", "pml", "ucx", "--mca", "pml_ucx_tls", "any", "--mca", "pml_ucx_devices", "any"]
TUNED = UCX + ["--mca", "coll_tuned_use_dynamic_rules", "1", "--mca", "coll_tuned_allreduce_algorithm", "6",
         "-x", "MALLOC_TRIM_THRESHOLD_=4294967296", "-x", "MALLOC_MMAP_MAX_=0"]


def rows_of(command, environment=None):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=1200, env=environment)
    if done.returncode != 0:
        print(f"{' '.join(command[:6])} ... ended with {done.returncode}: {done.stderr.strip()[-300:]}", file=sys.stderr)
        return None
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(row["name"], row["bytes"]): row for row in rows}


def peers(arguments, first):
    """Name and rows of each peer that is there."""
    found = {}
    mpicc, mpirun = shutil.which("mpicc"), shutil.which("mpirun")
    if mpicc and mpirun:
        with tempfile.TemporaryDirectory() as folder:
            program = os.path.join(folder, "mpi_bench")
            subprocess.run([mpicc, "-O3", "-o", program, os.path.join(HERE, "mpi_bench.c")], check=True)
            few_cores = arguments.ranks > len(os.sched_getaffinity(0))
            placing = ["--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"] if few_cores else ["--bind-to", "core"]
            root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
            for name, extra in (("Open MPI", ["--mca", "pml", "ob1"]), ("Open MPI, UCX", UCX), ("Open MPI, UCX tuned", TUNED)):
                rows = rows_of(first + [mpirun] + root + placing + extra + ["-n", str(arguments.ranks), program, str(arguments.rounds),
                                                                           str(arguments.largest)])
                if rows:
                    found[name] = rows
                else:
                    print(f"peer {name}: did not run here", file=sys.stderr)
    else:
        print("peer Open MPI: not here (mpicc and mpirun)", file=sys.stderr)
    for python in ("python3", "/usr/bin/python3"):
        if subprocess.run([python, "-c", "import torch.distributed"], stderr=subprocess.DEVNULL).returncode == 0:
            rows = rows_of(first + [python, os.path.join(HERE, "gloo_bench.py"), str(arguments.ranks), str(arguments.rounds),
                                    str(arguments.largest)])
            if rows:
                found["PyTorch, Gloo"] = rows
            break
    else:
        print("peer PyTorch: not here", file=sys.stderr)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="build/release/bin")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--largest", type=int, default=64 << 20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--real-time", action="store_true")
    arguments = parser.parse_args()
    first = ["chrt", "-r", "1"] if arguments.real_time else []
    command = first + [os.path.join(arguments.bin, "comm_bench"), "--json", "--ranks", str(arguments.ranks), "--rounds", str(arguments.rounds),
                       "--largest", str(arguments.largest)]
    ours = rows_of(command)
    if ours is None:
        return 1
    found = peers(arguments, first)
    again = rows_of(command)  # before and after: the machine may have changed between
    for key, row in (again or {}).items():
        if key in ours and row["us"] < ours[key]["us"]:
            ours[key] = row
    names = list(found)
    if not arguments.json:
        print(f"{'':20} {'ranks':>5} {'bytes':>10} {'gantry us':>12} " + " ".join(f"{name:>20}" for name in names) + f" {'ratio':>8}")
    for (name, size), row in ours.items():
        times = {peer: found[peer][(name, size)]["us"] for peer in names if (name, size) in found[peer]}
        if name == "all_reduce_private":  # peers know one kind of memory only
            times = {peer: found[peer][("all_reduce", size)]["us"] for peer in names if ("all_reduce", size) in found[peer]}
        best = min(times.values()) if times else None
        ratio = best / row["us"] if best and row["us"] > 0 else None
        if arguments.json:
            print(json.dumps({**row, "peers_us": times, "ratio": ratio}))
        else:
            cells = " ".join(f"{times[peer]:20.2f}" if peer in times else f"{'':20}" for peer in names)
            print(f"{name:20} {arguments.ranks:5} {size:10} {row['us']:12.2f} {cells} {ratio or float('nan'):8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
