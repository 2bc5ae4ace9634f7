"""gantry run and gantry recorder: output, signals, failures, what is left behind."""
import json
import os
import re
import signal
import subprocess
import tempfile
import time
import unittest

from gantry_test_case import GANTRY, HEARTBEATS, JobTestCase, free_port, processes

RANK = os.environ["GANTRY_RANK_PROCESS"]


class Run(JobTestCase):
    def setUp(self):
        super().setUp()
        self.environment["GANTRY_RUN_DIR"] = self.path("run")

    def start(self, *arguments):
        return super().start("run", *arguments)

    def run_ranks(self, *arguments, expect=0, words=()):
        process = self.start(*arguments)
        out, error = process.communicate(timeout=120)
        self.assertEqual(process.returncode, expect, f"{arguments}\n{out}\n{error}")
        for word in words:
            self.assertIn(word, error)
        self.assert_nothing_left()
        return out, error

    def assert_nothing_left(self):
        self.assert_no_processes(self.marker)
        self.assertEqual(os.listdir(self.folder), [])

    def test_ranks_meet(self):
        for ranks in (1, 2, 5):
            out, error = self.run_ranks("-n", ranks, "--", RANK)
            lines = sorted(out.splitlines())
            self.assertEqual(len(lines), ranks, out + error)
            for rank, line in enumerate(lines):
                self.assertRegex(line, rf"^\[{rank}\] rank {rank} of {ranks} \(found by GANTRY_\*, connected by its launcher\): met {ranks}, ")
            self.assertEqual(error, "")

    def test_the_programs_own_options_are_its_own(self):
        for arguments in (["-n", 1, "--", "echo", "-n", "--json", "--", "x"], ["-n", 1, "echo", "-n", "--json", "--", "x"]):
            self.assertEqual(self.run_ranks(*arguments)[0], "[0] --json -- x\n")

    def test_output_is_whole_lines(self):
        out, error = self.run_ranks("-n", 4, "--", RANK, "print", 300)
        for rank in range(4):
            own = [line[4:] for line in out.splitlines() if line.startswith(f"[{rank}] ")]
            self.assertEqual(len(own), 301)
            for i, line in enumerate(own[:300]):
                self.assertEqual(line, f"line {i} of rank {rank} " + "x" * (i * 7 % 300))
            self.assertEqual(own[300], "no end of line")
            self.assertEqual(sum(line.startswith(f"[{rank}] error line") for line in error.splitlines()), 30)
        out, _ = self.run_ranks("-n", 2, "--no-prefix", "--", "echo", "plain")
        self.assertEqual(out, "plain\nplain\n")

    def test_the_first_failure_is_named(self):
        out, error = self.run_ranks("-n", 4, "--", RANK, "die", 2, expect=137, words=["rank 2 (pid ", "was killed by signal 9"])
        self.assertEqual(len(re.findall(r"rank 2 \(host \S+, pid \d+\) is lost", error)), 3, error)
        self.run_ranks("-n", 3, "--", RANK, "exit", 1, 42, expect=42, words=["rank 1 (pid ", "ended with exit code 42"])
        # The recorder of the killed one says where it was.
        self.assertRegex(error, r"(?m)^2 +\d+ +after +all_gather +1 ")
        self.assertRegex(error, r"rank 2 has not come to all_gather 2 of 'the end' in group world")

    def test_how_soon_a_killed_rank_is_named(self):
        for name, by_tcp in (("on a node", False), ("over TCP", True)):
            times = []
            for _ in range(10):
                if by_tcp:
                    out = self.over_tcp(4, "time", "2")
                else:
                    out, error = self.run_ranks("-n", 4, "--", RANK, "time", 2, expect=137)
                    out += error
                killed = int(re.search(r"killed (\d+)", out)[1])
                known = [int(found) for found in re.findall(r"known (\d+) rank 2 \(", out)]
                self.assertEqual(len(known), 3, out)
                times += [(at - killed) / 1e6 for at in known]
            times.sort()
            print(f"a killed rank is named {name} after {times[len(times) // 2]:.2f} ms (median), {times[-1]:.2f} ms (longest of {len(times)})")
            # The goal is 5 and 50 ms; on a machine that does other things, too, a bound that a heartbeat alone would not keep.
            self.assertLess(times[len(times) // 2], 200)

    def over_tcp(self, ranks, *arguments):
        """As if each rank had a machine of its own."""
        with tempfile.TemporaryDirectory() as folder:
            key = os.path.join(folder, "key")
            with open(os.open(key, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                file.write(os.urandom(32).hex())
            environment = {name: value for name, value in self.environment.items() if not name.startswith("GANTRY_")}
            environment.update(HEARTBEATS, GANTRY_SIZE=str(ranks), GANTRY_KEY_FILE=key, GANTRY_RUN_DIR=os.path.join(folder, "run"),
                               GANTRY_RENDEZVOUS=f"tcp:127.0.0.1:{free_port()}")
            started = [self.popen(RANK, *arguments, stderr=None, env=dict(environment, GANTRY_RANK=str(rank), GANTRY_NODE=str(rank))) for rank in range(ranks)]
            return "".join(process.communicate(timeout=120)[0] for process in started)

    def test_a_stopped_rank_is_noticed(self):
        self.environment["GANTRY_HEARTBEAT_TIMEOUT"] = "1"
        start = time.monotonic()
        _, error = self.run_ranks("-n", 3, "--grace", 1, "--", RANK, "stop", 1, expect=69, words=["no sign of life"])
        self.assertIn("rank 1", error)
        self.assertLess(time.monotonic() - start, 25)  # what the others wait for gives up after 120

    def test_a_program_that_ignores_the_end_is_killed(self):
        script = 'if [ $GANTRY_RANK = 1 ]; then exit 3; fi; trap "" TERM; while true; do sleep 1; done'
        self.run_ranks("-n", 2, "--grace", 0.3, "--", "bash", "-c", script, expect=3)
        self.run_ranks("-n", 2, "--grace", 0.3, "--timeout", 0.5, "--", "sleep", 100, expect=124, words=["500ms"])

    def test_orphans_are_killed(self):
        self.run_ranks("-n", 2, "--", RANK, "orphan")

    def test_signals_reach_the_ranks(self):
        script = 'trap "echo stopping; exit 75" TERM; echo ready; while true; do sleep 0.02; done'
        process = self.start("-n", 2, "--", "bash", "-c", script)
        for _ in range(2):
            self.assertIn("ready", process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 75, error)
        self.assertEqual(out.count("stopping"), 2)
        self.assert_nothing_left()
        # The second one does not ask.
        process = self.start("-n", 2, "--", "bash", "-c", script.replace("exit 75", "true"))
        for _ in range(2):
            process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        self.assertIn("stopping", process.stdout.readline())
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
        self.assertEqual(process.returncode, 137)
        self.assert_nothing_left()

    def test_ranks_die_with_the_launcher(self):
        process = self.start("-n", 3, "--", RANK, "loop")
        self.wait_for(lambda: len(processes(self.marker)) == 4, process)
        time.sleep(0.1)
        process.kill()
        process.communicate(timeout=120)
        self.assert_nothing_left()

    def test_recorder_of_a_live_job(self):
        process = self.start("-n", 3, "--hang", 0.2, "--", RANK, "wait", 1)
        expected = ("rank 1 has not come to all_gather 2 of 'the end' in group world, which ranks 0, 2 wait in; "
                    "it was last in all_gather 1 of 'the start'")
        text = ""
        deadline = time.monotonic() + 60
        while expected not in text and process.poll() is None and time.monotonic() < deadline:
            text = subprocess.run([GANTRY, "recorder", str(process.pid)], capture_output=True, text=True).stdout
            time.sleep(0.01)
        self.assertIn(expected, text)
        facts = json.loads(self.run_gantry("recorder", process.pid, "--json").stdout)
        self.assertEqual([rank["rank"] for rank in facts["ranks"]], [0, 1, 2])
        self.assertEqual(facts["ranks"][0]["operations"][-1]["state"], "in")
        self.assertEqual(facts["ranks"][1]["operations"][-1]["state"], "done")
        self.assertEqual(len(facts["verdict"]), 1)
        # A survivor holds them, too.
        self.assertIn("rank 1 has not come", self.run_gantry("recorder", facts["ranks"][2]["pid"]).stdout)
        os.kill(facts["ranks"][1]["pid"], signal.SIGKILL)
        _, error = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 137)
        self.assertIn("rank 1 has not come", error)

    def test_recorder_files(self):
        process = self.start("-n", 2, "--recorder", self.path("last"), "--", RANK, "die", 1)
        process.communicate(timeout=120)
        self.assertEqual(os.stat(self.path("last")).st_mode & 0o777, 0o600)
        self.assertIn("rank 1 has not come to all_gather 2", self.run_gantry("recorder", "last").stdout)
        with open(self.path("last"), "rb") as file:
            whole = file.read()
        self.run_gantry("recorder", self.write("cut", whole[:-3]), expect=65)
        self.run_gantry("recorder", self.path("none"), expect=66)
        self.run_gantry("recorder", os.getpid(), expect=66, words=["holds no flight recorder"])

    def test_wrong_usage(self):
        for arguments, code in (([], 64), (["-n", 0, "--", "true"], 64), (["-n", "two", "true"], 64), (["-n", 2], 64), (["--", "no-such-program"], 66),
                                (["--", "/etc/passwd"], 66)):
            with self.subTest(arguments):
                self.run_gantry("run", *arguments, expect=code)


if __name__ == "__main__":
    unittest.main()
