"""Memory of other ranks, from the command line: the same checkpoints, known bytes, clear answers, and a lender that is killed."""
import json
import os
import re
import signal
import unittest
from hashlib import sha256

from gantry_test_case import GANTRY, REFERENCE, GantryTestCase, processes

ONE_THREAD = ("--set", "train.threads=1")


class Lending(GantryTestCase):
    def setUp(self):
        super().setUp()
        self.run_file = self.write_run(steps=3)

    def plan(self, ranks, *flags):
        done = self.run_gantry("plan", self.run_file, *ONE_THREAD, "--ranks", str(ranks), "--parallel", "batch", "--json", *flags)
        classes = json.loads(done.stdout)["classes"]
        return [next(alike for alike in classes if rank in alike["ranks"]) for rank in range(ranks)]

    def footprint(self, ranks):
        # As with a budget: the order of ops that takes the least memory.
        return self.plan(ranks, "--device-memory", "1/1")[0]["device_bytes"]

    def train(self, folder, *flags, ranks=0, launcher=(), expect=0, words=()):
        arguments = ["train", self.run_file, *ONE_THREAD, "--set", f"output.directory={self.path(folder)}", "--parallel", "batch", *flags]
        if launcher:
            arguments = ["run", *launcher, "--", GANTRY, *arguments]
        elif ranks:
            arguments += ["--ranks", str(ranks)]
        return self.run_gantry(*arguments, expect=expect, words=list(words))

    def weights(self, folder):
        with open(os.path.join(self.path(folder), self.checkpoints(folder)[-1]), "rb") as file:
            data = file.read()
        return sha256(data[8 + int.from_bytes(data[:8], "little"):]).hexdigest()

    def peaks(self, stdout):
        """Predicted and measured bytes of rank 0's device."""
        return [int(re.search(name + r" peak +([0-9,]+) bytes", stdout).group(1).replace(",", "")) for name in ("predicted", "measured")]

    def test_a_poor_rank_borrows_from_its_peer(self):
        for ranks in (2, 3):
            bytes = self.footprint(ranks)
            self.train(f"free{ranks}", ranks=ranks)
            # The first rank lacks, the second has plenty; then the other way round, so that rank 0, which prints, lends.
            for order, (first, second) in enumerate((((4 * bytes) // 5, 4 * bytes), (4 * bytes, (4 * bytes) // 5))):
                with self.subTest(ranks=ranks, order=order):
                    budgets = ("--device-memory", ",".join([str(first), str(second), "none"][:ranks]), "--no-recompute")
                    self.train("alone", *budgets, "--offload", "none", ranks=ranks, expect=69, words=[f"rank {order} of {ranks}", "does not fit"])
                    folder = f"lent{ranks}{order}"
                    done = self.train(folder, *budgets, "--offload", "peer", ranks=ranks)
                    self.assertEqual(self.weights(folder), self.weights(f"free{ranks}"))
                    planned = self.plan(ranks, *budgets, "--offload", "peer")
                    poor, lender = planned[order], planned[1 - order]
                    self.assertEqual([tier["name"] for tier in poor["tiers"]], [f"peer-{1 - order}"])
                    self.assertEqual(lender["loans"], [{"rank": order, "of": "device", "bytes": poor["tiers"][0]["bytes"]}])
                    self.assertGreater(poor["tiers"][0]["bytes"], 0)
                    predicted, measured = self.peaks(done.stdout)
                    self.assertEqual((predicted, measured), (planned[0]["device_bytes"],) * 2)
                    self.assertLessEqual(measured, first)
                    self.assertIn("lends " if order else f"tier peer-{1 - order}", done.stdout)
                    for alike, budget in zip(planned, (first, second)):
                        self.assertLessEqual(alike["device_bytes"], budget)

    def test_all_nodes(self):
        bytes = self.footprint(2)
        self.train("free", ranks=2)
        poor = str(4 * bytes // 5)
        for name, flags, word in (("remote", ("--device-memory", poor, "--offload", "remote"), "tier remote-1"),
                                  ("limited", ("--device-memory", poor, "--offload", "host+remote", "--host-memory", "1GiB"), "tier "),
                                  ("peer", ("--device-memory", f"{poor},{4 * bytes}", "--offload", "peer"), "tier peer-1"),
                                  ("slow", ("--device-memory", poor, "--offload", "remote", "--link", "out=200MB/s,in=200MB/s,latency=50us",
                                            "--checksums"), "tier remote-1")):
            with self.subTest(name):
                done = self.train(name, *flags, "--no-recompute", launcher=("-n", "2", "--nodes", "2"))
                self.assertIn(word, done.stdout)
                self.assertEqual(self.weights(name), self.weights("free"))
                predicted, measured = self.peaks(done.stdout)
                self.assertEqual(predicted, measured)
        # On one node there is no host but the own.
        self.train("near", "--device-memory", poor, "--offload", "remote", "--no-recompute", ranks=2, expect=69,
                   words=["Other ranks lend it nothing", "ranks of other nodes host memory"])

    def test_plan_files_say_who_lends(self):
        bytes = self.footprint(2)
        flags = ("--device-memory", f"{4 * bytes // 5},{4 * bytes}", "--no-recompute", "--offload", "peer")
        shown = self.run_gantry("plan", self.run_file, *ONE_THREAD, "--ranks", "2", "--parallel", "batch", *flags, "--out", self.path("plans")).stdout
        self.assertIn("lends rank 0", shown)
        with open(self.path("plans/rank-0.json")) as file:
            borrower = json.load(file)
        with open(self.path("plans/rank-1.json")) as file:
            lender = json.load(file)
        [tier], [loan] = borrower["tiers"], lender["loans"]
        self.assertEqual((tier["name"], tier["kind"], tier["lender"]), ("peer-1", "peer", 1))
        self.assertEqual(loan, {"borrower": 0, "kind": "peer", "offset": tier["lender_offset"], "bytes": tier["bytes"]})
        for rank in (0, 1):
            self.run_gantry("plan", "verify", self.path(f"plans/rank-{rank}.json"))
        self.assertIn("lends rank 0", self.run_gantry("plan", "show", self.path("plans/rank-1.json")).stdout)
        for change, word in (({"offset": lender["arena_bytes"] - 64}, "overlaps"), ({"bytes": 8 * bytes}, "the budget is")):
            edited = dict(lender, loans=[dict(loan, **change)])
            done = self.run_gantry("plan", "verify", self.write("edited.json", json.dumps(edited)), expect=1)
            self.assertIn(word, done.stdout)
        edited = dict(lender, loans=[dict(loan, kind="host")])
        self.run_gantry("plan", "show", self.write("edited.json", json.dumps(edited)), expect=65, words=["'kind' is \"host\""])

    def test_check_gives_the_same_weights(self):
        common = ("check", os.path.join(REFERENCE, "batch-norm"), "--ranks", "2", "--threads", "1", "--json")
        free, lent = (json.loads(self.run_gantry(*common, *flags).stdout.splitlines()[-1].removeprefix("[0] "))
                      for flags in ((), ("--device-memory", "9/10,1GiB", "--offload", "peer", "--no-recompute")))
        self.assertEqual(lent["weights_sha256"], free["weights_sha256"])
        self.assertEqual(lent["log"], free["log"])
        self.assertLess(lent["arena_bytes"], free["arena_bytes"])

    def test_wrong_words(self):
        for place in ("moon", "peer+peer", "peer+", "none+host", ""):
            self.train("out", "--offload", place, ranks=2, expect=64, words=["--offload"])
        for budgets in ("64MiB,", "64MiB,lots", ",", "64MiB,0"):
            self.train("out", "--device-memory", budgets, ranks=2, expect=65, words=["memory.device"])
        for budgets, ranks in (("64MiB,64MiB", 3), ("64MiB,64MiB,64MiB", 2)):
            done = self.train("out", "--device-memory", budgets, ranks=ranks, expect=65, words=["memory.device has budgets of"])
            self.assertEqual(done.stderr.count("memory.device"), 1, done.stderr)
            self.run_gantry("plan", self.run_file, "--ranks", str(ranks), "--device-memory", budgets, expect=65, words=["memory.device has budgets of"])
        for command in (("train", self.run_file), ("plan", "show", self.run_file), ("plan", self.run_file, "--ranks", "1"), ("plan", "what-if", self.run_file)):
            self.run_gantry(*command, "--offload", "peer", expect=65, words=["there is one rank", "--ranks"])
            self.run_gantry(*command, "--device-memory", "64MiB,64MiB", expect=65, words=["memory.device"])
        self.assertFalse(os.path.exists(self.path("out")))

    def test_a_killed_lender_ends_all_by_its_name(self):
        bytes = self.footprint(2)
        flags = ("--device-memory", f"{4 * bytes // 5},{4 * bytes}", "--no-recompute", "--parallel", "batch", *ONE_THREAD)
        run = self.write_run(steps=1000000)
        for nodes, offload in (("1", "peer"), ("2", "peer"), ("2", "remote")):
            with self.subTest(nodes=nodes, offload=offload):
                marker = f"{self.folder}/{nodes}{offload}"
                process = self.popen(GANTRY, "run", "-n", "2", "--nodes", nodes, "--", GANTRY, "train", run, *flags, "--offload", offload,
                                     "--set", f"output.directory={marker}", env=dict(os.environ, GANTRY_TEST_MARKER=marker))
                while "measured peak" not in process.stdout.readline():
                    self.assertIsNone(process.poll(), process.stderr.read() if process.poll() is not None else "")
                os.kill(processes(f"GANTRY_TEST_MARKER={marker}")[1], signal.SIGKILL)
                _, errors = process.communicate(timeout=120)
                self.assertNotEqual(process.returncode, 0)
                self.assertRegex(errors, re.compile(r"rank 1 \(.*is lost", re.S))
                self.assertIn("killed by signal 9", errors)
                self.assert_no_processes(f"GANTRY_TEST_MARKER={marker}")


if __name__ == "__main__":
    unittest.main()
