"""gantry train and check with several ranks: the same run, other numbers of ranks, signals, and a rank that is killed."""
import json
import os
import re
import shutil
import signal
import subprocess
import time
import unittest

from gantry_test_case import GANTRY, REFERENCE, JobTestCase, processes

# What --ranks does, for ranks that may end long after each other.
PATIENT = (GANTRY, "run", "--grace", "60", "-n")


class Parallel(JobTestCase):
    def test_check_agrees_with_the_reference(self):
        for case, split, ranks in (("r1", "batch", 2), ("wgan-gp", "space", 2), ("ring-mlp", "batch+shard", 3), ("r1", "batch+space", 4),
                                   ("wgan-gp", "roles", 2), ("r1", "channel", 2), ("wgan-gp", "channel", 3), ("ring-mlp", "channel+shard", 2),
                                   ("batch-norm", "batch+channel", 4), ("wgan-gp", "pipeline", 2), ("r1", "pipeline", 3)):
            with self.subTest(case=case, split=split, ranks=ranks):
                done = self.run_gantry("check", os.path.join(REFERENCE, case), "--ranks", str(ranks), "--parallel", split, "--json")
                line = done.stdout.splitlines()[-1].removeprefix("[0] ")
                self.assertTrue(json.loads(line)["within_tolerance"])

    def rows(self, folder):
        with open(self.path(f"{folder}/metrics.jsonl")) as file:
            return [json.loads(line) for line in file]

    def numbers(self, folder):
        return [{name: value for name, value in row.items() if "second" not in name} for row in self.rows(folder)]

    def test_a_run_goes_on_with_another_number_of_ranks(self):
        run = self.write_run(steps=9)
        f64 = ["--set", "train.dtype=f64", "--set", "train.kernels=reference"]
        self.run_gantry("train", run, *f64, "--set", f"output.directory={self.path('alone')}")
        together = [*f64, "--set", f"output.directory={self.path('together')}"]
        done = self.run_gantry("train", run, *together, "--ranks", "2", "--parallel", "batch+shard", "--steps", "2")
        self.assertIn("ranks           2", done.stdout)
        self.run_gantry("train", run, *together, "--ranks", "3", "--parallel", "space", "--steps", "1", "--resume", "latest")
        self.run_gantry("train", run, *together, "--ranks", "4", "--parallel", "roles+batch", "--steps", "1", "--resume", "latest")
        self.run_gantry("train", run, *together, "--ranks", "3", "--parallel", "channel", "--steps", "1", "--resume", "latest")
        self.run_gantry("train", run, *together, "--ranks", "4", "--parallel", "batch+channel", "--steps", "1", "--resume", "latest")
        self.run_gantry("train", run, *together, "--ranks", "2", "--parallel", "pipeline", "--steps", "1", "--resume", "latest")
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

    def test_checkpoints_have_what_a_step_leaves_for_the_next(self):
        run = self.write_run(steps=5)
        tensors = {}
        for overlap in ("on", "across"):
            # Between two lines of the log, for which ranks would end the step.
            self.run_gantry("train", run, "--set", f"output.directory={self.path(overlap)}", "--set", "output.log_every=5", "--set", "output.checkpoint_every=2",
                            "--ranks", "2", "--overlap", overlap)
            for step in (2, 4, 5):
                with open(self.path(f"{overlap}/checkpoint-{step:012}.safetensors"), "rb") as file:
                    content = file.read()
                tensors[overlap, step] = content[8 + int.from_bytes(content[:8], "little"):]
                self.assertEqual(tensors[overlap, step], tensors["on", step], f"{overlap}, step {step}")

    def test_nodes_change_no_bit(self):
        run = self.write_run(steps=4)
        for split in ("batch+shard", "space", "roles"):
            first = None
            for nodes in (1, 2, 4):
                with self.subTest(split=split, nodes=nodes):
                    folder = self.path(f"{split}{nodes}")
                    self.run_gantry("run", "-n", "4", "--nodes", str(nodes), "--", GANTRY, "train", run, "--parallel", split,
                                    "--overlap", "on" if split == "roles" else "across", "--set", f"output.directory={folder}")
                    with open(os.path.join(folder, "checkpoint-000000000004.safetensors"), "rb") as file:
                        content = file.read()
                    content = content[8 + int.from_bytes(content[:8], "little"):]
                    first = first or content
                    self.assertEqual(content, first)

    def test_budgets_do_not_change_what_ranks_exchange(self):
        run = self.write_run(steps=3)
        f64 = ["--set", "train.dtype=f64", "--set", "train.kernels=reference"]
        self.run_gantry("train", run, *f64, "--set", f"output.directory={self.path('alone')}")
        for split in ("batch", "space", "space+shard", "channel", "pipeline"):
            with self.subTest(split):
                self.run_gantry("train", run, *f64, "--set", f"output.directory={self.path(split)}", "--ranks", "3", "--parallel", split,
                                "--device-memory", "3/5")
                for expected, actual in zip(self.rows("alone"), self.rows(split), strict=True):
                    for name in ("discriminator_loss", "generator_loss"):
                        self.assertAlmostEqual(expected[name], actual[name], delta=1e-9 * max(1, abs(expected[name])))

    def start_training(self, *arguments):
        process = self.start("train", self.write_run(steps=1000000), "--ranks", "2", *arguments)
        while "measured peak" not in process.stdout.readline():
            self.assertIsNone(process.poll())
        return process

    def test_a_signal_ends_all_ranks_after_the_same_step(self):
        process = self.start_training("--parallel", "batch+shard")
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 75, errors)
        self.assertEqual(len(self.checkpoints("out")), 1)
        self.assert_no_processes(self.marker)
        self.run_gantry("train", self.write_run(steps=1000000), "--resume", "latest", "--steps", "1")

    def test_all_ranks_resume_or_none(self):
        run = self.write_run(steps=4)
        self.run_gantry("train", run, "--ranks", "2", "--steps", "2")
        newest = self.path("out/" + self.checkpoints("out")[-1])
        with open(newest, "rb") as file:
            damaged = self.write("damaged.safetensors", file.read()[:-5])
        own = f'exec {GANTRY} train {run} --resume $(if [ $GANTRY_RANK = 1 ]; then echo $OTHER; else echo {newest}; fi)'
        for other, code, words in ((damaged, 65, "is cut short"), (self.path("none.safetensors"), 74, "none.safetensors"), (self.path("empty"), 74, "has no checkpoint")):
            os.makedirs(self.path("empty"), exist_ok=True)
            with self.subTest(other):
                done = subprocess.run([*PATIENT, "2", "--", "sh", "-c", own], capture_output=True, text=True, cwd=self.folder, timeout=250,
                                      env=dict(os.environ, OTHER=other))
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertEqual(done.stderr.count(words), 1, done.stderr)
                self.assertNotIn("is lost", done.stderr)
        self.assertEqual(len(self.rows("out")), 2)
        self.run_gantry("train", run, "--ranks", "2", "--resume", "latest")

    def test_a_killed_rank_is_named_by_the_other(self):
        process = self.start_training()
        self.assertTrue(self.strike(1, signal.SIGKILL))
        _, errors = process.communicate(timeout=120)
        self.assertNotEqual(process.returncode, 0)
        self.assertRegex(errors, re.compile(r"rank 1 \(.*is lost", re.S))
        self.assertIn("killed by signal 9", errors)
        self.assert_no_processes(self.marker)

    def test_a_failure_of_planning_is_told_once(self):
        for words, code, ranks, arguments in (("does not fit", 69, "3", ("--device-memory", "4KiB")),
                                              ("no split of the step fits", 69, "2", ("--parallel", "auto", "--device-memory", "4KiB")),
                                              ("nowhere", 66, "3", ("--set", "data.path=nowhere"))):
            with self.subTest(words):
                done = subprocess.run([*PATIENT, ranks, "--", GANTRY, "train", self.write_run(), *arguments], capture_output=True, text=True, cwd=self.folder,
                                      timeout=250)
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertEqual(done.stderr.count(words), 1, done.stderr)
                self.assertIn("rank 0 of ", done.stderr)
                self.assertNotIn("is lost", done.stderr)
                self.assertNotIn("ended with exit code", done.stderr)

    def test_a_folder_that_will_not_do_is_told_once(self):
        """The rank that writes finds it; the others wait for that, and end with it."""
        run = self.write_run(steps=2)
        self.run_gantry("train", run)
        for words, flags in (("checkpoints of an earlier run", ()), ("cannot", ("--set", "output.directory=/proc/nowhere"))):
            for trial in range(4):
                with self.subTest(words, trial=trial):
                    done = subprocess.run([*PATIENT, "3", "--", GANTRY, "train", run, *flags], capture_output=True, text=True, cwd=self.folder, timeout=250)
                    self.assertEqual(done.returncode, 73, done.stderr)
                    self.assertEqual(done.stderr.count(words), 1, done.stderr)
                    for other in ("has left the job", "is lost", "ended with exit code"):
                        self.assertNotIn(other, done.stderr)

    def test_a_failure_of_planning_a_check_is_told_once(self):
        done = subprocess.run([*PATIENT, "2", "--", GANTRY, "check", os.path.join(REFERENCE, "r1"), "--device-memory", "2KiB"], capture_output=True,
                              text=True, cwd=self.folder, timeout=250)
        self.assertEqual(done.returncode, 69, done.stderr)
        self.assertEqual(done.stderr.count("does not fit"), 1, done.stderr)

    def test_a_rank_that_is_killed_while_it_plans_is_named(self):
        for _ in range(5):  # a machine that is busy elsewhere may let it come to its first step
            process = self.start("train", self.write_run(steps=1000000), "--ranks", "2", "--parallel", "auto", "--set", "model.image_size=64",
                                 "--set", "model.width=64", "--set", "data.image_size=64", "--device-memory", "1/4")
            self.wait_for(lambda: 1 in processes(self.marker), process)
            time.sleep(0.5)
            self.assertTrue(self.strike(1, signal.SIGKILL))
            out, errors = process.communicate(timeout=240)
            self.assertNotEqual(process.returncode, 0)
            self.assertIn("killed by signal 9", errors)
            self.assertRegex(errors, r"rank 1 \(")
            self.assert_no_processes(self.marker)
            if "predicted peak" not in out:
                break
            shutil.rmtree(self.path("out"), ignore_errors=True)
        self.assertNotIn("predicted peak", out, "planned too soon")

    def test_auto_trains_as_one_rank_does(self):
        run = self.write_run(steps=3)
        f64 = ["--set", "train.dtype=f64", "--set", "train.kernels=reference"]
        self.run_gantry("train", run, *f64, "--set", f"output.directory={self.path('alone')}")
        done = self.run_gantry("train", run, *f64, "--set", f"output.directory={self.path('auto')}", "--ranks", "2", "--parallel", "auto")
        chosen = re.search(r"ranks           2, (\S+);", done.stdout).group(1)
        self.assertNotEqual(chosen, "auto")
        with open(self.path("auto/run.toml")) as file:
            self.assertIn(f'split = "{chosen}"', file.read())
        for expected, actual in zip(self.rows("alone"), self.rows("auto"), strict=True):
            for name in ("discriminator_loss", "generator_loss"):
                self.assertAlmostEqual(expected[name], actual[name], delta=1e-9 * max(1, abs(expected[name])))

    def test_plans_of_all_ranks(self):
        run = self.write_run()
        done = self.run_gantry("plan", run, "--ranks", "2", "--parallel", "batch+shard", "--json")
        plan = json.loads(done.stdout)
        self.assertEqual([rank for alike in plan["classes"] for rank in alike["ranks"]], [0, 1])
        trained = self.run_gantry("train", run, "--ranks", "2", "--parallel", "batch+shard", "--steps", "1")
        measured = int(re.search(r"measured peak   ([0-9,]+) bytes", trained.stdout).group(1).replace(",", ""))
        self.assertEqual(plan["classes"][0]["device_bytes"], measured)
        done = self.run_gantry("plan", run, "--ranks", "2", "--parallel", "auto", "--out", self.path("plans"))
        self.assertIn("taken", done.stdout)
        self.assertEqual(sorted(os.listdir(self.path("plans"))), ["rank-0.json", "rank-1.json"])
        for rank in (0, 1):
            self.run_gantry("plan", "verify", self.path(f"plans/rank-{rank}.json"))

    def test_planned_once_and_carried_out(self):
        """Plans of all ranks in a folder give what planning in each rank gives; nothing else takes them."""
        for split, ranks, flags in (("batch+shard", 3, ()), ("space", 2, ("--device-memory", "4/5", "--offload", "host"))):
            run, folder = self.write_run(folder=split), self.path(f"plans-{split}")
            flags = ("--ranks", ranks, "--parallel", split, *flags)
            self.run_gantry("plan", run, *flags, "--out", folder)
            self.run_gantry("train", run, *flags, "--steps", "3")
            planned = self.numbers(split)
            self.run_gantry("train", run, *flags, "--steps", "3", "--plan", folder, "--set", f"output.directory={self.path('carried')}")
            self.assertEqual(self.numbers("carried"), planned)
            shutil.rmtree(self.path("carried"))
            os.rename(os.path.join(folder, "rank-0.json"), os.path.join(folder, "rank-9.json"))
            self.run_gantry("train", run, *flags, "--plan", folder, "--set", f"output.directory={self.path('carried')}", expect=66, words=["rank-0.json"])
            os.rename(os.path.join(folder, "rank-1.json"), os.path.join(folder, "rank-0.json"))
            self.run_gantry("train", run, *flags, "--plan", folder, "--set", f"output.directory={self.path('carried')}", expect=65,
                            words=["the plan was made for another"])

    def test_unequal_ranks_take_unequal_shares(self):
        """Shares that planning finds for ranks of other speed and memory are carried out and recorded; losses are those of one rank."""
        run = self.write_run(batch=14, steps=3)
        machine = self.write("unequal.toml", 'format = "gantry-machine-1"\n[device]\nflops = 1e9\n[ranks]\ncount = 3\nspeed = [1.0, 0.5, 0.25]\n')
        f64 = ["--set", "train.dtype=f64", "--set", "train.kernels=reference"]
        self.run_gantry("train", run, *f64, "--set", f"output.directory={self.path('alone')}")
        plans, flags = self.path("plans"), [*f64, "--set", "train.threads=1", "--ranks", "3", "--parallel", "batch+shard"]
        splits = []
        for folder, more in (("planned", ["--machine", machine]), ("tight", ["--machine", machine, "--device-memory", "400KiB,none,none"])):
            done = self.run_gantry("plan", run, *flags, *more, "--out", plans)
            split = re.search(r"ranks .*, (batch\+shard=\S+), a mesh", done.stdout).group(1)
            shares = [float(share) for share in split.partition("=")[2].split(":")]
            self.assertGreater(shares[0], shares[2])
            done = self.run_gantry("train", run, *flags, *more, "--set", f"output.directory={self.path(folder)}")
            self.assertIn(f"ranks           3, {split};", done.stdout)
            with open(self.path(f"{folder}/run.toml")) as file:
                self.assertIn(f'split = "{split}"', file.read())
            for expected, actual in zip(self.rows("alone"), self.rows(folder), strict=True):
                for name in ("discriminator_loss", "generator_loss"):
                    self.assertAlmostEqual(expected[name], actual[name], delta=1e-9 * max(1, abs(expected[name])))
            # A plan says how it shares out the step, whatever the machine would say now.
            self.run_gantry("train", run, *flags, *more, "--plan", plans, "--set", f"output.directory={self.path(folder + '-carried')}")
            self.assertEqual(self.numbers(f"{folder}-carried"), self.numbers(folder))
            splits.append(split)
        self.assertEqual(splits[0], splits[1])  # a budget changes no share, and so no bit
        self.assertEqual(self.numbers("planned"), self.numbers("tight"))
        self.run_gantry("train", run, "--ranks", "2", "--parallel", "batch=2:1:1", expect=65, words=["3 shares for 2 ranks"])

    def test_machines_by_name(self):
        run = self.write_run(batch=1024)
        for name, per_node in (("cpu-2", 2), ("dgx-1", 8), ("dgx-2", 16), ("dgx-h100", 8)):
            done = self.run_gantry("plan", run, "--machine", name, "--parallel", "batch", "--json")
            self.assertEqual(json.loads(done.stdout)["ranks"], per_node)
        done = self.run_gantry("plan", run, "--machine", "dgx-h100", "--nodes", "128", "--parallel", "batch", "--json")
        self.assertEqual((json.loads(done.stdout)["ranks"], json.loads(done.stdout)["nodes"]), (1024, 128))
        self.run_gantry("plan", run, "--machine", "dgx-9", "--nodes", "2", expect=66, words=["dgx-h100"])
        self.run_gantry("plan", run, "--machine", "cpu-2", "--nodes", "2", expect=65, words=["network"])

    def test_wrong_words(self):
        self.run_gantry("train", self.write_run(), "--parallel", "bach", expect=65, words=["parallel.split", "batch"])
        self.run_gantry("train", self.write_run(), "--ranks", "0", expect=64, words=["--ranks"])
        self.run_gantry("check", os.path.join(REFERENCE, "r1"), "--parallel", "bach", expect=64, words=["parallel.split"])


if __name__ == "__main__":
    unittest.main()
