"""gantry train and check with several ranks: the same run, other numbers of ranks, signals, and a rank that is killed."""
import json
import os
import re
import signal
import subprocess
import time
import unittest

from gantry_test_case import GANTRY, REFERENCE, GantryTestCase


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


class Parallel(GantryTestCase):
    def test_check_agrees_with_the_reference(self):
        for case, split, ranks in (("r1", "batch", 2), ("wgan-gp", "space", 2), ("ring-mlp", "batch+shard", 3), ("r1", "batch+space", 4),
                                   ("wgan-gp", "roles", 2)):
            with self.subTest(case=case, split=split, ranks=ranks):
                done = self.run_gantry("check", os.path.join(REFERENCE, case), "--ranks", str(ranks), "--parallel", split, "--json")
                line = done.stdout.splitlines()[-1].removeprefix("[0] ")
                self.assertTrue(json.loads(line)["within_tolerance"])

    def rows(self, folder):
        with open(self.path(f"{folder}/metrics.jsonl")) as file:
            return [json.loads(line) for line in file]

    def test_a_run_goes_on_with_another_number_of_ranks(self):
        run = self.write_run()
        f64 = ["--set", "train.dtype=f64", "--set", "train.kernels=reference"]
        self.run_gantry("train", run, *f64, "--set", f"output.directory={self.path('alone')}")
        together = [*f64, "--set", f"output.directory={self.path('together')}"]
        done = self.run_gantry("train", run, *together, "--ranks", "2", "--parallel", "batch+shard", "--steps", "2")
        self.assertIn("ranks           2", done.stdout)
        self.run_gantry("train", run, *together, "--ranks", "3", "--parallel", "space", "--steps", "1", "--resume", "latest")
        self.run_gantry("train", run, *together, "--ranks", "4", "--parallel", "roles+batch", "--steps", "1", "--resume", "latest")
        self.run_gantry("train", run, *together, "--resume", "latest")
        for expected, actual in zip(self.rows("alone"), self.rows("together"), strict=True):
            for name in ("step", "images", "discriminator_loss", "generator_loss", "generator.gradient_norm"):
                self.assertAlmostEqual(expected[name], actual[name], delta=1e-9 * max(1, abs(expected[name])))

    def test_overlap_changes_no_bit_and_waits_are_reported(self):
        run = self.write_run(steps=4)
        ways = (("off", []), ("on", []), ("across", []), ("across", ["--comm-link", "50MB/s,100us"]), ("on", ["--set", "parallel.bucket=0"]))
        for number, (overlap, link) in enumerate(ways):
            done = self.run_gantry("train", run, "--set", f"output.directory={self.path(str(number))}", "--ranks", "2", "--overlap", overlap, *link)
            self.assertRegex(done.stderr, r"waits [0-9.]+ ms \(.*gradient [0-9.]+ ms")
        for number in range(len(ways)):
            for expected, actual in zip(self.rows("0"), self.rows(str(number)), strict=True):
                self.assertGreaterEqual(actual["exposed_seconds"], actual["exposed_seconds.gradient"])
                self.assertGreater(actual["exposed_seconds"], 0)
                for name in expected:
                    if "seconds" not in name and "per_second" not in name:
                        self.assertEqual(expected[name], actual[name], f"{name}, way {number}")
            with open(self.path(f"{number}/checkpoint-000000000004.safetensors"), "rb") as file:
                content = file.read()
            first = content if number == 0 else first
            # Behind the header, which holds the run's settings.
            start = 8 + int.from_bytes(content[:8], "little")
            self.assertEqual(content[start:], first[8 + int.from_bytes(first[:8], "little"):])
        self.run_gantry("train", run, "--comm-link", "fast", expect=65, words=["parallel.link", "1GB/s,50us"])

    def test_budgets_do_not_change_what_ranks_exchange(self):
        run = self.write_run(steps=3)
        f64 = ["--set", "train.dtype=f64", "--set", "train.kernels=reference"]
        self.run_gantry("train", run, *f64, "--set", f"output.directory={self.path('alone')}")
        for split in ("batch", "space", "space+shard"):
            with self.subTest(split):
                self.run_gantry("train", run, *f64, "--set", f"output.directory={self.path(split)}", "--ranks", "3", "--parallel", split,
                                "--device-memory", "3/5")
                for expected, actual in zip(self.rows("alone"), self.rows(split), strict=True):
                    for name in ("discriminator_loss", "generator_loss"):
                        self.assertAlmostEqual(expected[name], actual[name], delta=1e-9 * max(1, abs(expected[name])))

    def start(self, *arguments):
        process = subprocess.Popen([GANTRY, "train", self.write_run(steps=1000000), "--ranks", "2", *arguments], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, cwd=self.folder,
                                   env=dict(os.environ, GANTRY_TEST_MARKER=self.folder))
        while "measured peak" not in process.stdout.readline():
            self.assertIsNone(process.poll())
        return process

    def assert_nothing_is_left(self):
        deadline = time.monotonic() + 10
        while processes(f"GANTRY_TEST_MARKER={self.folder}") and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual(processes(f"GANTRY_TEST_MARKER={self.folder}"), {})

    def test_a_signal_ends_all_ranks_after_the_same_step(self):
        process = self.start("--parallel", "batch+shard")
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 75, errors)
        self.assertEqual(len(self.checkpoints("out")), 1)
        self.assert_nothing_is_left()
        self.run_gantry("train", self.write_run(steps=1000000), "--resume", "latest", "--steps", "1")

    def test_a_killed_rank_is_named_by_the_other(self):
        process = self.start()
        os.kill(processes(f"GANTRY_TEST_MARKER={self.folder}")[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        self.assertNotEqual(process.returncode, 0)
        self.assertRegex(errors, re.compile(r"rank 1 \(.*is lost", re.S))
        self.assertIn("killed by signal 9", errors)
        self.assert_nothing_is_left()

    def test_wrong_words(self):
        self.run_gantry("train", self.write_run(), "--parallel", "bach", expect=65, words=["parallel.split", "batch"])
        self.run_gantry("train", self.write_run(), "--ranks", "0", expect=64, words=["--ranks"])
        self.run_gantry("check", os.path.join(REFERENCE, "r1"), "--parallel", "bach", expect=64, words=["parallel.split"])


if __name__ == "__main__":
    unittest.main()
