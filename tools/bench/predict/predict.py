#!/usr/bin/env python3
"""Predicted against measured seconds of a step: each family at 1, 2 and 4 ranks of one thread each, with costs that `gantry calibrate` measures
in the same minute. Prints a Markdown table. Standard library only.

    tools/bench/predict/predict.py [--program build/release/bin/gantry] [--steps 12] [--families dcgan,sngan]
"""
import argparse
import json
import os
import random
import statistics
import struct
import subprocess
import tempfile

RUN = """[model]
family = "{family}"
image_size = 32
width = {width}
[data]
path = "images.npy"
[train]
batch = {batch}
steps = {steps}
threads = 1
[output]
log_every = 1
sample_every = 1000000
checkpoint_every = 1000000
"""


def write_images(path):
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (64, 3, 32, 32), }"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    random.seed(1)
    count = 64 * 3 * 32 * 32
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
        file.write(struct.pack(f"<{count}f", *(random.uniform(-1, 1) for _ in range(count))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/release/bin/gantry")
    parser.add_argument("--families", default="dcgan,wgan-gp,sngan,r3gan")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=32)
    options = parser.parse_args()
    program = os.path.abspath(options.program)
    print("| family | ranks | split | predicted ms | median ms | least ms | predicted / median | predicted / least |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="gantry-predict-") as folder:
        def gantry(*arguments):
            done = subprocess.run([program, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=600)
            if done.returncode != 0:
                raise SystemExit(f"gantry {arguments}: {done.stderr}")
            return done.stdout

        write_images(os.path.join(folder, "images.npy"))
        for family in options.families.split(","):
            with open(os.path.join(folder, "run.toml"), "w") as file:
                file.write(RUN.format(family=family, width=options.width, batch=options.batch, steps=options.steps))
            for ranks, split in ((1, "batch"), (2, "batch"), (2, "space"), (2, "batch+shard"), (4, "batch")):
                gantry("calibrate", "run.toml", "--ranks", ranks, "--parallel", split, "--threads", 1, "--out", f"{family}.toml")
                plan = json.loads(gantry("plan", "run.toml", "--ranks", ranks, "--parallel", split, "--machine", f"{family}.toml", "--json"))
                where = f"{family}-{ranks}-{split}"
                gantry("train", "run.toml", "--ranks", ranks, "--parallel", split, "--machine", f"{family}.toml", "--set", f"output.directory={where}")
                with open(os.path.join(folder, where, "metrics.jsonl")) as file:
                    seconds = [json.loads(line)["seconds"] - json.loads(line)["data_wait_seconds"] for line in file][2:]
                median, least = statistics.median(seconds), min(seconds)
                print(f"| {family} | {ranks} | {split} | {plan['seconds'] * 1e3:.1f} | {median * 1e3:.1f} | {least * 1e3:.1f} "
                      f"| {plan['seconds'] / median:.2f} | {plan['seconds'] / least:.2f} |", flush=True)


if __name__ == "__main__":
    main()
