"""Planning without training: what-if, machine files, calibration, and fixes that can be pasted."""
import json
import os
import shlex
import stat
import unittest

from gantry_test_case import REFERENCE, GantryTestCase

DESCRIBED = """format = "gantry-machine-1"
name = "slow"
[device]
memory = "{memory}"
flops = 1e9
bandwidth = "1GB/s"
[[tiers]]
kind = "host"
out = "1GB/s"
in = "1GB/s"
"""


def fixes(stderr):
    """The flags of each line after "What would fit", with the bytes of its peak."""
    lines = stderr[stderr.index("What would fit"):].splitlines()[1:]
    found = []
    for line in lines:
        flags, _, rest = line.strip().partition(": peak ")
        if rest:
            found.append((shlex.split(flags), int(rest.split()[0])))
    return found


class Fixes(GantryTestCase):
    def check(self, *flags):
        done = self.run_gantry("train", self.write_run("tight"), *flags, expect=69, words=["bytes too many", "Largest with nothing offloaded"])
        found = fixes(done.stderr)
        self.assertGreaterEqual(len(found), 2, done.stderr)
        for index, (fix, peak) in enumerate(found):
            with self.subTest(" ".join(fix)):
                run = self.write_run(f"fixed{index}-{abs(hash(flags)) % 1000}")
                applied = self.run_gantry("train", run, *flags, *fix, "--steps", "1")
                self.assertIn(f"{peak:,} bytes", applied.stdout)
        return [" ".join(fix) for fix, _ in found]

    def test_every_fix_fits(self):
        found = self.check("--device-memory", "3/4", "--offload", "none", "--no-recompute")
        self.assertIn("--offload host", found)
        self.assertTrue(any(fix.startswith("--device-memory") for fix in found), found)

    def test_a_small_host(self):
        found = self.check("--device-memory", "3/4", "--no-recompute", "--host-memory", "1kB")
        self.assertTrue(any(fix.startswith("--host-memory") for fix in found), found)
        self.assertTrue(any("train.accumulate" in fix for fix in found), found)


