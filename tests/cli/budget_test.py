"""Budgets and plan files: the same bits, known bytes, and clear answers where something does not fit."""
import json
import os
import unittest

from gantry_test_case import REFERENCE, GantryTestCase


def last_json(done):
    return json.loads(done.stdout.splitlines()[-1])


class Check(GantryTestCase):
    def test_weights_are_the_same_bits_for_every_budget(self):
        for case in ("batch-norm", "wgan-gp", "r1"):
            for kernels in ("reference", "fast"):
                with self.subTest(case, kernels=kernels):
                    common = ("check", os.path.join(REFERENCE, case), "--json", "--kernels", kernels, "--threads", "1")
                    free = last_json(self.run_gantry(*common))
                    for flags in (("--device-memory", "9/10"), ("--device-memory", "9/10", "--no-recompute"),
                                  ("--device-memory", "19/20", "--offload", "file", "--offload-directory", self.folder),
                                  ("--device-memory", "9/10", "--no-encode"), ("--device-memory", "9/10", "--checksums"),
                                  ("--device-memory", "9/10", "--link", "out=500MB/s,in=500MB/s,latency=20us")):
                        tight = last_json(self.run_gantry(*common, *flags))
                        self.assertEqual(tight["weights_sha256"], free["weights_sha256"], flags)
                        self.assertEqual(tight["log"], free["log"], flags)
                        self.assertLess(tight["arena_bytes"], free["arena_bytes"], flags)
                        self.assertEqual(tight["footprint_bytes"], free["arena_bytes"], flags)

    def test_the_file_leaves_nothing(self):
        folder = self.path("tier")
        os.mkdir(folder)
        self.run_gantry("check", os.path.join(REFERENCE, "batch-norm"), "--kernels", "fast", "--device-memory", "19/20", "--offload", "file",
                        "--offload-directory", folder)
        self.assertEqual(os.listdir(folder), [])

    def test_what_does_not_fit(self):
        case = os.path.join(REFERENCE, "batch-norm")
        for flags, word in ((("--device-memory", "10kB"), "What would fit"), (("--device-memory", "9/10", "--offload", "none", "--no-recompute"), "--offload host")):
            done = self.run_gantry("check", case, "--kernels", "fast", *flags, expect=69, words=["bytes too many", word])
            self.assertNotIn("Traceback", done.stderr)

    def test_wrong_words(self):
        case = os.path.join(REFERENCE, "ring-mlp")
        for value in ("lots", "-1", "0", "3/2", "1/0", "64 MiBB", "nan", "1e400", "1/4/2"):
            with self.subTest(value):
                self.run_gantry("check", case, "--device-memory=" + value, expect=64, words=["memory.device", value])
        self.run_gantry("check", case, "--device-memory", "1/2", "--offload", "file", expect=64, words=["memory.directory"])
        self.run_gantry("check", case, "--device-memory", "1/2", "--link", "out=fast", expect=64, words=["memory.link", "latency"])
        self.run_gantry("check", case, "--stash-dtype", "f16", expect=64, words=["f16"])
        case = os.path.join(REFERENCE, "batch-norm")
        self.run_gantry("check", case, "--kernels", "fast", "--device-memory", "19/20", "--offload", "file", "--offload-directory",
                        self.path("none"), expect=66)


class Train(GantryTestCase):
    def weights(self, folder):
        from hashlib import sha256
        with open(os.path.join(self.path(folder), self.checkpoints(folder)[-1]), "rb") as file:
            data = file.read()
        size = int.from_bytes(data[:8], "little")
        return sha256(data[8 + size:]).hexdigest()

    def test_budgets_and_resume(self):
        run = self.write_run("free")
        self.run_gantry("train", run)
        run = self.write_run("tight")
        done = self.run_gantry("train", run, "--device-memory", "3/4", "--steps", "3")
        self.assertIn("tier host", done.stdout)
        # Another budget goes on from the same checkpoint.
        self.run_gantry("train", run, "--device-memory", "9/10", "--resume", "latest")
        self.assertEqual(self.weights("free"), self.weights("tight"))


