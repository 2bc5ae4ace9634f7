#!/usr/bin/env python3
"""Times full training steps of a DCGAN in PyTorch on the CPU. README.md beside this file says what is measured."""

import argparse
import json
import os
import pathlib
import resource
import statistics
import sys
import time

MODES = ("eager", "channels-last", "compiled", "compiled-channels-last")
MINIMUM_TOLERANCE = 1e-5


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("dcgan32", "dcgan64"), required=True)
    parser.add_argument("--mode", choices=MODES, default="eager")
    parser.add_argument(
        "--memory",
        choices=("plain", "checkpoint", "save-on-cpu"),
        default="plain",
        help="torch.utils.checkpoint, or saved tensors copied to the host",
    )
    parser.add_argument("--segments", type=int, default=2, help="parts of each network with --memory checkpoint")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=64, help="ngf = ndf")
    parser.add_argument("--warmup", type=int, default=3, help="untimed steps, after the check")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument(
        "--data", type=pathlib.Path, metavar="DIR", help="real.npy, noise.npy, weights, case.json: check against them"
    )
    parser.add_argument(
        "--weights", type=pathlib.Path, metavar="FILE", help=".npz or .safetensors in place of those in DIR"
    )
    parser.add_argument("--check-steps", type=int, default=3, help="steps of DIR that are compared")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of text")
    parser.add_argument(
        "--serve", action="store_true", help="wait for `run K` lines on standard input (implies --json)"
    )
    parser.add_argument(
        "--write-data", type=pathlib.Path, metavar="DIR", help="write data and expected losses for --data and stop"
    )
    arguments = parser.parse_args()
    for name, least in (
        ("threads", 1),
        ("batch", 1),
        ("width", 1),
        ("warmup", 0),
        ("iterations", 1),
        ("check_steps", 1),
    ):
        if getattr(arguments, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    return arguments


ARGUMENTS = parse_arguments()
# Before torch is imported: threads of OpenMP and MKL, no GPU, and no compiler processes that outlive the compilation.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(ARGUMENTS.threads)
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# Several processes take turns on a few cores: threads that spin at barriers would keep each other off them.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# Only our JSON lines go to standard output; whatever libraries print goes to standard error.
OUTPUT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import numpy  # noqa: E402
import torch  # noqa: E402

import networks  # noqa: E402
import saved_tensors  # noqa: E402


def emit(record):
    print(json.dumps(record), file=OUTPUT, flush=True)


def identity():
    return {
        "name": "step",
        "peer": "pytorch",
        "version": torch.__version__,
        "model": ARGUMENTS.model,
        "mode": ARGUMENTS.mode,
        "memory": ARGUMENTS.memory,
        "threads": ARGUMENTS.threads,
        "batch": ARGUMENTS.batch,
    }


def made_up_batches(count, batch):
    """Smooth random pictures in [-1, 1], [count, batch, c, h, w], and normal noise, [count, batch, 100]."""
    channels, size = networks.SIZES[ARGUMENTS.model]
    random = numpy.random.default_rng(1)
    coarse = random.standard_normal((count * batch, channels, 8, 8)).astype(numpy.float32)
    smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse), size=(size, size), mode="bilinear")
    real = torch.tanh(smooth).reshape(count, batch, channels, size, size).numpy()
    return real, random.standard_normal((count, batch, networks.NOISE_CHANNELS)).astype(numpy.float32)


def load_case():
    """What --data and --weights say: (real, noise, weights, expected) with None for what is absent."""
    weights = networks.read_weights(ARGUMENTS.weights) if ARGUMENTS.weights else None
    if ARGUMENTS.data is None:
        return None, None, weights, None
    real, noise = numpy.load(ARGUMENTS.data / "real.npy"), numpy.load(ARGUMENTS.data / "noise.npy")
    if real.shape[:2] != noise.shape[:2] or real.shape[2:] != (
        networks.SIZES[ARGUMENTS.model][0],
        *[networks.SIZES[ARGUMENTS.model][1]] * 2,
    ):
        raise ValueError(
            f"{ARGUMENTS.data}: real.npy {real.shape} and noise.npy {noise.shape} do not fit {ARGUMENTS.model}"
        )
    expected = None
    if (ARGUMENTS.data / "case.json").exists():
        expected = json.loads((ARGUMENTS.data / "case.json").read_text())
    return real, noise, networks.read_weights(ARGUMENTS.data) if weights is None else weights, expected