class Machines(GantryTestCase):
    def test_a_described_machine(self):
        run = self.write_run()
        machine = self.write("slow.toml", DESCRIBED.format(memory="64GiB"))
        slow = self.run_gantry("plan", "show", run, "--machine", machine).stdout
        self.assertIn("described, slow.toml", slow)
        small = self.write("small.toml", DESCRIBED.format(memory="50kB"))
        tight = self.run_gantry("plan", "show", run, "--machine", small, expect=69)
        self.assertIn("does not fit 50000 bytes", tight.stderr)
        # A flag goes before the description.
        self.run_gantry("plan", "show", run, "--machine", small, "--device-memory", "1GiB")

    def test_wrong_machines(self):
        run = self.write_run()
        self.run_gantry("plan", "show", run, "--machine", self.path("none.toml"), expect=66)
        wrong = self.write("wrong.toml", 'format = "gantry-machine-1"\n[device]\nmemroy = 1\n')
        self.run_gantry("plan", "show", run, "--machine", wrong, expect=65, words=["wrong.toml:3", "did you mean 'memory'"])
        self.run_gantry("check", os.path.join(REFERENCE, "ring-mlp"), "--machine", wrong, expect=65, words=["did you mean 'memory'"])

    def test_calibration_is_kept_and_used(self):
        os.environ["XDG_CACHE_HOME"] = self.path("cache")
        self.addCleanup(os.environ.pop, "XDG_CACHE_HOME")
        run = self.write_run()
        self.assertIn("analytic", self.run_gantry("plan", "show", run).stdout)
        out = self.path("cache/gantry")
        # A small calibration: of one run's step, into a file that describes the rest.
        machine = self.write("m.toml", DESCRIBED.format(memory="64GiB"))
        done = self.run_gantry("calibrate", run, "--out", machine, "--steps", "2")
        self.assertIn("predicted", done.stdout)
        self.assertEqual(stat.S_IMODE(os.stat(machine).st_mode), 0o600)
        self.assertFalse(os.path.exists(out))
        os.makedirs(out)
        self.assertIn("measured, m.toml", self.run_gantry("plan", "show", run, "--machine", machine).stdout)
        os.environ["GANTRY_MACHINE"] = machine
        self.assertIn("measured, m.toml", self.run_gantry("plan", "show", run).stdout)
        os.environ["GANTRY_MACHINE"] = "none"
        self.assertIn("analytic", self.run_gantry("plan", "show", run).stdout)
        os.environ.pop("GANTRY_MACHINE")
        # A plan names its costs, and is carried out whatever they are now.
        plan = self.path("plan.json")
        self.run_gantry("plan", run, "--machine", machine, "--device-memory", "3/4", "--out", plan)
        with open(plan) as file:
            self.assertIn("measured, m.toml", json.load(file)["costs"])
        self.run_gantry("train", run, "--plan", plan, "--steps", "1")

    def test_ranks_measure_together(self):
        """Two ranks at work: the file has what ops took on them and the link between them, and plans of two ranks go by it."""
        run = self.write_run()
        machine = self.write("m.toml", DESCRIBED.format(memory="64GiB"))
        done = self.run_gantry("calibrate", run, "--ranks", "2", "--parallel", "space", "--threads", "1", "--steps", "2", "--out", machine)
        self.assertEqual(done.stdout.count("predicted"), 1)  # one rank tells
        with open(machine) as file:
            text = file.read()
        self.assertIn("ranks = 2\n", text)
        link = text[text.index("[[links]]"):]
        for key in ("between = \"node\"", "bandwidth = ", "latency = ", "start = "):
            self.assertIn(key, link)
        plan = json.loads(self.run_gantry("plan", run, "--ranks", "2", "--parallel", "space", "--machine", machine, "--json").stdout)
        self.assertIn("measured, m.toml", plan["assumed"][0])
        self.assertFalse(any("links are not described" in line for line in plan["assumed"]))
        # Again into the same file: what is known stays.
        self.run_gantry("calibrate", run, "--ranks", "2", "--threads", "1", "--steps", "1", "--out", machine)
        with open(machine) as file:
            again = file.read()
        self.assertEqual(again.count("[[links]]"), 1)
        self.assertGreaterEqual(again.count("[[kernels]]"), text.count("[[kernels]]"))
        broken = self.write("broken.toml", "format = \"gantry-machine-9\"\n")
        self.run_gantry("calibrate", run, "--ranks", "2", "--out", broken, expect=65, words=["gantry-machine-9"])
        with open(broken) as file:
            self.assertIn("gantry-machine-9", file.read())

    def test_usage(self):
        self.run_gantry("calibrate", "--set", "train.batch=2", expect=64, words=["name one"])
        self.run_gantry("calibrate", "--ranks", "2", expect=64, words=["name a run file"])
        self.run_gantry("calibrate", self.path("none.toml"), "--out", self.path("m.toml"), expect=66)


class WhatIf(GantryTestCase):
    def test_table_and_json(self):
        run = self.write_run()
        text = self.run_gantry("plan", "what-if", run).stdout
        for word in ("the step as it is", "moments", "largest batch", "train.accumulate=2"):
            self.assertIn(word, text)
        answers = json.loads(self.run_gantry("plan", "what-if", run, "--json", "--device-memory", "1/2").stdout)
        self.assertFalse(answers["assumed_budget"])
        plan = self.run_gantry("plan", "show", run).stdout
        peak = answers["answers"][0]["peak_bytes"]
        self.assertIn("lower bound  " + f"{peak:,} bytes", plan)
        # What can be asked for with flags gives such a step.
        for answer in answers["answers"]:
            if answer["topic"] in ("accumulate", "batch") and answer["fits"] and "offload" not in answer["flags"]:
                self.run_gantry("plan", "show", run, *shlex.split(answer["flags"]))

    def test_usage(self):
        self.run_gantry("plan", "what-if", os.path.join(REFERENCE, "ring-mlp"), expect=64, words=["run files"])


class PlanTexts(GantryTestCase):
    def test_totals(self):
        run = self.write_run()
        free, tight = self.path("free.json"), self.path("tight.json")
        self.run_gantry("plan", run, "--out", free)
        self.run_gantry("plan", run, "--device-memory", "3/4", "--out", tight)
        for text in (self.run_gantry("plan", "show", tight).stdout, self.run_gantry("plan", "show", run, "--device-memory", "3/4").stdout):
            for word in ("by phase", "by network", "by tier", "costs"):
                self.assertIn(word, text)
        difference = self.run_gantry("plan", "diff", free, tight).stdout
        self.assertIn("tier host: ", difference)
        self.assertIn("phase ", difference)


if __name__ == "__main__":
    unittest.main()
