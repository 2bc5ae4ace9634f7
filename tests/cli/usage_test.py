"""Arguments, help, and what the small subcommands say."""
import json
import os
import subprocess
import unittest

from gantry_test_case import GANTRY, GantryTestCase


class Usage(GantryTestCase):
    def test_version_and_help(self):
        self.assertRegex(self.run_gantry("--version").stdout, r"^gantry \d+\.\d+\.\d+\n$")
        text = self.run_gantry("--help").stdout
        for command in ("train", "check", "sample", "plan", "program", "layout", "ops", "backends", "run", "recorder", "topo"):
            self.assertIn(command, text)
            self.assertIn("--help", self.run_gantry(command, "--help").stdout)

    def test_wrong_usage(self):
        for arguments, words in (([], ["--help"]), (["chekc"], ["'check'"]), (["check"], ["case", "gantry check --help"]),
                                 (["check", "x", "--kernel", "fast"], ["'--kernels'"]), (["check", "x", "--kernels", "quick"], ["reference"]),
                                 (["check", "x", "--dtype", "f16"], ["f64"]), (["check", "x", "--threads", "-1"], ["--threads"]),
                                 (["layout", "slove"], ["'solve'"]), (["train"], ["run"]), (["train", "a", "--reusme", "latest"], ["'--resume'"]),
                                 (["sample", "a"], ["--out"]), (["backends", "x"], ["x"]), (["layout", "solve", "x", "--capacity", "lots"], ["--capacity"]),
                                 (["layout", "solve", "x", "--capacity", "-5"], ["--capacity", "gantry layout solve --help"]), (["sample", "x", "--out", "a.png", "--seed", "-1"], ["--seed"]),
                                 (["train", "x", "--steps", "0"], ["--steps"]), (["train", "x", "--steps", "9" * 20], ["--steps", "9223372036854775807"]),
                                 (["sample", "x", "--out", "a.png", "--seed", "1e3"], ["--seed"]), (["train", "x", "--resume", ""], ["--resume", "empty"])):
            with self.subTest(arguments):
                done = self.run_gantry(*arguments, expect=64, words=words)
                self.assertEqual(done.stdout, "")

    def test_backends(self):
        lines = self.run_gantry("backends").stdout.splitlines()
        self.assertTrue(lines[0].startswith("cpu: "))
        self.assertTrue(lines[1].startswith("cuda: "))
        self.assertRegex(lines[2], r"^network: tcp, (no UCX|UCX \d+\.\d+\.\d+)$")

    def test_topo(self):
        text = self.run_gantry("topo").stdout
        self.assertTrue(text.startswith("machine"))
        machine = json.loads(self.run_gantry("topo", "--json").stdout)
        self.assertEqual(machine["kind"], "machine")
        self.assertTrue(set(os.sched_getaffinity(0)) <= set(machine["cpus"]))

    def test_topo_of_a_described_machine(self):
        job = json.loads(self.run_gantry("topo", "--machine", "dgx-h100", "--nodes", "2", "--json").stdout)
        nodes = [child for child in job["children"] if child["kind"] == "node"]
        self.assertEqual([[rank["number"] for rank in node["children"] if rank["kind"] == "rank"] for node in nodes],
                         [list(range(8)), list(range(8, 16))])
        self.assertEqual(nodes[1]["children"][0]["bytes"], 76000000000)
        self.assertEqual([child["gigabytes_per_second"] for child in job["children"] if child["kind"] == "link"], [45.0])
        self.assertIn("link between every two ranks, 120.0 GB/s", self.run_gantry("topo", "--machine", "dgx-2").stdout)
        self.run_gantry("topo", "--machine", "cpu-2", "--nodes", "2", expect=65, words=["network"])
        self.run_gantry("topo", "--machine", "dgx-9", expect=66, words=["dgx-9", "dgx-h100"])
        self.run_gantry("topo", "--nodes", "2", expect=64, words=["--machine"])

    def test_ops(self):
        names = [line.split()[0] for line in self.run_gantry("ops").stdout.splitlines()[1:]]
        self.assertEqual(names, sorted(names))
        for name in ("conv", "conv_transpose", "matmul", "normalize", "leaky_relu", "gather", "adam_update"):
            self.assertIn(name, names)

    @unittest.skipUnless(os.path.exists("/dev/full"), "there is no /dev/full")
    def test_a_full_disk_is_an_error(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run([GANTRY, "ops"], stdout=full, stderr=subprocess.PIPE, text=True)
        self.assertEqual(done.returncode, 74)
        self.assertIn("stdout", done.stderr)


class Layout(GantryTestCase):
    PROBLEM = "id,lower,upper,size,alignment\na,0,3,100,64\nb,2,5,200,64\nc,4,6,100,64\nd,0,6,64,64\n"

    def test_solve_and_check(self):
        problem = self.write("problem.csv", self.PROBLEM)
        done = self.run_gantry("layout", "solve", problem, "--out", "placed.csv")
        values = dict(line.split(maxsplit=1) for line in done.stdout.replace("lower bound", "lower_bound").splitlines())
        self.assertGreaterEqual(int(values["height"]), int(values["lower_bound"]))
        if values["optimal"].startswith("yes"):
            self.assertEqual(values["height"], values["lower_bound"])
        checked = self.run_gantry("layout", "check", problem, "placed.csv")
        self.assertIn(values["height"], checked.stdout)
        self.run_gantry("layout", "check", problem, "placed.csv", "--capacity", int(values["height"]) - 1, expect=1)
        self.run_gantry("layout", "solve", problem, "--capacity", values["height"], "--out", "again.csv")
        self.run_gantry("layout", "solve", problem, "--capacity", "100", "--out", "small.csv", expect=1, words=["100", "exists"])
        self.assertFalse(os.path.exists(self.path("small.csv")))

    def test_wrong_placements(self):
        problem = self.write("problem.csv", self.PROBLEM)
        for offsets, name in (([0, 64, 0, 512], "b"), ([0, 128, 0, -64], "d"), ([0, 130, 0, 512], "b"), ([0, 128, 128, 512], "c")):
            rows = "".join(f"{i},{offset}\n" for i, offset in zip("abcd", offsets))
            done = self.run_gantry("layout", "check", problem, self.write("placed.csv", "id,offset\n" + rows), expect=1)
            self.assertIn("wrong", done.stdout)
            self.assertIn(name, done.stdout)
        # The same, told by position and by name.
        self.run_gantry("layout", "check", problem, self.write("placed.csv", "offset\n0\n128\n0\n384\n"))
        self.run_gantry("layout", "check", problem, self.write("placed.csv", "id,offset\nd,384\nc,0\nb,128\na,0\n"))

    def test_bad_files(self):
        problem = self.write("problem.csv", self.PROBLEM)
        self.run_gantry("layout", "solve", self.path("none.csv"), expect=66, words=["none.csv"])
        self.run_gantry("layout", "solve", self.folder, expect=65, words=["regular file"])
        self.run_gantry("layout", "solve", "/dev/zero", expect=65, words=["/dev/zero"])
        for text in ("", "id,size\na,1\n", self.PROBLEM + "e,1,1,8,1\n", self.PROBLEM + "e,1,2,-8,1\n", self.PROBLEM + "e,x,2,8,1\n",
                     self.PROBLEM + "e,1,2\n", "\0\0\0\0", self.PROBLEM + "e,1,2,99999999999999999999,1\n"):
            with self.subTest(text):
                self.run_gantry("layout", "solve", self.write("bad.csv", text), expect=65, words=["bad.csv"])
        for text in ("", "id\na\n", "id,offset\na,0\n", "id,offset\na,0\nb,0\nc,0\nx,0\n", "id,offset\na,0\nb,0\nc,0\nd,zero\n"):
            with self.subTest(text):
                self.run_gantry("layout", "check", problem, self.write("bad.csv", text), expect=65, words=["bad.csv"])
        self.run_gantry("layout", "solve", problem, "--out", "no/folder/placed.csv", expect=73, words=["no/folder"])
        self.run_gantry("layout", "solve", problem, "--out", self.folder, expect=73, words=["is a folder"])


if __name__ == "__main__":
    unittest.main()
