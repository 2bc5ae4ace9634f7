"""gantry train, sample, plan and program: runs that end, stop, go on, and fail."""
import json
import os
import signal
import time
import unittest

from gantry_test_case import GANTRY, REFERENCE, GantryTestCase


class Train(GantryTestCase):
    def test_a_run_leaves_its_files(self):
        done = self.run_gantry("train", self.write_run())
        self.assertIn("predicted peak", done.stdout)
        self.assertIn("step 6/6", done.stderr)
        self.assertRegex(done.stderr, r"ETA \S+  loss D \S+  G \S+")
        predicted = next(line for line in done.stdout.splitlines() if line.startswith("predicted peak")).split()[2]
        measured = next(line for line in done.stdout.splitlines() if line.startswith("measured peak")).split()[2]
        self.assertEqual(predicted, measured)
        files = os.listdir(self.path("out"))
        for name in ("metrics.jsonl", "run.toml", "summary.txt"):
            self.assertIn(name, files)
        self.assertTrue(any(name.endswith(".png") for name in files))
        with open(self.path("out/metrics.jsonl")) as file:
            rows = [json.loads(line) for line in file]
        self.assertEqual([row["step"] for row in rows], [1, 2, 3, 4, 5, 6])

    def test_resume_is_bit_equal(self):
        run = self.write_run()
        self.run_gantry("train", run, "--set", f"output.directory={self.path('straight')}")
        parts = ["--set", f"output.directory={self.path('parts')}"]
        self.run_gantry("train", run, *parts, "--steps", "2")
        self.run_gantry("train", run, *parts, "--steps", "3", "--resume", "latest")
        self.run_gantry("train", run, *parts, "--resume", self.path("parts/" + self.checkpoints("parts")[-1]))
        for folder in ("straight", "parts"):
            self.assertEqual(self.checkpoints(folder)[-1], "checkpoint-000000000006.safetensors")
            self.run_gantry("sample", self.path(folder), "--out", f"{folder}.npy", "--count", "9")
        with open(self.path("straight.npy"), "rb") as a, open(self.path("parts.npy"), "rb") as b:
            self.assertEqual(a.read(), b.read())

    def start(self, *arguments, environment=None):
        process = self.popen(GANTRY, "train", self.write_run(steps=1000000), *arguments, env=environment)
        while not process.stdout.readline().startswith("measured peak"):
            self.assertIsNone(process.poll())
        return process

    def test_signals_end_it_with_a_checkpoint(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number):
                process = self.start("--set", f"output.directory={self.path(str(number))}")
                time.sleep(0.3)
                process.send_signal(number)
                _, errors = process.communicate(timeout=120)
                self.assertEqual(process.returncode, 75, errors)
                self.assertIn("--resume latest", errors)
                self.assertEqual(len(self.checkpoints(str(number))), 1)
                self.run_gantry("train", self.write_run(steps=1000000), "--set", f"output.directory={self.path(str(number))}", "--resume", "latest",
                                "--steps", "2")

    def test_threads_spin_briefly_unless_told_otherwise(self):
        for setting, expected in ((None, b"GOMP_SPINCOUNT=3000"), ("active", b"OMP_WAIT_POLICY=active")):
            environment = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
            if setting is not None:
                environment["OMP_WAIT_POLICY"] = setting
            process = self.start("--set", f"output.directory={self.path(str(setting))}", environment=environment)
            with open(f"/proc/{process.pid}/environ", "rb") as file:
                variables = file.read().split(b"\0")
            with open(f"/proc/{process.pid}/comm") as file:
                self.assertEqual(file.read().strip(), os.path.basename(GANTRY))
            process.kill()
            process.communicate()
            self.assertIn(expected, variables)
            self.assertEqual(setting is None, b"GOMP_SPINCOUNT=3000" in variables)

    def test_a_reader_that_leaves_does_not_end_it(self):
        process = self.start("--steps", "400")
        process.stdout.close()
        process.stderr.close()
        self.assertEqual(process.wait(timeout=120), 0)
        self.assertEqual(len(self.checkpoints()), 1)

    def test_infinity_stops_with_what_held_it(self):
        run = self.write_run(steps=50)
        self.write_npy("images.npy", (40, 1, 16, 16), [float("inf") if i == 1000 else 0.5 * (i % 3 - 1) for i in range(40 * 256)])
        done = self.run_gantry("train", run, expect=1, words=["input real"])
        self.assertRegex(done.stderr, r"step \d+")

    def test_another_runs_folder_is_not_overwritten(self):
        run = self.write_run()
        self.run_gantry("train", run)
        before = sorted(os.listdir(self.path("out")))
        self.run_gantry("train", run, expect=73, words=["out", "resume"])
        self.assertEqual(sorted(os.listdir(self.path("out"))), before)


