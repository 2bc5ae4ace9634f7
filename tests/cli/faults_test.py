"""Tiers that fail: a full disk, a file that is cut off or changed in mid-step, memory that changes. Real processes; the
damage comes from outside, through /proc."""
import os
import re
import subprocess
import time
import unittest
from hashlib import sha256

from gantry_test_case import GANTRY, GantryTestCase
from output_test import CAN_MOUNT, NAMESPACE

BUDGET = ("--device-memory", "3/4", "--offload", "file")


class Faults(GantryTestCase):
    def setUp(self):
        super().setUp()
        os.mkdir(self.path("tier"))

    def flags(self):
        return (*BUDGET, "--offload-directory", self.path("tier"))

    def weights(self, folder, name):
        with open(os.path.join(self.path(folder), name), "rb") as file:
            data = file.read()
        return sha256(data[8 + int.from_bytes(data[:8], "little"):]).hexdigest()

    # Before step one.

    def refused(self, done, *words):
        self.assertEqual(done.returncode, 74, done.stdout + done.stderr)
        for word in ("tier file: cannot make a file of ", "bytes are free there", "let less leave the device", *words):
            self.assertIn(word, done.stderr)
        self.assertFalse(os.path.exists(self.path("out")), "a run's folder before step one")
        self.assertEqual(os.listdir(self.path("tier")), [])

    @unittest.skipUnless(CAN_MOUNT, "this system lets no one mount a file system in a namespace of his own")
    def test_a_full_disk(self):
        self.write_run()
        script = 'mount -t tmpfs -o size=16k none tier && "$0" train run.toml "$@"; code=$?; ls tier; exit $code'
        done = subprocess.run([*NAMESPACE, "sh", "-c", script, GANTRY, *self.flags()], capture_output=True, text=True, cwd=self.folder, timeout=250)
        self.refused(done, "No space left on device", "16384 bytes are free there")
        self.assertEqual(done.stdout, "")

    # In mid-step.

    def start(self, *flags):
        """A run that would go on for hours, once its first checkpoint is there."""
        run = self.write_run(steps=1000000)
        with open(run) as file:
            text = file.read().replace("checkpoint_every = 1000000000", "checkpoint_every = 5")
        process = self.popen(GANTRY, "train", self.write("run.toml", text), *flags)
        end = time.monotonic() + 60
        while not (os.path.isdir(self.path("out")) and self.checkpoints()):
            self.assertIsNone(process.poll(), process.stderr.read() if process.poll() is not None else "")
            self.assertLess(time.monotonic(), end, "no checkpoint in a minute")
            time.sleep(0.01)
        return process

    def tier_file(self, process):
        folder = f"/proc/{process.pid}/fd"
        for name in os.listdir(folder):
            if os.readlink(f"{folder}/{name}").startswith(self.path("tier") + "/"):
                return f"{folder}/{name}"
        self.fail("the process has no file in the tier's folder")

    def damage_until_it_ends(self, process, damage):
        """Again and again: between steps nothing may lie in a tier, and what is hit before a value goes out is written over by it."""
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            try:
                damage()
            except OSError:  # the process has ended meanwhile
                break
            time.sleep(0.001)

    def stopped_cleanly(self, process, *words):
        """The process ends by itself, says why, and the last checkpoint is good: going on from it gives what an unbroken run gives."""
        stdout, stderr = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 74, stdout + stderr)
        for word in ("step ", "the last good checkpoint is ", *words):
            self.assertIn(word, stderr)
        last = self.checkpoints()[-1]
        self.assertEqual(re.search(r"the last good checkpoint is .*/(checkpoint-\d+\.safetensors)", stderr).group(1), last)
        step = int(re.search(r"\d+", last).group(0))
        self.assertEqual(step % 5, 0, "states of a broken step were saved")
        self.assertEqual(os.listdir(self.path("tier")), [])
        self.run_gantry("train", "run.toml", "--steps", "2", "--resume", "latest")
        self.run_gantry("train", "run.toml", "--set", f"output.directory={self.path('free')}", "--steps", step + 2)
        name = f"checkpoint-{step + 2:012}.safetensors"
        self.assertEqual(self.weights("out", name), self.weights("free", name))
        return stderr

    def test_a_file_that_is_cut_off(self):
        process = self.start(*self.flags(), "--checksums")
        file = self.tier_file(process)
        self.damage_until_it_ends(process, lambda: os.truncate(file, 0))
        # A read comes out short, twice; or a copy out has made the file longer again, and what lies before it is a hole, which only
        # checksums tell from a copy of zeros.
        errors = self.stopped_cleanly(process, "tier file: ")
        self.assertRegex(errors, "read of .* failed twice|came back damaged|came back changed")

    def test_a_file_that_changes(self):
        process = self.start(*self.flags(), "--checksums")
        with open(self.tier_file(process), "r+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size

            def damage():
                for at in range(100, size, 4096):  # a bit in every block
                    file.seek(at)
                    byte = file.read(1)[0]
                    file.seek(at)
                    file.write(bytes([byte ^ 16]))

            self.damage_until_it_ends(process, damage)
        self.stopped_cleanly(process, "tier file: ", "came back changed", "CRC ")

    def test_memory_that_changes(self):
        process = self.start("--device-memory", "3/4", "--checksums")
        with open(f"/proc/{process.pid}/maps") as maps:
            ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps if "/memfd:gantry-arena" in line]
        # The tier's; a single process keeps its arena to itself.
        [(low, high)] = ranges
        try:
            memory = open(f"/proc/{process.pid}/mem", "r+b", buffering=0)
        except PermissionError:
            self.skipTest("this system lets no one write to the memory of his own child")

        def damage():
            memory.seek(low)
            content = bytearray(memory.read(high - low))
            content[40::256] = bytes(byte ^ 1 for byte in content[40::256])
            memory.seek(low)
            memory.write(content)

        with memory:
            self.damage_until_it_ends(process, damage)
        self.stopped_cleanly(process, "tier host: ", "came back changed", "CRC ")


if __name__ == "__main__":
    unittest.main()
