"""gantry run --restarts and gantry train --restarts: ranks that are killed at random moments, and what is not started again."""
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import threading
import time
import unittest

from gantry_test_case import GANTRY, GantryTestCase
from parallel_test import processes


class Restart(GantryTestCase):
    def setUp(self):
        super().setUp()
        self.marker = f"GANTRY_TEST_MARKER={self.folder}"
        self.environment = dict(os.environ, GANTRY_TEST_MARKER=self.folder)

    def start(self, *arguments):
        process = subprocess.Popen([GANTRY, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder,
                                   env=self.environment, stdin=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def ended(self, process, expect=0):
        out, error = process.communicate(timeout=240)
        self.assertEqual(process.returncode, expect, out + error)
        deadline = time.monotonic() + 10
        while processes(self.marker) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual(processes(self.marker), {}, "processes are left behind")
        return out, error

    def states(self, folder):
        """Every state of the last checkpoint, as bits."""
        name = self.checkpoints(folder)[-1]
        with open(self.path(f"{folder}/{name}"), "rb") as file:
            data = file.read()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + size])
        header.pop("__metadata__")
        return name, {tensor: hashlib.sha256(data[8 + size + facts["data_offsets"][0]:8 + size + facts["data_offsets"][1]]).hexdigest()
                      for tensor, facts in header.items()}

    def lines(self, folder):
        with open(self.path(f"{folder}/metrics.jsonl")) as file:
            rows = [json.loads(line) for line in file]
        return [{name: value for name, value in row.items() if "second" not in name} for row in rows]

    def write_steps(self, folder, steps, every):
        run = self.write_run(folder=folder, steps=steps)
        with open(run) as file:
            return self.write(f"{folder}.toml", file.read().replace("checkpoint_every = 1000000000", f"checkpoint_every = {every}"))

    def wait_for(self, condition, process):
        end = time.monotonic() + 60
        while not condition():
            self.assertIsNone(process.poll(), "the job has ended")
            self.assertLess(time.monotonic(), end)
            time.sleep(0.002)

    def rows_written(self, folder):
        try:
            with open(self.path(f"{folder}/metrics.jsonl"), "rb") as file:
                return file.read().count(b"\n")
        except FileNotFoundError:
            return 0

    def test_kills_at_random_moments(self):
        """The weights at the end are those of a run that nobody disturbed, to the bit."""
        generator = random.Random(11)
        for split, ranks, how in (("batch", 2, "train"), ("batch+shard", 3, "run"), ("space", 2, "run")):
            with self.subTest(split=split, ranks=ranks, how=how):
                steps, kills = 120, 4
                flags = ["--parallel", split]
                calm = self.write_steps(f"calm-{split}", steps, 0)
                self.run_gantry("train", calm, "--ranks", ranks, *flags)
                run = self.write_steps(f"killed-{split}", steps, 7)
                command = ["train", run, "--ranks", ranks, "--restarts", kills, *flags] if how == "train" else \
                    ["run", "-n", ranks, "--restarts", kills, "--", GANTRY, "train", run, *flags]
                process = self.start(*command)
                struck = 0
                for strike in range(kills):
                    # Somewhere in the next part of the run, or, once, while the ranks start.
                    target = 0 if strike == 1 else (strike + 1) * 20 + generator.randrange(15)
                    self.wait_for(lambda: self.rows_written(f"killed-{split}") >= target and len(processes(self.marker)) == ranks + 1, process)
                    time.sleep(generator.uniform(0, 0.02))
                    pids = processes(self.marker)
                    victim = generator.randrange(ranks)
                    if process.poll() is None and victim in pids:
                        os.kill(pids[victim], signal.SIGKILL)
                        struck += 1
                        self.wait_for(lambda: processes(self.marker).get(victim, pids[victim]) != pids[victim], process)
                out, error = self.ended(process)
                self.assertEqual(struck, kills)
                for restart in range(1, kills + 1):
                    self.assertRegex(error, rf"rank \d \(pid \d+\) was killed by signal 9 \(Killed\); restart {restart} of {kills}")
                self.assertRegex(error, r"restart \d: goes on from \S+checkpoint-\d+\.safetensors; step \d+ is the next, \d+ steps are done again")
                self.assertEqual(self.states(f"killed-{split}"), self.states(f"calm-{split}"))
                self.assertEqual(self.lines(f"killed-{split}"), self.lines(f"calm-{split}"))

    def test_how_often(self):
        """The count is kept to, the code is that of the rank that was lost, and other programs are started again, too."""
        script = 'echo start ${GANTRY_RESTART:-0} >> starts; if [ $GANTRY_RANK = 1 ]; then kill -KILL $$; fi; sleep 100'
        for restarts in (0, 2):
            process = self.start("run", "-n", 2, "--grace", 0.2, "--restarts", restarts, "--", "bash", "-c", script)
            _, error = self.ended(process, expect=137)
            self.assertEqual("not once more" in error, restarts > 0, error)
            with open(self.path("starts")) as file:
                lines = file.read().splitlines()
            os.remove(self.path("starts"))
            self.assertEqual(sorted(set(lines)), [f"start {count}" for count in range(restarts + 1)])
        # A crash is as good as a kill.
        process = self.start("run", "-n", 1, "--restarts", 1, "--", "bash", "-c", 'if [ -z $GANTRY_RESTART ]; then kill -SEGV $$; fi; exit 0')
        _, error = self.ended(process)
        self.assertIn("restart 1 of 1, from its beginning", error)

    def test_what_is_not_started_again(self):
        for code in (1, 2, 64, 65, 66, 69, 70, 73, 74, 75):
            process = self.start("run", "-n", 2, "--grace", 5, "--restarts", 3, "--", "bash", "-c", f"exit {code}")
            _, error = self.ended(process, expect=code)
            self.assertNotIn("restart ", error)
        process = self.start("run", "-n", 1, "--restarts", 3, "--", "bash", "-c", "kill -TERM $$; sleep 10")
        self.assertNotIn("restart ", self.ended(process, expect=143)[1])
        # A stop that the user asks for, also where a rank is lost while it stops.
        process = self.start("train", self.write_run(steps=1000000), "--ranks", 2, "--restarts", 3)
        self.wait_for(lambda: self.rows_written("out") > 2, process)
        process.send_signal(signal.SIGTERM)
        self.assertNotIn("restart ", self.ended(process, expect=75)[1])
        # Wrong input, seen by all ranks.
        process = self.start("train", self.write_run(), "--ranks", 2, "--restarts", 3, "--set", "train.batch=x")
        self.assertNotIn("restart ", self.ended(process, expect=64)[1])

    def test_a_rank_that_stands_still(self):
        """It is not dead, so the others' word is what says that it is lost; it goes, and the job goes on."""
        process = self.start("train", self.write_steps("out", 300, 10), "--ranks", 2, "--restarts", 1)
        self.wait_for(lambda: self.rows_written("out") > 30, process)
        os.kill(processes(self.marker)[1], signal.SIGSTOP)
        _, error = self.ended(process)
        self.assertRegex(error, r"rank 1 \(pid \d+\) gave no sign of life; restart 1 of 1")
        self.assertEqual(self.checkpoints()[-1], "checkpoint-000000000300.safetensors")

    def test_steps_of_this_call_count_once(self):
        process = self.start("train", self.write_steps("out", 1000000, 5), "--ranks", 2, "--restarts", 1, "--steps", 150)
        self.wait_for(lambda: self.rows_written("out") > 40, process)
        os.kill(processes(self.marker)[0], signal.SIGKILL)
        self.ended(process)
        self.assertEqual(self.checkpoints()[-1], "checkpoint-000000000150.safetensors")

    def test_a_folder_of_another_run_is_left_alone(self):
        """A rank that is lost before the job has begun does not make the next start go on from what another run has left."""
        run = self.write_steps("out", 5, 0)
        self.run_gantry("train", run)
        before = self.states("out")
        process = self.start("train", run, "--ranks", 2, "--restarts", 1)
        self.wait_for(lambda: len(processes(self.marker)) == 3, process)
        os.kill(processes(self.marker)[1], signal.SIGKILL)
        _, error = self.ended(process, expect=73)
        self.assertIn("checkpoints of an earlier run", error)
        self.assertEqual(self.states("out"), before)

    def test_usage(self):
        self.run_gantry("train", self.write_run(), "--restarts", -1, expect=64)
        self.environment["GANTRY_RANK"] = "0"
        process = self.start("train", self.write_run(), "--restarts", 2)
        self.assertIn("give it to the gantry run", self.ended(process, expect=64)[1])


if __name__ == "__main__":
    unittest.main()