class PlanFiles(GantryTestCase):
    def setUp(self):
        super().setUp()
        self.run_file = self.write_run()
        self.plan = self.path("plan.json")
        self.run_gantry("plan", self.run_file, "--device-memory", "3/4", "--out", self.plan)

    def test_show_diff_verify(self):
        self.assertIn("budget", self.run_gantry("plan", "show", self.plan).stdout)
        self.assertIn("no difference", self.run_gantry("plan", "diff", self.plan, self.plan).stdout)
        free = self.path("free.json")
        self.run_gantry("plan", self.run_file, "--out", free)
        self.assertIn("arena", self.run_gantry("plan", "diff", self.plan, free).stdout)
        for plan in (self.plan, free):
            self.assertIn("right", self.run_gantry("plan", "verify", plan).stdout)
            self.assertIn("every op", self.run_gantry("plan", "verify", plan, self.run_file).stdout)

    def test_a_plan_is_carried_out(self):
        done = self.run_gantry("train", self.run_file, "--plan", self.plan)
        with open(self.plan) as file:
            arena = json.load(file)["arena_bytes"]
        self.assertIn(f"{arena:,} bytes", done.stdout + done.stderr)

    def test_a_plan_for_something_else(self):
        for setting, word in (("train.batch=8", "another model"), ("train.threads=1", "another machine"), ("train.loss=hinge", "another model")):
            done = self.run_gantry("plan", "verify", self.plan, self.run_file, "--set", setting, expect=1)
            self.assertIn(word, done.stdout)
            self.run_gantry("train", self.run_file, "--plan", self.plan, "--set", setting, expect=65, words=[word])

    def test_a_plan_of_another_version(self):
        with open(self.plan) as file:
            plan = json.load(file)
        ours, plan["gantry_version"] = plan["gantry_version"], "0.0.1"
        edited = self.write("edited.json", json.dumps(plan))
        self.run_gantry("train", self.run_file, "--plan", edited, expect=65, words=["another version of gantry: 0.0.1, here it is " + ours])

    def test_a_plan_with_other_encodings(self):
        rounded = self.path("rounded.json")
        run = self.write_run(batch=32)
        budget = ("--device-memory", "3/4", "--no-recompute", "--no-encode")
        shown = self.run_gantry("plan", run, *budget, "--stash-dtype", "bf16", "--out", rounded).stdout
        self.assertIn("LOSSY", self.run_gantry("plan", "show", rounded).stdout, shown)
        self.run_gantry("train", run, "--plan", rounded, "--no-encode", expect=65, words=["memory.stash", "bf16"])
        done = self.run_gantry("train", run, "--plan", rounded, "--no-encode", "--stash-dtype", "bf16")
        self.assertIn("LOSSY", done.stdout)
        self.assertIn("rounded to bf16", done.stdout[done.stdout.index("Memory:"):])
        with open(os.path.join(self.path("out"), "metrics.jsonl")) as file:
            self.assertTrue(all(json.loads(line)["bf16_stashes"] > 0 for line in file))

    def edit(self, change):
        with open(self.plan) as file:
            plan = json.load(file)
        change(plan)
        return self.write("edited.json", json.dumps(plan))

    def test_wrong_plans_are_found(self):
        def overlap(plan):
            biggest = max((b for b in plan["buffers"] if b["tier"] == -1), key=lambda b: b["bytes"])
            biggest["offset"] = 0 if biggest["offset"] else 64

        def move_value(plan):
            index = max(range(len(plan["offsets"])), key=lambda i: plan["offsets"][i])
            plan["offsets"][index] = 0

        def early(plan):
            for action in plan["actions"]:
                if action["do"] == "fetch":
                    action["done_by"] = plan["actions"].index(action)
                    return

        def late(plan):
            for action in plan["actions"]:
                if action["do"] == "fetch":
                    action["done_by"] = len(plan["actions"])
                    return

        def skip(plan):
            plan["actions"] = [action for action in plan["actions"] if action["do"] != "fetch"]

        def version(plan):
            plan["gantry_version"] = "0.0.1"

        for change in (overlap, move_value, early, late, skip, version):
            with self.subTest(change.__name__):
                edited = self.edit(change)
                self.assertIn("WRONG", self.run_gantry("plan", "verify", edited, self.run_file, expect=1).stdout)
        self.assertIn("WRONG", self.run_gantry("plan", "verify", self.edit(overlap), expect=1).stdout)

    def test_damaged_files(self):
        with open(self.plan) as file:
            text = file.read()
        for content in ("", "{", text[:len(text) // 2], "[" * 100000, "null", '{"format": "gantry-plan-9"}', '{"format": "gantry-plan-2"}'):
            damaged = self.write("damaged.json", content)
            self.run_gantry("plan", "show", damaged, expect=65, words=["is no plan"])
        self.run_gantry("plan", "show", self.path("none.json"), expect=66)
        self.run_gantry("plan", self.run_file, expect=64, words=["--out"])
        self.run_gantry("plan", self.run_file, "--out", self.path("no/folder/plan.json"), expect=66)


if __name__ == "__main__":
    unittest.main()