def check(trainer, batches, expected):
    """Trains `check_steps` steps and compares their losses with `expected`; returns [[discriminator, generator], ...].

    Without expected values the losses must be finite and the discriminator must have learned something.
    """
    steps = min(ARGUMENTS.check_steps, len(batches)) if expected else max(ARGUMENTS.check_steps, 3)
    losses = []
    for index in range(steps):
        discriminator, generator, _, _ = trainer.step(*batches[index % len(batches)])
        losses.append([float(discriminator), float(generator)])
    if not numpy.isfinite(losses).all():
        raise ValueError(f"losses are not finite: {losses}")
    if expected is None:
        if min(loss for loss, _ in losses[1:]) >= losses[0][0]:
            raise ValueError(f"the discriminator's loss does not fall: {losses}")
        return losses
    columns = [expected["columns"].index(name) for name in ("discriminator_loss", "generator_loss")]
    for index, pair in enumerate(losses[: len(expected["log_float64"])]):
        # The rule of such cases: ten times the drift of PyTorch's own float32 from float64 at that step.
        tolerance = max(10 * expected["float32_vs_float64"]["max_abs_log"][index], MINIMUM_TOLERANCE)
        for column, loss in zip(columns, pair):
            reference = expected["log_float64"][index][column]
            if abs(loss - reference) > tolerance:
                name = expected["columns"][column]
                raise ValueError(f"step {index + 1}: {name} is {loss:.7f}, expected {reference:.7f} +- {tolerance:.1e}")
    return losses


def prepare():
    """A checked and warmed-up trainer, its batches, and a record for the ready line."""
    real, noise, weights, expected = load_case()
    fits = weights is None or networks.width_of(weights) == ARGUMENTS.width
    fits = fits and (real is None or real.shape[1] == ARGUMENTS.batch)
    record = {}
    if not fits:  # a small case checks the arithmetic, and the job of full size is timed
        small = networks.Trainer(ARGUMENTS.model, networks.width_of(weights), real.shape[1], ARGUMENTS.mode, weights)
        batches = [small.place(*pair) for pair in zip(real, noise)]
        record = {"losses": check(small, batches, expected), "check": "case of another size"}
        real = noise = weights = expected = None
    elif expected is not None:
        record["check"] = "case"
    else:
        record["check"] = "finite, falling"
    if real is None:
        real, noise = made_up_batches(4, ARGUMENTS.batch)
    trainer = networks.Trainer(
        ARGUMENTS.model,
        ARGUMENTS.width,
        ARGUMENTS.batch,
        ARGUMENTS.mode,
        weights,
        memory=ARGUMENTS.memory,
        segments=ARGUMENTS.segments,
    )
    batches = [trainer.place(*pair) for pair in zip(real, noise)]
    losses = check(trainer, batches, expected)
    record.setdefault("losses", losses)
    record.setdefault("first_losses", losses)
    if not ARGUMENTS.mode.startswith("compiled"):
        record.update(live_bytes(trainer, batches[0]))
    timed_steps(trainer, batches, ARGUMENTS.warmup)
    return trainer, batches, record


def live_bytes(trainer, batch):
    """Of one step, untimed: bytes that it has live at its fullest moment, and bytes of copies on the host."""
    with saved_tensors.LiveBytes(trainer.host_copies) as counter:
        trainer.step(*batch)
    host = 0 if trainer.host_copies is None else trainer.host_copies.peak_bytes
    return {"step_peak_bytes": counter.peak_bytes, "host_peak_bytes": host}


def timed_steps(trainer, batches, count):
    samples = []
    for index in range(count):
        real, noise = batches[index % len(batches)]
        start = time.perf_counter()
        trainer.step(real, noise)
        samples.append(time.perf_counter() - start)
    return samples


