"""What the tests of the command line share: running the program, and small inputs. Python's standard library only."""
import json
import os
import random
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import unittest

GANTRY = os.environ["GANTRY_PROGRAM"]
REFERENCE = os.environ["GANTRY_REFERENCE_CASES"]
# A rank that gets no core for a second is not lost; tests of heartbeats say how long they wait for one.
HEARTBEATS = {"GANTRY_HEARTBEAT_TIMEOUT": "30"}
os.environ.update(HEARTBEATS)


def processes(marker):
    """Processes whose environment has `marker`, by rank; the launcher is -1."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                variables = file.read().split(b"\0")
        except OSError:
            continue
        if marker.encode() not in variables:
            continue
        rank = next((int(text.split(b"=")[1]) for text in variables if text.startswith(b"GANTRY_RANK=")), -1)
        found[rank] = int(pid)
    return found


def free_port():
    """Below those that the system gives to connections, so that none of them takes it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


def end(process):
    with process:  # closes its pipes, too
        process.kill()


class GantryTestCase(unittest.TestCase):
    """Each test has an empty folder, `self.folder`, and is in it."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="gantry-cli-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, content):
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
        return path

    def popen(self, *command, **more):
        """A process with pipes, in the test's folder, that does not outlive the test. `more`: for subprocess.Popen."""
        process = subprocess.Popen([str(part) for part in command], **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
                                                                      "text": True, "cwd": self.folder, **more})
        self.addCleanup(end, process)
        return process

    def assert_no_processes(self, marker):
        """The kernel takes a moment to end what was killed."""
        deadline = time.monotonic() + 30
        while processes(marker) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual(processes(marker), {}, "processes are left behind")

    def run_gantry(self, *arguments, expect=0, words=()):
        """The finished program; its exit code must be `expect` and its stderr have all `words`."""
        done = subprocess.run([GANTRY, *map(str, arguments)], capture_output=True, text=True, cwd=self.folder, timeout=250,
                              stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, expect, f"gantry {arguments}\n{done.stdout}\n{done.stderr}")
        for word in words:
            self.assertIn(word, done.stderr)
        if expect not in (0, 1):
            self.assertRegex(done.stderr, r"(?m)^(\[\d+\] )?gantry: ")
        return done

    def copy_case(self, name, **changes):
        """A copy of a reference case, with fields of case.json changed; a value of `...` removes the field."""
        target = self.path(name)
        shutil.copytree(os.path.join(REFERENCE, name), target)
        path = os.path.join(target, "case.json")
        with open(path) as file:
            case = json.load(file)
        for field, value in changes.items():
            if value is ...:
                case.pop(field)
            else:
                case[field] = value
        os.chmod(path, 0o644)
        with open(path, "w") as file:
            json.dump(case, file)
        return target

    def write_npy(self, name, shape, values, kind="<f4"):
        header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
        header += " " * (-(len(header) + 11) % 64) + "\n"
        code = {"<f4": "f", "|u1": "B"}[kind]
        return self.write(name, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() +
                          struct.pack(f"<{len(values)}{code}", *values))

    def write_run(self, folder="out", **train):
        """A run file for a very small DCGAN on random images."""
        generator = random.Random(1)
        images = self.write_npy("images.npy", (40, 1, 16, 16), [generator.uniform(-1, 1) for _ in range(40 * 256)])
        settings = {"batch": 4, "steps": 6, "seed": 5, **train}
        lines = [f"{key} = {value}" for key, value in settings.items()]
        return self.write("run.toml", f"""
[model]
family = "dcgan"
image_size = 16
width = 8
latent = 4
[data]
path = "{images}"
[train]
""" + "\n".join(lines) + f"""
[output]
directory = "{self.path(folder)}"
log_every = 1
checkpoint_every = 1000000000
sample_every = 1000000000
sample_count = 4
""")

    def checkpoints(self, folder="out"):
        path = self.path(folder)
        return sorted(name for name in os.listdir(path) if re.fullmatch(r"checkpoint-\d+\.safetensors", name))


class JobTestCase(GantryTestCase):
    """Jobs of several processes, which are known by a variable of their environment."""

    def setUp(self):
        super().setUp()
        self.marker = f"GANTRY_TEST_MARKER={self.folder}"
        self.environment = dict(os.environ, GANTRY_TEST_MARKER=self.folder)

    def start(self, *arguments, **more):
        return self.popen(GANTRY, *arguments, env=self.environment, **more)

    def ended(self, process, expect=0):
        out, error = process.communicate(timeout=240)
        self.assertEqual(process.returncode, expect, out + (error or "where it was told to write"))
        self.assert_no_processes(self.marker)
        return out, error

    def wait_for(self, condition, process, may_end=False, pause=0.01):
        """Until `condition`, or, where it may end, the end of `process`."""
        end = time.monotonic() + 120
        while not condition():
            if process.poll() is not None:
                if may_end:
                    return
                self.fail("the job has ended: " + (process.stderr.read() if process.stderr else ""))
            self.assertLess(time.monotonic(), end)
            time.sleep(pause)

    def strike(self, rank, number):
        """The process of the rank that was sent the signal; 0 where there was none."""
        pid = processes(self.marker).get(rank, 0)
        try:
            if pid:
                os.kill(pid, number)
        except ProcessLookupError:
            return 0
        return pid

    def write_steps(self, folder, steps, every):
        """A run file with a checkpoint every so many steps, or, for 0, at the end only."""
        run = self.write_run(folder=folder, steps=steps)
        with open(run) as file:
            return self.write(f"{folder}.toml", file.read().replace("checkpoint_every = 1000000000", f"checkpoint_every = {every}"))

    def rows_written(self, folder):
        try:
            with open(self.path(f"{folder}/metrics.jsonl"), "rb") as file:
                return file.read().count(b"\n")
        except FileNotFoundError:
            return 0
