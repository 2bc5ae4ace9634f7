#!/usr/bin/env python3
"""Two hosts with a slow link between them, and what Gantry and PyTorch's Gloo get out of it.

  link.py [--bin build/release/bin] [--rates 1gbit,4gbit] [--rounds 5] [--transport tcp|ucx] [--python PYTHON] [--json]

The hosts are network namespaces joined by a veth pair that tbf holds to a rate (needs the right to make them, and `ip` and `tc`). For each
size: the part of the line rate that an all-reduce of f32 between two ranks reaches (bytes of the buffer, which is what each way of the link
carries at least; the rate counts packets with their headers, so that about 95.6 % is all there is), how much of it is hidden behind compute
that takes as long, and how much slower that compute is. Each rank has one core. Results are checked before they are timed. `ratio`: the
peer's time by ours. `link_floor` is what the same bytes cost compute where threads do nothing but send and receive over a plain socket.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.join(HERE, "..", "..", "lib"))
from two_hosts import ADDRESSES, HOSTS, LINKS, make_hosts, remove_hosts  # noqa: E402


def rows_of(commands):
    """Both ranks; the rows that rank 0 prints."""
    processes = [subprocess.Popen(["ip", "netns", "exec", host, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                  env=dict(os.environ, **environment))
                 for host, (command, environment) in zip(HOSTS, commands)]
    outputs = [process.communicate(timeout=600) for process in processes]
    for process, (_, errors) in zip(processes, outputs):
        if process.returncode != 0:
            print(f"{process.args[4]}: ended with {process.returncode}: {errors.strip()[-300:]}", file=sys.stderr)
            return {}
    rows = [json.loads(line) for line in outputs[0][0].splitlines() if line.startswith("{")]
    return {(row["name"], row["bytes"]): row for row in rows}


def gantry(arguments):
    with tempfile.TemporaryDirectory() as folder:
        key = os.path.join(folder, "key")
        with open(os.open(key, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(os.urandom(32).hex())
        program = [os.path.join(arguments.bin, "comm_bench"), "--only", "link", "--json", "--rounds", str(arguments.rounds)]
        transport = ["--transport", arguments.transport] if arguments.transport else []
        return rows_of([(program + transport, {"GANTRY_BENCH_RANK": "1", "GANTRY_RANK": str(rank), "GANTRY_SIZE": "2", "GANTRY_KEY_FILE": key,
                                   "GANTRY_RUN_DIR": os.path.join(folder, str(rank)), "GANTRY_RENDEZVOUS": f"tcp:{ADDRESSES[0]}:4711"})
                        for rank in (0, 1)])


def gloo(arguments):
    if subprocess.run([arguments.python, "-c", "import torch.distributed"], stderr=subprocess.DEVNULL).returncode != 0:
        print(f"peer PyTorch, Gloo: {arguments.python} has no torch", file=sys.stderr)
        return {}
    return rows_of([([arguments.python, os.path.join(HERE, "link_gloo.py"), str(rank), LINKS[rank], ADDRESSES[0], str(arguments.rounds)], {})
                    for rank in (0, 1)])


def floor(arguments):
    return rows_of([([os.path.join(arguments.bin, "socket_floor"), str(rank), ADDRESSES[0]], {}) for rank in (0, 1)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.path.join(HERE, "..", "..", "..", "build", "release", "bin"))
    parser.add_argument("--rates", default="1gbit,4gbit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--transport", choices=("tcp", "ucx"))
    parser.add_argument("--python", default="python3")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    for rate in arguments.rates.split(","):
        bits_per_us = float(rate.removesuffix("gbit")) * 1e3
        remove_hosts()
        try:
            make_hosts(rate)
            ours, theirs = gantry(arguments) | floor(arguments), gloo(arguments)
        except OSError as error:
            sys.exit(f"link.py: {error}")
        finally:
            remove_hosts()
        for (name, size), row in ours.items():
            peer = theirs.get((name, size))
            line_rate = size * 8 / row["us"] / bits_per_us if "slower" in row else None
            if arguments.json:
                print(json.dumps({"name": name, "ranks": 2, "rate": rate, "bytes": size, "us": row["us"], "line_rate": line_rate,
                                  "hidden": row.get("hidden"), "slower": row.get("slower"), "ratio": peer["us"] / row["us"] if peer else None}))
                continue
            text = f"{rate} {name:20} {size >> 10:6} KiB {row['us'] / 1e3:9.2f} ms"
            if line_rate is not None:
                text += f", {100 * line_rate:5.1f} % of the rate, compute {100 * row['slower']:+5.1f} %"
            if "hidden" in row:
                text += f", {100 * row['hidden']:5.1f} % hidden"
            if peer:
                text += (f" | Gloo {peer['us'] / 1e3:9.2f} ms, {100 * size * 8 / peer['us'] / bits_per_us:5.1f} %, {100 * peer['hidden']:5.1f} % "
                         f"hidden, compute {100 * peer['slower']:+5.1f} %, ratio {peer['us'] / row['us']:.2f}")
            print(text, flush=True)


if __name__ == "__main__":
    main()
