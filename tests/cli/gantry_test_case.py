"""What the tests of the command line share: running the program, and small inputs. Python's standard library only."""
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
import unittest

GANTRY = os.environ["GANTRY_PROGRAM"]
REFERENCE = os.environ["GANTRY_REFERENCE_CASES"]


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
        import random
        random.seed(1)
        images = self.write_npy("images.npy", (40, 1, 16, 16), [random.uniform(-1, 1) for _ in range(40 * 256)])
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