def peak_rss_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(trainer, batches, record):
    emit({"ready": True, **identity(), **record, "peak_rss_bytes": peak_rss_bytes()})
    for line in sys.stdin:
        words = line.split()
        if words == ["quit"]:
            return
        if len(words) == 2 and words[0] == "run" and words[1].isdecimal() and 0 < int(words[1]) <= 100000:
            emit({"samples_s": timed_steps(trainer, batches, int(words[1]))})
        elif words:
            emit({"error": f"unknown command {line.strip()!r}; known: run K, quit"})


def measure(trainer, batches, record):
    samples = timed_steps(trainer, batches, ARGUMENTS.iterations)
    median = statistics.median(samples)
    result = {
        **identity(),
        "samples_s": samples,
        "median_s": median,
        "min_s": min(samples),
        "images_per_s": ARGUMENTS.batch / median,
        "peak_rss_bytes": peak_rss_bytes(),
        **record,
    }
    if ARGUMENTS.json:
        emit(result)
    else:
        print(
            f"pytorch {torch.__version__} {ARGUMENTS.model} {ARGUMENTS.mode} {ARGUMENTS.threads} thread(s): "
            f"median {median:.4f} s, best {min(samples):.4f} s, {result['images_per_s']:.1f} images/s, "
            f"peak {result['peak_rss_bytes'] / 1e6:.0f} MB, "
            f"check: {record['check']}",
            file=OUTPUT,
        )


def write_data(folder):
    """A case in the form that --data reads, with the losses of the same steps in float64."""
    folder.mkdir(parents=True, exist_ok=True)
    real, noise = made_up_batches(4, ARGUMENTS.batch)
    numpy.save(folder / "real.npy", real)
    numpy.save(folder / "noise.npy", noise)
    logs = {}
    for dtype in (torch.float64, torch.float32):
        trainer = networks.Trainer(ARGUMENTS.model, ARGUMENTS.width, ARGUMENTS.batch, "eager", dtype=dtype)
        if dtype == torch.float32:
            arrays = {
                f"{name}.{key}": value.detach().numpy().copy()
                for name in ("generator", "discriminator")
                for key, value in getattr(trainer, name).named_parameters()
            }
            networks.write_safetensors(folder / "weights.safetensors", arrays)
        batches = [trainer.place(*pair) for pair in zip(real, noise)]
        logs[dtype] = [[float(value.mean()) for value in trainer.step(*pair)] for pair in batches]
    drift = numpy.abs(numpy.array(logs[torch.float64]) - numpy.array(logs[torch.float32])).max(axis=1)
    case = {
        "name": ARGUMENTS.model,
        "steps": len(real),
        "batch": ARGUMENTS.batch,
        "loss": "nonsaturating",
        "optimizer": {
            "name": "adam",
            "lr": networks.LEARNING_RATE,
            "beta1": networks.BETAS[0],
            "beta2": networks.BETAS[1],
            "epsilon": 1e-8,
        },
        "columns": ["discriminator_loss", "generator_loss", "mean_logit_real", "mean_logit_fake"],
        "log_float64": logs[torch.float64],
        "log_float32": logs[torch.float32],
        "float32_vs_float64": {"max_abs_log": drift.tolist()},
        "made_with": f"PyTorch {torch.__version__}",
    }
    (folder / "case.json").write_text(json.dumps(case, indent=1) + "\n")


def main():
    torch.set_num_threads(ARGUMENTS.threads)
    if ARGUMENTS.write_data:
        return write_data(ARGUMENTS.write_data)
    try:
        trainer, batches, record = prepare()
    except (
        Exception
    ) as error:  # a failed check or compilation is a result too, and the driver wants it on standard output
        reason = f"{type(error).__name__}: {str(error).strip()}"[:2000]
        emit({"error": reason, **identity()}) if ARGUMENTS.json or ARGUMENTS.serve else print(reason, file=sys.stderr)
        sys.exit(1)
    (serve if ARGUMENTS.serve else measure)(trainer, batches, record)


if __name__ == "__main__":
    main()
