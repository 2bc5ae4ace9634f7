"""gantry where files cannot be written or read: full disks, limits, folders that refuse, data that breaks off."""
import os
import resource
import struct
import subprocess
import unittest
import zlib

from gantry_test_case import GANTRY, GantryTestCase

# Own mounts that vanish with the process, without being root.
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def can_mount():
    try:
        return subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


CAN_MOUNT = can_mount()


def limit_files(max_bytes):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))


class Output(GantryTestCase):
    def limited(self, *arguments, limit, expect, words=()):
        done = subprocess.run([GANTRY, *arguments], capture_output=True, text=True, cwd=self.folder, preexec_fn=limit, timeout=250)
        self.assertEqual(done.returncode, expect, done.stdout + done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)
        return done

    def test_folders_that_cannot_be(self):
        run = self.write_run()
        self.write("file", "")
        for folder in (self.path("file/out"), self.path("file"), "/proc/1/no/such", "/dev/null/out"):
            with self.subTest(folder):
                self.run_gantry("train", run, "--set", f"output.directory={folder}", expect=73, words=[folder])
        self.assertEqual(sorted(os.listdir(self.folder)), ["file", "images.npy", "run.toml"])

    @unittest.skipUnless(CAN_MOUNT, "this system lets no one mount a file system in a namespace of his own")
    def test_a_read_only_file_system(self):
        os.mkdir(self.path("fixed"))
        self.run_gantry("train", self.write_run(folder="fixed"), "--steps", "2")
        for arguments in ("--set output.directory=fixed/new", "--resume latest"):
            script = 'mount --bind fixed fixed && mount -o remount,bind,ro fixed && exec "$0" train run.toml ' + arguments
            done = subprocess.run([*NAMESPACE, "sh", "-c", script, GANTRY], capture_output=True, text=True, cwd=self.folder, timeout=250)
            self.assertEqual(done.returncode, 73, done.stderr)
            self.assertIn("fixed", done.stderr)
        self.run_gantry("train", "run.toml", "--resume", "latest")

    @unittest.skipUnless(CAN_MOUNT, "this system lets no one mount a file system in a namespace of his own")
    def test_a_full_disk_loses_nothing(self):
        self.write_run(folder="disk/out")
        os.mkdir(self.path("disk"))
        script = """set -e
mount -t tmpfs -o size=8m none disk
"$0" train run.toml --steps 2
cat /dev/zero > disk/filler 2> /dev/null || true
code=0; "$0" train run.toml --resume latest || code=$?
test $code -eq 74
ls disk/out > listing
code=0; "$0" sample disk/out --out disk/grid.npy || code=$?
test $code -eq 74
test ! -e disk/grid.npy
"$0" sample disk/out --out grid.png
rm disk/filler
"$0" train run.toml --resume latest
ls disk/out > listing-after"""
        done = subprocess.run([*NAMESPACE, "sh", "-c", script, GANTRY], capture_output=True, text=True, cwd=self.folder, timeout=250)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("No space left on device", done.stderr)
        with open(self.path("listing")) as file:
            names = file.read().split()
        self.assertEqual([name for name in names if name.startswith("checkpoint-")], ["checkpoint-000000000002.safetensors"])
        self.assertFalse([name for name in names if ".tmp-" in name])
        with open(self.path("listing-after")) as file:
            self.assertIn("checkpoint-000000000006.safetensors", file.read())

    def test_a_limit_on_files(self):
        problem = self.write("problem.csv", "id,lower,upper,size\na,0,3,100\n")
        self.limited("layout", "solve", problem, "--out", "placed.csv", limit=limit_files(5), expect=74, words=["placed.csv", "File too large"])
        self.assertEqual(os.listdir(self.folder), ["problem.csv"])

    def test_too_little_memory(self):
        # The activations alone are terabytes.
        self.run_gantry("train", self.write_run(batch=1 << 20), "--set", "model.width=1024", expect=69, words=["bytes asked for", "short"])
        self.assertFalse(os.path.exists(self.path("out")))


def png(width, height, colour=2):
    """A PNG of one colour: grey (0) or RGB (2)."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    row = b"\0" + bytes(range(width * (3 if colour == 2 else 1)))[:width * (3 if colour == 2 else 1)]
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)) +
            chunk(b"IDAT", zlib.compress(row * height)) + chunk(b"IEND", b""))


class Data(GantryTestCase):
    def test_an_image_that_vanishes(self):
        for i in range(20):
            self.write(f"photos/{i:02}.png", png(16, 16))
        run = self.write_run(steps=1000000)
        settings = ["--set", f"data.path={self.path('photos')}"]
        process = self.popen(GANTRY, "train", run, *settings)
        while not process.stdout.readline().startswith("measured peak"):
            self.assertIsNone(process.poll())
        os.remove(self.path("photos/07.png"))
        _, errors = process.communicate(timeout=100)
        self.assertEqual(process.returncode, 66, errors)
        self.assertIn("07.png", errors)
        self.assertEqual(len(self.checkpoints()), 1)

    def test_png_folders_of_mixed_sizes_and_colours(self):
        for i in range(12):
            self.write(f"photos/{i:02}.png", png(16 + i, 30 - i, colour=2 if i % 2 else 0))
        run = self.write_run()
        self.run_gantry("train", run, "--set", f"data.path={self.path('photos')}", expect=65, words=["channels"])
        self.run_gantry("train", run, "--set", f"data.path={self.path('photos')}", "--set", "model.channels=3")

    def test_a_damaged_image_keeps_what_was_learned(self):
        for i in range(20):
            self.write(f"photos/{i:02}.png", png(16, 16))
        whole = png(16, 16)
        self.write("photos/17.png", whole[:-20])
        run = self.write_run(steps=100)
        settings = ["--set", f"data.path={self.path('photos')}", "--set", "data.shuffle=false"]
        self.run_gantry("train", run, *settings, expect=65, words=["17.png", "checkpoint-000000000004", "--resume latest"])
        self.assertEqual(self.checkpoints(), ["checkpoint-000000000004.safetensors"])
        self.write("photos/17.png", whole)
        self.run_gantry("train", run, *settings, "--resume", "latest", "--steps", "2")
        self.assertEqual(self.checkpoints()[-1], "checkpoint-000000000006.safetensors")


if __name__ == "__main__":
    unittest.main()