class Settings(GantryTestCase):
    def test_set_takes_one_value(self):
        done = self.run_gantry("train", "--set", "train.steps=2", "--set", "train.seed=3", self.write_run())
        self.assertIn("step 2/2", done.stderr)

    def test_wrong_settings(self):
        run = self.write_run()
        self.run_gantry("train", run, "--set", "train.bacth=3", expect=64, words=["train.bacth", "'train.batch'"])
        self.run_gantry("train", run, "--set", "train.batch=many", expect=64, words=["train.batch"])
        self.run_gantry("train", run, "--set", "train.batch", expect=64, words=["KEY=VALUE"])
        self.run_gantry("train", self.write("bad.toml", "[train]\nbatch = \n"), expect=65, words=["bad.toml"])
        self.run_gantry("train", self.write("typo.toml", "[trian]\nbatch = 4\n"), expect=65, words=["trian", "train"])
        self.run_gantry("train", self.path("none.toml"), expect=66, words=["none.toml"])
        self.run_gantry("train", run, "--set", "data.path=/no/such/data", expect=66, words=["/no/such/data"])
        self.run_gantry("train", run, "--resume", "latest", expect=66)
        self.run_gantry("train", run, "--resume", self.path("no.safetensors"), expect=66, words=["no.safetensors"])
        self.run_gantry("train", run, "--resume", self.write("bad.safetensors", "x" * 100), expect=65, words=["bad.safetensors"])
        self.run_gantry("train", run, "--set", "output.directory=/proc/no/such", expect=73, words=["/proc/no/such"])


class Show(GantryTestCase):
    def test_plan(self):
        for source in (self.write_run(), os.path.join(REFERENCE, "r1")):
            done = self.run_gantry("plan", "show", source)
            self.assertRegex(done.stdout, r"peak +[\d,]+ bytes")
            self.assertRegex(done.stdout, r"lower bound +[\d,]+ bytes")
        self.assertFalse(os.path.exists(self.path("out")))

    def test_program(self):
        for source in (self.write_run(), os.path.join(REFERENCE, "batch-norm")):
            built = self.run_gantry("program", "show", source).stdout
            self.assertEqual(built, self.run_gantry("program", "show", source).stdout)  # fit for diff
            for word in ("input ", "conv", "adam_update", "output ", "generator_loss"):
                self.assertIn(word, built)
            self.assertNotEqual(built, self.run_gantry("program", "show", source, "--executed").stdout)
        for flag in (["--dtype", "f64"], ["--kernels", "reference"], ["--gradient-norms"]):
            self.run_gantry("program", "show", self.write_run(), *flag, expect=64, words=[flag[0]])
        norms = self.run_gantry("program", "show", os.path.join(REFERENCE, "r1"), "--gradient-norms").stdout
        self.assertIn("gradient_norm.discriminator.0.weight", norms)

    def test_sample(self):
        self.run_gantry("train", self.write_run())
        checkpoint = self.path("out/" + self.checkpoints()[-1])
        sheets = []
        for source in (checkpoint, self.path("out"), self.path("run.toml")):
            self.run_gantry("sample", source, "--out", "grid.png", "--count", "5", "--seed", "3")
            with open(self.path("grid.png"), "rb") as file:
                sheets.append(file.read())
        self.assertTrue(sheets[0].startswith(b"\x89PNG"))
        self.assertEqual(len(set(sheets)), 1)
        self.run_gantry("sample", checkpoint, "--out", "grid.png", "--count", "5", "--seed", "4")
        with open(self.path("grid.png"), "rb") as file:
            self.assertNotEqual(file.read(), sheets[0])
        self.run_gantry("sample", checkpoint, "--out", "grid.jpg", expect=64, words=[".png"])
        self.run_gantry("sample", checkpoint, "--out", "no/folder/grid.png", expect=73, words=["no/folder"])
        self.run_gantry("sample", self.path("none"), "--out", "grid.png", expect=66)
        os.truncate(checkpoint, os.path.getsize(checkpoint) // 2)
        self.run_gantry("sample", checkpoint, "--out", "grid.png", expect=65, words=["checkpoint-"])


if __name__ == "__main__":
    unittest.main()
