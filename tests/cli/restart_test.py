"""gantry run --restarts and gantry train --restarts: ranks that are killed at random moments, and what is not started again."""
import hashlib
import json
import os
import random
import re
import shutil
import signal
import time
import unittest

from gantry_test_case import GANTRY, JobTestCase, processes


class Restart(JobTestCase):
    def tensors(self, path):
        """The bytes of every tensor of a safetensors file, and its metadata."""
        with open(path, "rb") as file:
            data = file.read()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + size])
        metadata = header.pop("__metadata__")
        return {tensor: data[8 + size + facts["data_offsets"][0]:8 + size + facts["data_offsets"][1]] for tensor, facts in header.items()}, metadata

    def states(self, folder):
        """Every state of the last checkpoint, as bits; put together where ranks have written parts."""
        name = self.checkpoints(folder)[-1]
        whole, metadata = self.tensors(self.path(f"{folder}/{name}"))
        pieces = {}
        count = int(metadata.get("parts", 0))
        for part in range(count):
            tensors, facts = self.tensors(self.path(f"{folder}/{name}").replace(".safetensors", f".part-{part}-of-{count}.safetensors"))
            for tensor, content in tensors.items():
                pieces.setdefault(tensor, []).append((int(facts[f"elements.{tensor}"].split()[0]), content))
        for tensor, parts in pieces.items():
            whole[tensor] = b"".join(content for _, content in sorted(parts))
        self.assertTrue(whole)
        return name, {tensor: hashlib.sha256(content).hexdigest() for tensor, content in whole.items()}

    def lines(self, folder):
        with open(self.path(f"{folder}/metrics.jsonl")) as file:
            rows = [json.loads(line) for line in file]
        return [{name: value for name, value in row.items() if "second" not in name} for row in rows]

    def killed_at_random_moments(self, generator, folder, ranks, kills, command):
        """How many kills have struck, and what the job said."""
        struck = 0
        process = self.start(*command)
        for strike in range(kills):
            # Somewhere in the next part of the run, or, once, while the ranks start.
            target = 0 if strike == 1 else (strike + 1) * 20 + generator.randrange(15)
            self.wait_for(lambda: self.rows_written(folder) >= target and len(processes(self.marker)) == ranks + 1, process, may_end=True, pause=0.002)
            time.sleep(generator.uniform(0, 0.02))
            victim = generator.randrange(ranks)
            pid = self.strike(victim, signal.SIGKILL)
            if pid:
                struck += 1
                self.wait_for(lambda: processes(self.marker).get(victim, pid) != pid, process, may_end=True, pause=0.002)
        return struck, self.ended(process)[1]

    def test_kills_at_random_moments(self):
        """The weights at the end are those of a run that nobody disturbed, to the bit."""
        generator = random.Random(11)
        from_memory = 0
        for split, ranks, how, memory in (("batch", 2, "train", ""), ("batch+shard", 3, "run", ""), ("space", 2, "run", ""),
                                          ("batch+shard", 3, "train", "--checkpoint-memory"), ("batch", 2, "run", "--checkpoint-memory=3"),
                                          ("batch+space+shard", 4, "train", "--checkpoint-memory"), ("batch", 1, "train", "--checkpoint-memory"), ("roles", 2, "train", "--checkpoint-memory"),
                                          ("channel", 2, "run", "--checkpoint-memory"), ("pipeline", 2, "train", "--checkpoint-memory")):
            with self.subTest(split=split, ranks=ranks, how=how, memory=memory):
                # Where few files are written, a step of two ranks takes less than a millisecond.
                steps, kills = 600 if memory and ranks == 2 else 240, 4
                flags = ["--parallel", split]
                split += memory
                calm = self.write_steps(f"calm-{split}", steps, 0)
                self.run_gantry("train", calm, "--ranks", ranks, *flags)
                # Parts are written all the time, so that kills hit their writing.
                run = self.write_steps(f"killed-{split}", steps, 50 if memory else 1 if "shard" in split else 7)
                if memory:
                    flags.append(memory)
                command = ["train", run, "--ranks", ranks, "--restarts", kills, *flags] if how == "train" else \
                    ["run", "-n", ranks, "--restarts", kills, "--", GANTRY, "train", run, *flags]
                for _ in range(5):  # a machine that is busy elsewhere may let a job end before it has been struck often enough
                    shutil.rmtree(self.path(f"killed-{split}"), ignore_errors=True)
                    struck, error = self.killed_at_random_moments(generator, f"killed-{split}", ranks, kills, command)
                    for restart in range(1, struck):
                        self.assertRegex(error, rf"rank \d \(pid \d+\) was killed by signal 9 \(Killed\); restart {restart} of {kills}")
                    leftovers = [name for name in os.listdir(self.path(f"killed-{split}")) if ".tmp-" in name]
                    self.assertEqual(leftovers, [])
                    self.assertEqual(self.states(f"killed-{split}"), self.states(f"calm-{split}"))
                    self.assertEqual(self.lines(f"killed-{split}"), self.lines(f"calm-{split}"))
                    if struck >= kills - 1:
                        break
                self.assertGreaterEqual(struck, kills - 1)
                again = [int(count) for count in re.findall(r"restart \d: goes on from .*; step \d+ is the next, (\d+) steps are done again", error)]
                self.assertGreaterEqual(len(again), 1, error)  # a start that is killed early says nothing
                if memory:
                    from_memory += error.count("goes on from what the ranks kept in memory")  # a file may be newer
                    # One step at most is lost where each is kept; the rank that was killed may have been in the midst of keeping.
                    every = int(memory.partition("=")[2] or 1)
                    self.assertLessEqual(max(again), 2 * every - 1, error)
                else:
                    self.assertRegex(error, r"goes on from \S+checkpoint-\d+\.safetensors;")
        self.assertGreaterEqual(from_memory, 3)

    def test_how_soon_and_how_much(self):
        """From a kill to the first new step, and how many steps are done again, where states are kept in memory and where they are not."""
        generator = random.Random(3)
        for memory in ([], ["--checkpoint-memory"]):
            folder = "out" + "".join(memory)
            kills, seconds = 6, []
            process = self.start("train", self.write_steps(folder, 1000000, 100), "--ranks", 2, "--parallel", "batch+shard", "--restarts", kills, *memory)
            for _ in range(kills):
                self.wait_for(lambda: self.rows_written(folder) > 150 and len(processes(self.marker)) == 3, process)
                time.sleep(generator.uniform(0.1, 0.3))
                pids = processes(self.marker)
                os.kill(pids[generator.randrange(2)], signal.SIGKILL)
                killed = time.monotonic()
                self.wait_for(lambda: len(processes(self.marker)) == 3 and not set(processes(self.marker).values()) & {pids[0], pids[1]}, process, pause=0.002)
                # The lines of steps that are done again are cut off, then the first new one comes.
                seen = [self.rows_written(folder)]

                def grows():
                    seen.append(self.rows_written(folder))
                    return seen[-1] > seen[-2]
                self.wait_for(grows, process, pause=0.002)
                seconds.append(time.monotonic() - killed)
            process.send_signal(signal.SIGTERM)
            _, error = self.ended(process, expect=75)
            again = [int(count) for count in re.findall(r"(\d+) steps are done again", error)]
            self.assertEqual(len(again), kills, error)
            seconds.sort()
            print(f"{'in memory, too' if memory else 'in files, every 100 steps'}: {seconds[len(seconds) // 2]:.2f} s (median), {seconds[-1]:.2f} s (longest of "
                  f"{kills}) from the kill to a new step; steps done again: {sorted(again)}")
            self.assertLess(seconds[len(seconds) // 2], 10)
            self.assertLessEqual(max(again), 1 if memory else 101)

    def test_every_moment_of_parts_leaves_a_checkpoint(self):
        """Without a restart: whoever is killed, whenever, what is left in the folder can be gone on from with another number of ranks."""
        generator = random.Random(5)
        f64 = ["--set", "train.dtype=f64", "--set", "train.kernels=reference"]
        run = self.write_steps("out", 1000000, 1)
        last, resume = 0, []
        for attempt in range(8):
            ranks = generator.choice((2, 3, 4))
            process = self.start("train", run, "--ranks", ranks, "--parallel", "batch+shard", *f64, *resume)
            self.wait_for(lambda: os.path.isdir(self.path("out")) and len(self.checkpoints()) > 0 and
                          int(re.search(r"\d+", self.checkpoints()[-1])[0]) > last and len(processes(self.marker)) == ranks + 1, process)
            time.sleep(generator.uniform(0, 0.03))
            self.assertTrue(self.strike(generator.randrange(ranks), signal.SIGKILL), "the job has ended")
            process.communicate(timeout=240)
            found = int(re.search(r"\d+", self.checkpoints()[-1])[0])
            self.assertGreater(found, last)
            last, resume = found, ["--resume", "latest"]
            self.run_gantry("sample", self.path("out"), "--out", "sheet.png", "--count", 4)
        done = self.run_gantry("train", run, *f64, "--resume", "latest", "--steps", 2)
        self.assertNotIn("damaged", done.stderr)
        names = os.listdir(self.path("out"))
        self.assertEqual([name for name in names if ".tmp-" in name], [])
        steps = {name.split(".")[0] for name in names if name.startswith("checkpoint-")}
        self.assertEqual(steps, {name.split(".")[0] for name in self.checkpoints()}, "parts without a checkpoint are left")
        # The same numbers as a run on one rank, up to the order of sums.
        self.run_gantry("train", self.write_steps("calm", 1000000, 0), *f64, "--steps", last + 2)
        for expected, actual in zip(self.lines("calm"), self.lines("out"), strict=True):
            for name in ("step", "discriminator_loss", "generator_loss"):
                self.assertAlmostEqual(expected[name], actual[name], delta=1e-8 * max(1, abs(expected[name])))

    def test_parts_at_other_numbers_of_ranks(self):
        f64 = ["--set", "train.dtype=f64", "--set", "train.kernels=reference"]
        run = self.write_steps("alone", 6, 0)
        self.run_gantry("train", run, *f64)
        for before, split, after, then in ((2, "batch+shard", 3, "batch+shard"), (4, "space+shard", 1, ""), (4, "batch+space+shard", 2, "space"),
                                           (3, "shard", 4, "batch+space+shard"), (4, "roles+batch", 3, "batch+shard"), (2, "batch+shard", 4, "roles+shard"),
                                           (2, "channel", 3, "channel"), (4, "batch+channel", 1, ""), (3, "batch+shard", 4, "channel+roles"),
                                           (3, "pipeline", 2, "pipeline"), (4, "batch+pipeline", 1, "")):
            with self.subTest(before=before, split=split, after=after):
                folder = f"out-{before}-{split}-{after}"
                flags = [*f64, "--set", f"output.directory={self.path(folder)}"]
                self.run_gantry("train", run, *flags, "--ranks", before, "--parallel", split, "--steps", 3)
                self.assertEqual(len([name for name in os.listdir(self.path(folder)) if ".part-" in name]), before)
                self.run_gantry("sample", self.path(folder), "--out", "sheet.png", "--count", 4)
                self.run_gantry("train", run, *flags, "--ranks", after, *(["--parallel", then] if then else []), "--resume", "latest")
                for expected, actual in zip(self.lines("alone"), self.lines(folder), strict=True):
                    for name in ("step", "discriminator_loss", "generator_loss", "generator.gradient_norm"):
                        self.assertAlmostEqual(expected[name], actual[name], delta=1e-9 * max(1, abs(expected[name])))

    def test_parts_that_are_damaged(self):
        run = self.write_steps("out", 6, 2)
        self.run_gantry("train", run, "--ranks", 2, "--parallel", "batch+shard")
        newest = self.path("out/" + self.checkpoints()[-1])
        part, other = (newest.replace(".safetensors", f".part-{index}-of-2.safetensors") for index in (1, 0))
        older = self.path("out/" + self.checkpoints()[-2]).replace(".safetensors", ".part-1-of-2.safetensors")
        with open(part, "rb") as file:
            whole = file.read()
        with open(older, "rb") as file:
            foreign = file.read()
        flipped = bytearray(whole)
        flipped[-5] ^= 1
        for content, words in ((None, "its part 1 of 2 is missing"), (whole[:-7], "its part 1 of 2 is damaged"), (b"", "its part 1 of 2 is damaged"),
                               (bytes(flipped), "does not match its checksum"), (foreign, "does not belong to")):
            with self.subTest(words):
                os.remove(part)
                if content is not None:
                    self.write(part, content)
                self.run_gantry("train", run, "--resume", newest, "--steps", 1, expect=65, words=[words])
                done = self.run_gantry("sample", self.path("out"), "--out", "sheet.png", "--count", 4)
                self.write(part, whole)
        # The one before it is used, and the message says why.
        os.remove(other)
        done = self.run_gantry("train", run, "--resume", "latest", "--steps", 1)
        self.assertIn("is damaged and passed over: " + newest + ": its part 0 of 2 is missing", done.stderr)
        self.run_gantry("train", run, "--resume", older, expect=65, words=["is part 1 of 2 of a checkpoint; give the checkpoint itself"])

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
            process = self.start("run", "-n", 2, "--grace", 60, "--restarts", 3, "--", "bash", "-c", f"exit {code}")
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

    def test_a_stop_before_the_first_step(self):
        """Rank 0 waits for rank 1, which never comes."""
        script = f"if [ $GANTRY_RANK = 0 ]; then exec {GANTRY} train {self.write_run()}; fi; sleep 1000"
        process = self.start("run", "-n", 2, "--grace", 1, "--restarts", 1, "--", "bash", "-c", script)
        for number in (signal.SIGTERM, signal.SIGINT):
            self.wait_for(lambda: self.catches(0, number), process)
        self.strike(0, signal.SIGTERM)
        _, error = self.ended(process, expect=75)
        self.assertIn("stopped before the first step", error)
        self.assertNotIn("restart ", error)

    def catches(self, rank, number):
        try:
            with open(f"/proc/{processes(self.marker)[rank]}/status") as file:
                caught = int(re.search(r"SigCgt:\s*(\w+)", file.read())[1], 16)
        except (KeyError, OSError):
            return False
        return caught >> number - 1 & 1 == 1

    def test_a_rank_that_stands_still(self):
        """It is not dead, so the others' word is what says that it is lost; it goes, and the job goes on."""
        self.environment["GANTRY_HEARTBEAT_TIMEOUT"] = "1"
        run = self.write_steps("out", 1000000, 10)
        process = self.start("run", "-n", 2, "--grace", 1, "--restarts", 1, "--", GANTRY, "train", run)
        self.wait_for(lambda: self.rows_written("out") > 30, process)
        stopped = self.strike(1, signal.SIGSTOP)
        self.assertTrue(stopped)
        self.wait_for(lambda: processes(self.marker).get(1, stopped) != stopped, process)
        rows = self.rows_written("out")
        self.wait_for(lambda: self.rows_written("out") > rows + 20, process)
        process.send_signal(signal.SIGTERM)
        _, error = self.ended(process, expect=75)
        self.assertRegex(error, r"rank 1 \(pid \d+\) gave no sign of life; restart 1 of 1")
        self.assertGreater(int(re.search(r"\d+", self.checkpoints()[-1])[0]), rows)

    def test_steps_of_this_call_count_once(self):
        for _ in range(5):  # a machine that is busy elsewhere may let a job end before it is struck
            process = self.start("train", self.write_steps("out", 1000000, 5), "--ranks", 2, "--restarts", 1, "--steps", 300)
            self.wait_for(lambda: self.rows_written("out") > 40, process, may_end=True)
            self.strike(0, signal.SIGKILL)
            _, error = self.ended(process)
            self.assertEqual(self.checkpoints()[-1], "checkpoint-000000000300.safetensors")
            if "restart 1 of 1" in error:
                break
            shutil.rmtree(self.path("out"))
        self.assertIn("restart 1 of 1", error)

    def test_a_folder_of_another_run_is_left_alone(self):
        """A rank that is lost before the job has begun does not make the next start go on from what another run has left."""
        run = self.write_steps("out", 5, 0)
        self.run_gantry("train", run)
        before = self.states("out")
        error = ""
        for _ in range(50):  # the job refuses the folder by itself, often before this sees all ranks
            process = self.start("train", run, "--ranks", 2, "--restarts", 1)
            self.wait_for(lambda: len(processes(self.marker)) == 3, process, may_end=True, pause=0.002)
            self.strike(1, signal.SIGKILL)
            _, error = self.ended(process, expect=73)
            # Each start may tell it.
            self.assertIn(error.count("checkpoints of an earlier run"), range(1, 2 + error.count("restart 1 of 1")), error)
            self.assertEqual(self.states("out"), before)
            if "restart 1 of 1" in error:
                break
        self.assertIn("restart 1 of 1", error)

    def test_usage(self):
        self.run_gantry("train", self.write_run(), "--restarts", -1, expect=64)
        self.environment["GANTRY_RANK"] = "0"
        process = self.start("train", self.write_run(), "--restarts", 2)
        self.assertIn("give it to the gantry run", self.ended(process, expect=64)[1])


if __name__ == "__main__":
    unittest.main()
